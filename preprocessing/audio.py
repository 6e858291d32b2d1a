"""An audio file -> its PCM in blocks, or the cause why it can't be used.

    with open_recording(Path("part-01.mp3")) as recording:
        for pcm in recording.pcm_blocks(): ...

Input: an MP3, FLAC, WAV, OGG, M4B or AAC file with any sample rate and number of channels. For one block after another,
so that 16 hours need no more memory than a minute:

1. decode once, in order, to the last byte of the file (containers.py);
2. mix to mono; of two channels that cancel each other, take the louder one;
3. resample to 8 kHz with soxr, apply the gain, round to int16;
4. at the end, compare the decoded length with the one in the file, and the level with what speech has.

Output: int16 PCM at 8 kHz, and warnings; or `BadRecording`, whose message is the cause in the report.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import soxr

from babble.codec.frames import SAMPLE_RATE_HZ
from preprocessing.inspect import PcmFacts, PcmMeter
from preprocessing.kinds import KINDS, BadRecording, kind_of, read_head, sniff
from preprocessing.names import split_suffix

if TYPE_CHECKING:
    from preprocessing.containers import Audio, Block

MIN_SECONDS = 1.0
# A recording whose peak is lower is silent: a thousandth of full scale.
SILENT_PEAK_DBFS = -60.0
# Two channels whose correlation is lower cancel each other when mixed.
CANCELLING = -0.9
# A larger share of clipped values is heard as distortion.
CLIPPED_SHARE = 0.001
# Values of a float file above this are not on the scale of 1, but on that of integers of 16, 24 or 32 bits.
MAX_FLOAT_PEAK = 64.0
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)


def _find_kind(path: Path, file: IO[bytes]) -> str:
    """Return the kind of audio by the file's first bytes, and by its suffix if those say nothing."""
    head = read_head(file)
    if not head:
        raise BadRecording("empty: the file has no bytes")
    kind = kind_of(head, split_suffix(path.name)[1])
    # After other bytes, FFmpeg finds the first frame of MP3 and AAC only.
    if kind not in KINDS.values() or (sniff(head) is None and kind not in ("MP3", "AAC")):
        raise BadRecording(f"not audio, or its beginning is damaged: it starts with {head[:4]!r}")
    return str(kind)


