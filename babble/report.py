"""Put runs and sweeps on one page to look at and listen to: a single HTML file that needs no network.

    babble report runs/demo
    babble report runs/A runs/B runs/SWEEP --out report.html
    babble report runs/demo --sources recordings/ --epochs 5

The page has the samples with players, speech metrics of babble and real speech, settings, curves with baselines, and
what `babble evaluate --json` and `babble tune` left in the folders. Every training writes such a page for its run.

Shards hold codec frames, not recordings, so "real speech" is decoded from frames. With `--sources` the page also has
the original recordings.
"""

from dataclasses import dataclass
from pathlib import Path

from babble.cli import run_command
from babble.files import check_writable
from babble.reporting import SHOWN_EPOCHS

COMMAND = "babble report"


@dataclass(frozen=True)
class ReportConfig:
    """Put runs and sweeps on one page to look at and listen to.

    Attributes:
        runs: Folders of runs and sweeps, e.g. runs/NAME.
        out: The page: one HTML file that needs no network.
        epochs: From how many epochs of each run samples are shown, evenly spread, the last included.
        sources: The original recordings, as given to `babble preprocess`, to compare with the decoded speech.
    """

    runs: tuple[Path, ...] = ()
    out: Path = Path("report.html")
    epochs: int = SHOWN_EPOCHS
    sources: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Validate that there is something to report."""
        if not self.runs:
            raise ValueError(f"no run given: {COMMAND} runs/NAME [runs/OTHER ...]")
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: must be at least 1.")


def _work(config: ReportConfig) -> None:
    from babble.reporting.render import write_report

    check_writable(config.out, "--out")
    report = write_report(config.runs, config.out, config.epochs, config.sources)
    clips = sum(len(row["clips"]) for row in report["rows"])
    names = ", ".join(facts["name"] for facts in (*report["sweeps"], *report["runs"]))
    print(f"{config.out}: {names}; {clips} clips; {config.out.stat().st_size / 1e6:.1f} MB. Open it in a browser.")


def main() -> None:
    """Run `babble report`."""
    run_command(ReportConfig, _work, COMMAND, "runs")


if __name__ == "__main__":
    main()
