"""Play a voice in the browser, without end, and change it while it plays.

    babble live
    babble live runs/NAME
    babble live runs/NAME --port 8765 --no-browser

Opens a page that is served from this computer to this computer only, at a secret address: sliders for sampling and for
pitch, energy, spectrum and voicing, prompts from a file or the microphone, all voices in the run folder, and
the last minute as a file. Ctrl-C ends it.
"""

from dataclasses import dataclass
from pathlib import Path

from babble.cli import run_command


@dataclass(frozen=True)
class LiveConfig:
    """Play a voice in the browser and change it while it plays.

    Attributes:
        run: run folder, runs/NAME, or a checkpoint file; the bundled voice by default.
        runs: folder of runs, whose voices the page offers too.
        port: port of the page; a free one if omitted.
        browser: whether to open the page.
    """

    run: Path | None = None
    runs: Path = Path("runs")
    port: int | None = None
    browser: bool = True

    def __post_init__(self) -> None:
        """Validate the port."""
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: must be from 1 to 65535.")


def _run(config: LiveConfig) -> None:
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    from babble.player.server import serve

    serve(config.run, config.runs, config.port, opens_browser=config.browser)


def main() -> None:
    """Run `babble live`."""
    run_command(LiveConfig, _run, "babble live", positional="run")


if __name__ == "__main__":
    main()