@dataclass
class Recording:
    """An open recording: the facts in its header, and its PCM, which can be read once."""

    _audio: "Audio"
    _scale: float
    _meter: PcmMeter = field(default_factory=PcmMeter)
    _cancelled_seconds: float = 0.0

    @property
    def kind(self) -> str:
        """What kind of audio it is: "MP3", "FLAC" ..."""
        return self._audio.kind

    @property
    def rate_hz(self) -> int:
        """Sample rate of the file, at its beginning."""
        return self._audio.rate_hz

    @property
    def channels(self) -> int:
        """Number of channels in the file, at its beginning."""
        return self._audio.channels

    @property
    def seconds(self) -> float | None:
        """Length according to the file's header, None if it has none."""
        return self._audio.seconds

    @property
    def warnings(self) -> list[str]:
        """What is unusual about the recording, once it is read."""
        return self._audio.warnings

    def pcm_blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording as int16 PCM at 8 kHz, in order.

        Raises:
            BadRecording: damaged, truncated, empty, silent, shorter than a second, or with NaN or infinite values.
                Don't use the blocks yielded before it either.
        """
        rate_hz, resampler = 0, None
        for block in self._audio.blocks():
            if block.rate_hz != rate_hz:
                yield from self._end(resampler)
                rate_hz, resampler = block.rate_hz, None
                if rate_hz != SAMPLE_RATE_HZ:
                    resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
            mono = self._mix(block)
            resampled = resampler.resample_chunk(mono) if resampler else mono
            if len(resampled):
                yield self._round(resampled)
        yield from self._end(resampler)
        self._check_all()

    def _end(self, resampler: soxr.ResampleStream | None) -> Iterator[np.ndarray]:
        if resampler and len(tail := resampler.resample_chunk(np.empty(0, np.float32), last=True)):
            yield self._round(tail)

    def _mix(self, block: "Block") -> np.ndarray:
        """Return the block in mono, float32 (N,) with full scale at 32768, after the gain."""
        values_CN = block.values_CN
        mono = values_CN[0]
        if len(values_CN) == 2:
            left, right = values_CN
            products = left @ left, left @ right, right @ right
            if products[1] < CANCELLING * (products[0] * products[2]) ** 0.5:
                self._cancelled_seconds += len(mono) / block.rate_hz
                mono = left if products[0] >= products[2] else right
            else:
                mono = (left + right) / 2
        with np.errstate(over="ignore", invalid="ignore"):
            mono = mono * np.float32(32768 * self._scale)
        if self._audio.is_float and not np.isfinite(mono).all():
            raise BadRecording(f"NaN or infinite values after {self._meter.facts().seconds:.1f} s")
        self._meter.count_clipped(mono)
        return mono

    def _round(self, values: np.ndarray) -> np.ndarray:
        self._meter.add(values)
        np.rint(values, out=values)
        return np.clip(values, -32768, 32767, out=values).astype(np.int16)

    def _check_all(self) -> None:
        facts = self.facts()
        if not facts.seconds:
            raise BadRecording("empty: it contains no audio")
        if facts.seconds < MIN_SECONDS:
            raise BadRecording(f"too short: {facts.seconds:.2f} s, expected at least {MIN_SECONDS:g} s")
        if facts.peak_dbfs < SILENT_PEAK_DBFS:
            raise BadRecording(f"silent: its peak is {facts.peak_dbfs:g} dB of full scale")
        if self._cancelled_seconds:
            seconds = f"{self._cancelled_seconds:.1f} s"
            self.warnings.append(f"its channels cancel each other for {seconds}; there, one of them was used")
        if facts.clipped > CLIPPED_SHARE:
            self.warnings.append(f"{facts.clipped:.1%} of its values are clipped; use the original, or less --gain-db")

    def facts(self) -> PcmFacts:
        """Return the facts of the PCM read so far."""
        return self._meter.facts()


@contextmanager
def open_recording(path: Path, gain_db: float = 0.0) -> Iterator[Recording]:
    """Open a recording.

    Args:
        path: an audio file; its content decides what kind it is, not its suffix.
        gain_db: gain in dB, applied before rounding to int16.

    Raises:
        BadRecording: not readable, empty, not audio, or truncated according to its header.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadRecording(f"unreadable: {error.strerror}") from None
    with file:
        kind = _find_kind(path, file)
        # Imported here: FFmpeg takes 40 MB of memory, which a process that only encodes does not need.
        try:
            from preprocessing.containers import open_audio
        except ImportError:
            raise BadRecording("audio files need PyAV: pip install -e '.[preprocess]' in the clone") from None
        scale, warnings = 10 ** (gain_db / 20), []
        with open_audio(file, kind) as audio:
            if not audio.is_float:
                yield Recording(audio, scale)
                return
            if (full_scale := _find_full_scale(audio)) > 1:
                scale /= full_scale
                warnings = [
                    f"its float values are on a scale of {full_scale:,.0f}, not of 1; they were divided by that"
                ]
        # The audio was read once to find its peak.
        file.seek(0)
        with open_audio(file, kind) as audio:
            audio.warnings += warnings
            yield Recording(audio, scale)


def _find_full_scale(audio: "Audio") -> float:
    """Return the full scale of float values by their peak: 1, or that of integers."""
    peak = max((float(np.nanmax(np.abs(block.values_CN))) for block in audio.blocks()), default=0.0)
    if not MAX_FLOAT_PEAK < peak < np.inf:
        return 1.0
    return next((scale for scale in _INTEGER_SCALES if peak <= scale), 1.0)
