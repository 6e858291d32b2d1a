"""Play a voice in the browser, without end, and change it while it plays.

    babble live
    babble live runs/NAME
    babble live runs/NAME --port 8765 --no-browser

Opens a page that is served from this computer to this computer only, at a secret address: sliders for sampling and for
pitch, energy, spectrum and voicing, prompts from a file or the microphone, all voices in the run folder, and
the last minute as a file. Ctrl-C ends it.
"""

import contextlib
import secrets
import socket
import webbrowser
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn

from babble.cli import run_command
from babble.player.server import MAX_MESSAGE_BYTES, make_app
from babble.player.session import Voices
from babble.run_folder import PRETRAINED

HOST = "127.0.0.1"


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


class _Server(uvicorn.Server):
    """Prints the address once it can be opened."""

    def __init__(self, config: uvicorn.Config, address: str, opens_browser: bool) -> None:
        super().__init__(config)
        self._address, self._opens_browser = address, opens_browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"{self._address}\nOpen this address in a browser on this computer. Ctrl-C ends it.", flush=True)
        if self._opens_browser:
            webbrowser.open(self._address)


def serve(config: LiveConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        FileNotFoundError, ValueError: the run has no usable checkpoint.
        OSError: the port is in use.
    """
    voices = Voices(config.run or PRETRAINED, config.runs)
    voices.load(voices.names[0])
    # Frame by frame, more threads only slow it down.
    torch.set_num_threads(1)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, config.port or 0))
    except OSError as error:
        raise OSError(f"--port {config.port}: {error.strerror}. Choose another, or omit the flag.") from None
    secret = secrets.token_urlsafe(16)
    address = f"http://{HOST}:{listener.getsockname()[1]}/{secret}/"
    settings = uvicorn.Config(
        make_app(voices, secret),
        # The address is secret, so it is in no log.
        access_log=False,
        log_level="warning",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_max_queue=8,
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):  # The usual end.
        _Server(settings, address, config.browser).run(sockets=[listener])
    print("Ended.")


def main() -> None:
    """Run `babble live`."""
    run_command(LiveConfig, serve, "babble live", positional="run")


if __name__ == "__main__":
    main()
