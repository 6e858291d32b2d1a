"""Generated streams on their way to files: pcm as a WAV or on standard output, frames as .c2, failure alarms.

stream = Stream("babble.wav", prompt.frames, mode)
stream.add(block)
stream.close()
write_c2(Path("babble.c2"), stream.frames, mode)
"""

import math
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm import tqdm

from babble.cli import OutputClosed
from babble.codec.codec2 import Decoder
from babble.codec.failures import Guard
from babble.codec.frames import SAMPLE_RATE_HZ, Mode, pack_packets
from babble.processes import StopRequest

if TYPE_CHECKING:
    from babble.generation.free_run import FreeRun

STDOUT = "-"
# One channel of two bytes per sample.
WAV_PARAMETERS = (1, 2, SAMPLE_RATE_HZ, 0, "NONE", "")


class PcmWriter:
    """Writes pcm, int16 at 8 kHz, to a WAV file or, with "-", as raw bytes to standard output."""

    def __init__(self, out: str) -> None:
        self._wav: wave.Wave_write | None = None
        if out != STDOUT:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            self._wav = wave.open(out, "wb")  # noqa: SIM115  (closed by `close`)
            self._wav.setparams(WAV_PARAMETERS)

    def write(self, pcm: np.ndarray) -> None:
        """Append pcm (N,).

        Raises:
            OutputClosed: the player has ended.
        """
        data = pcm.astype("<i2").tobytes()
        if self._wav:
            self._wav.writeframes(data)
        else:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise OutputClosed from None

    def close(self) -> None:
        """Complete the WAV file."""
        if self._wav:
            self._wav.close()


class Stream:
    """One generated stream: decoded and written block by block, and checked for failures.

    Args:
        out: path of the WAV file, or "-" for standard output.
        prompt_frames: (T, F); decoded first, so that speech continues without a click.
        mode: the mode of the frames.
        with_prompt: whether the output starts with the prompt.
        with_guard: whether to check for failures.

    Attributes:
        alarms: the failures found, each with its kind, where it starts ("seconds_in_wav", from the first sample of the
            output, prompt included), how long it had lasted when it was found, and its period, in seconds.
    """

    def __init__(
        self, out: str, prompt_frames: np.ndarray, mode: Mode, with_prompt: bool = True, with_guard: bool = True
    ) -> None:
        self.out, self.mode = out, mode
        self.alarms: list[dict[str, Any]] = []
        self._writer, self._decoder = PcmWriter(out), Decoder(mode)
        self._guard = Guard(mode) if with_guard else None
        prompt_pcm = self._decoder.decode(pack_packets(prompt_frames, mode))
        if with_prompt:
            self._writer.write(prompt_pcm)
        # Without end on standard output, so there only the length is kept.
        self._blocks = [prompt_frames] if with_prompt else [prompt_frames[:0]]
        self._num_frames = self._guard_start = len(self._blocks[0])

    @property
    def frames(self) -> np.ndarray:
        """The frames (T, F) of the WAV, prompt included."""
        return np.concatenate(self._blocks)

    def add(self, block: np.ndarray) -> bool:
        """Write a block of frames (T, F); return whether the guard found a new failure."""
        self._writer.write(self._decoder.decode(pack_packets(block, self.mode)))
        if self.out != STDOUT:
            self._blocks.append(block)
        self._num_frames += len(block)
        found = self._guard.update(block) if self._guard else []
        rate = self.mode.frames_per_second
        for alarm in found:
            seconds = (self._guard_start + alarm.first_frame) / rate
            self.alarms.append(
                {
                    "kind": alarm.kind,
                    "seconds_in_wav": seconds,
                    "noticed_after_seconds": alarm.frames / rate,
                    "period_seconds": alarm.period_frames / rate,
                }
            )
            print(f"{self.out}: {alarm.kind} from {seconds:.1f} s on", file=sys.stderr, flush=True)
        return bool(found)

    def reset_guard(self) -> None:
        """Check only the frames that come from now on."""
        self._guard, self._guard_start = Guard(self.mode), self._num_frames

    def close(self) -> None:
        """Complete the WAV file."""
        self._writer.close()


def run_streams(
    free_run: "FreeRun", streams: Sequence[Stream], total_frames: float, restart: bool
) -> tuple[int, int | None]:
    """Generate frames and write them to their streams, until there are enough or a signal asks to stop.

    Args:
        free_run: generates one stream for each of `streams`.
        streams: where they go; all are closed at the end.
        total_frames: how many to generate per stream; may be infinite.
        restart: whether a stream with a failure starts over from its prompt.

    Returns:
        the number of frames generated per stream, and the number of the signal that stopped it, or None.
    """
    rate = streams[0].mode.frames_per_second
    num_frames, stop = 0, StopRequest("stopping after this block")
    is_endless = math.isinf(total_frames)
    bar = tqdm(
        total=None if is_endless else total_frames / rate,
        disable=not sys.stderr.isatty(),
        bar_format="babble: {n:.0f} s" + ("" if is_endless else " of {total:.0f} s {bar} {remaining} left"),
    )
    try:
        with bar, stop.watching(SIGINT, SIGTERM):
            while num_frames < total_frames and stop.number is None:
                blocks = free_run.make_block()
                blocks = blocks[:, : int(min(blocks.shape[1], total_frames - num_frames))]
                num_frames += blocks.shape[1]
                for number, (stream, block) in enumerate(zip(streams, blocks, strict=True)):
                    if stream.add(block) and restart:
                        free_run.start_over(number)
                        stream.reset_guard()
                bar.update(blocks.shape[1] / rate)
    finally:
        for stream in streams:
            stream.close()
    return num_frames, stop.number


def write_wav(file: Path | BinaryIO, pcm: np.ndarray) -> None:
    """Write pcm, int16 (N,) at 8 kHz, as a WAV file: to a path or an open file."""
    with wave.open(str(file) if isinstance(file, Path) else file, "wb") as wav:
        wav.setparams(WAV_PARAMETERS)
        wav.writeframes(pcm.astype("<i2").tobytes())


def read_wav(path: Path, num_samples: int) -> np.ndarray:
    """Return the first samples of a WAV file that this module wrote, int16 (N,)."""
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(num_samples), "<i2").astype(np.int16)
