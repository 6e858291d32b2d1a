"""Play a voice on the speakers, without end.

    babble play
    babble play runs/NAME --temperature 0.8

Keys: up and down change the temperature, space pauses, q ends. Without a terminal it plays until it is stopped. The
audio device is the system's default.
"""

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from babble.cli import CommandError, run_command
from babble.codec.frames import SAMPLE_RATE_HZ
from babble.generation.prompts import find_prompt
from babble.run_folder import PRETRAINED

if TYPE_CHECKING:
    from babble.player.session import Session

STEP, LOWEST, HIGHEST = 0.05, 0.1, 2.0
UP, DOWN = "\x1b[A", "\x1b[B"


@dataclass(frozen=True)
class PlayConfig:
    """Play a voice on the speakers.

    Attributes:
        run: run folder, runs/NAME, or a checkpoint file; the bundled voice by default.
        temperature: at the start, one number for all fields; the arrow keys change it.
        prompt: what to continue, as babble generate takes it.
        seed: random seed.
    """

    run: Path | None = None
    temperature: float = 1.0
    prompt: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the temperature."""
        if not LOWEST <= self.temperature <= HIGHEST:
            raise ValueError(f"--temperature {self.temperature:g}: must be from {LOWEST:g} to {HIGHEST:g}.")


def press(key: str, temperature: float) -> float:
    """Return the temperature after a key: UP raises it, DOWN lowers it, others leave it."""
    step = {UP: STEP, DOWN: -STEP}.get(key, 0)
    return round(min(HIGHEST, max(LOWEST, temperature + step)), 2)


@contextlib.contextmanager
def _reading_keys() -> Iterator[bool]:
    """Let single keys be read from the terminal, if there is one; yield whether there is."""
    if not sys.stdin.isatty():
        yield False
        return
    # Not on Windows.
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _read_keys() -> list[str]:
    """Return the keys that were pressed since the last call."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return []
    # No terminal holds more. While a block is written, a key that is held down comes several times.
    text = os.read(sys.stdin.fileno(), 4096).decode(errors="ignore")
    return re.findall(r"\x1b\[[AB]|.", text, re.DOTALL)


def _import_sounddevice() -> ModuleType:
    try:
        import sounddevice
    except OSError as error:  # Its wheels for Linux come without PortAudio.
        raise CommandError(f"{error}. On Debian, install libportaudio2. babble live plays in a browser.") from None
    return sounddevice


def play(config: PlayConfig) -> None:
    """Play until a key, a signal or the end of the audio device.

    Raises:
        FileNotFoundError, ValueError: an unusable run or prompt, or a temperature without effect.
        CommandError: there is no audio device, or it was removed.
    """
    # Imported here: torch takes seconds, which --help and a refused setting need not wait for.
    import torch

    from babble.generation.free_run import choose_sampling
    from babble.player.session import Session, Settings, Voices

    torch.set_num_threads(1)
    voices = Voices(config.run or PRETRAINED, Path(os.devnull))
    session = Session(voices, config.seed, Settings(temperature=f"{config.temperature:g}"))
    model, run, _ = voices.load(session.voice)
    # Session itself accepts one that has no effect.
    choose_sampling(model, None if config.temperature == 1 else config.temperature)
    if config.prompt:
        session.continue_from(find_prompt(config.prompt, run, session.mode, seed=config.seed))
    sounddevice = _import_sounddevice()
    try:
        stream = sounddevice.RawOutputStream(SAMPLE_RATE_HZ, channels=1, dtype="int16", latency="high")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise CommandError(
            f"no audio device: {error}. babble live plays in a browser, babble generate writes a file."
        ) from None
    try:
        with stream, _reading_keys() as has_keys:
            print(f"Playing {session.voice}." + " Up, down: temperature. Space: pause. q: end." * has_keys, flush=True)
            _play_blocks(session, stream.write, has_keys, config.temperature)
    except sounddevice.PortAudioError as error:
        raise CommandError(f"the audio device failed: {error}. Was it removed?") from None


def _play_blocks(session: "Session", write: Callable[[bytes], object], has_keys: bool, temperature: float) -> None:
    """Write blocks until q; `write` returns when there is room for more."""
    is_paused = False
    while True:
        for key in _read_keys() if has_keys else []:
            if key == "q":
                return
            if key == " ":
                is_paused = not is_paused
            if (new := press(key, temperature)) != temperature:
                temperature = new
                session.change(replace(session.settings, temperature=f"{temperature:g}"))
                print(f"temperature {temperature:g}", flush=True)
        if is_paused:
            time.sleep(0.05)
            continue
        write(session.next_block().pcm.tobytes())


def main() -> None:
    """Run `babble play`."""
    run_command(PlayConfig, play, "babble play", positional="run")


if __name__ == "__main__":
    main()
