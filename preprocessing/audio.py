"""An audio file -> its PCM in blocks, or the cause why it can't be used.

    with open_recording(Path("part-01.mp3")) as recording:
        for pcm in recording.pcm_blocks(): ...

Input: an MP3, FLAC, WAV, OGG, M4B or AAC file with any sample rate and number of channels. For one block of
`BLOCK_VALUES` values per channel after another, so that 16 hours need no more memory than a minute:

1. check that the first bytes match the suffix;
2. decode once, in order, with soundfile, or with PyAV if soundfile can't read the format;
3. mix to mono, resample to 8 kHz with soxr, apply the gain, round to int16;
4. at the end, compare the decoded length with the one in the file's header.

Output: int16 PCM at 8 kHz, or `BadRecording`, whose message is the cause in the report.
"""

import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr

from babble.codec.frames import SAMPLE_RATE_HZ
from preprocessing.inspect import PcmFacts, PcmMeter
from preprocessing.kinds import KINDS, read_head, sniff, tag_size

# Not a setting: an MP3 decodes to the same values only in blocks of the same size.
BLOCK_VALUES = 1 << 16
MIN_SECONDS = 1.0
# A recording whose peak is lower is silent: a thousandth of full scale.
SILENT_PEAK_DBFS = -60.0
# A recording that is shorter than its header says by more than this is truncated. Encoders pad by a few thousand
# values, and decoders remove them.
TRUNCATED_SECONDS = 0.5


class BadRecording(ValueError):
    """A recording that can't be used; the message is the cause, without the recording's name."""


def _check_kind(path: Path, file: IO[bytes]) -> str:
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise BadRecording(f"unsupported suffix {suffix or '(none)'}; supported are {', '.join(KINDS)}")
    wanted = KINDS[suffix]
    head = read_head(file)
    if not head:
        raise BadRecording("empty: the file has no bytes")
    found = sniff(head)
    if found == "ID3":
        found = "MP3"
    if found and found != wanted:
        raise BadRecording(f"wrong suffix: named {suffix}, but it contains {found}; rename it")
    if found is None and wanted != "MP3":
        raise BadRecording(f"not audio, or its beginning is damaged: named {suffix}, but it starts with {head[:4]!r}")
    return wanted


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Suppress the output of libmpg123: it prints "part2_3_length too large" many times for files it decodes well."""
    sys.stderr.flush()
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _check_xing(file: IO[bytes]) -> bool:
    """Return whether the first frame of an MP3 has the number of frames; without it the length is only an estimate.

    Raises:
        BadRecording: another MP3 follows after the end given by the first frame; decoders stop there without an error.
    """
    head = file.read(10)
    start = 0
    if head.startswith(b"ID3") and len(head) == 10:
        start = 10 + tag_size(head)
    file.seek(start)
    first = file.read(4096)
    at = max(first.find(b"Xing"), first.find(b"Info"))
    flags = first[at + 7] if 0 <= at < len(first) - 16 else 0
    if flags & 3 == 3:
        file.seek(start + int.from_bytes(first[at + 12 : at + 16], "big"))
        if sniff(file.read(16)) in ("MP3", "ID3"):
            raise BadRecording(
                "several MP3 files joined byte by byte, only the first is readable; join them with ffmpeg"
            )
    file.seek(0)
    return bool(flags & 1)


def _check_pages(file: IO[bytes]) -> None:
    """Raise if an Ogg file does not end with a whole last page of the stream that it starts with.

    Raises:
        BadRecording: truncated, or several streams one after another, of which libsndfile reads only the first.
    """
    first = file.read(27)
    file.seek(0, os.SEEK_END)
    # A page has at most 65,307 bytes.
    file.seek(max(0, file.tell() - 66_000))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"OggS")
    last = tail[at:] if at >= 0 else b""
    is_whole = len(last) >= 27 and len(last) >= 27 + last[26] + sum(last[27 : 27 + last[26]])
    if not is_whole or not last[5] & 4:
        raise BadRecording("truncated: the last page is missing or incomplete")
    if first[14:18] != last[14:18]:
        raise BadRecording("several OGG streams joined, only the first is readable; join them with ffmpeg")


def _missing_wav_bytes(file: IO[bytes]) -> int:
    """Return how many bytes of a WAV's data chunk are missing; 0 if the length in its header was never filled in."""
    size = os.fstat(file.fileno()).st_size
    file.seek(12)
    missing = 0
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            # In a file written to a pipe, the length is the maximum or zero.
            unknown = length >= 0xFFFFF000 or length == 0
            missing = 0 if unknown else max(0, file.tell() + length - size)
            break
        file.seek(length + length % 2, os.SEEK_CUR)
    file.seek(0)
    return missing


@dataclass
class Recording:
    """An open recording: the facts in its header, and its PCM, which can be read once.

    Attributes:
        kind: "MP3", "FLAC" ...
        rate_hz: sample rate of the file.
        channels: number of channels in the file.
        seconds: length according to the file's header, None if it has none.
    """

    kind: str
    rate_hz: int
    channels: int
    seconds: float | None
    _blocks: Iterator[np.ndarray]
    _gain: float
    _meter: PcmMeter = field(default_factory=PcmMeter)

    def pcm_blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording as int16 PCM at 8 kHz, in order.

        Raises:
            BadRecording: damaged, truncated, empty, silent, shorter than a second, or with NaN or infinite values.
                Don't use the blocks yielded before it either.
        """
        scale = np.float32(32768 * self._gain)
        resampler = None
        if self.rate_hz != SAMPLE_RATE_HZ:
            resampler = soxr.ResampleStream(self.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        for mono in self._blocks:
            resampled = resampler.resample_chunk(mono) if resampler else mono
            if len(resampled):
                yield self._round(resampled * scale)
        if resampler and len(tail := resampler.resample_chunk(np.empty(0, np.float32), last=True)):
            yield self._round(tail * scale)
        self._check_all()

    def _round(self, values: np.ndarray) -> np.ndarray:
        self._meter.add(values)
        np.rint(values, out=values)
        return np.clip(values, -32768, 32767, out=values).astype(np.int16)

    def _check_all(self) -> None:
        facts = self.facts()
        if self.seconds and facts.seconds < self.seconds - TRUNCATED_SECONDS:
            raise BadRecording(f"truncated: {facts.seconds:.1f} s of the {self.seconds:.1f} s in its header")
        if not facts.seconds:
            raise BadRecording("empty: it contains no audio")
        if facts.seconds < MIN_SECONDS:
            raise BadRecording(f"too short: {facts.seconds:.2f} s, expected at least {MIN_SECONDS:g} s")
        if facts.peak_dbfs < SILENT_PEAK_DBFS:
            raise BadRecording(f"silent: its peak is {facts.peak_dbfs:g} dB of full scale")

    def facts(self) -> PcmFacts:
        """Return the facts of the PCM read so far."""
        return self._meter.facts()


@contextmanager
def open_recording(path: Path, gain_db: float = 0.0) -> Iterator[Recording]:
    """Open a recording.

    Args:
        path: a file with one of the suffixes in `KINDS`.
        gain_db: gain in dB, applied before rounding to int16.

    Raises:
        BadRecording: not readable, empty, not audio, truncated according to its header, or with the wrong suffix.
    """
    try:
        # Unbuffered, because libsndfile reads from the current offset of the descriptor.
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise BadRecording(f"unreadable: {error.strerror}") from None
    gain = 10 ** (gain_db / 20)
    with file:
        kind = _check_kind(path, file)
        if kind == "WAV" and (missing := _missing_wav_bytes(file)):
            raise BadRecording(f"truncated: {missing:,} bytes are missing according to its header")
        if kind == "OGG":
            _check_pages(file)
        if kind in ("MP4", "AAC"):
            with _open_av(file, kind, gain) as recording:
                yield recording
            return
        length_is_known = kind != "MP3" or _check_xing(file)
        try:
            with _quiet_library():
                # By descriptor, because soundfile can't open names that are not UTF-8.
                sound = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise BadRecording(f"not audio, or its beginning is damaged: {_why(error)}") from None
        with sound:
            # A FLAC file written to a pipe has no length in its header; libsndfile can't read it to the end.
            if sound.frames >= 1 << 62:
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                with _open_av(file, kind, gain) as recording:
                    yield recording
                return
            seconds = sound.frames / sound.samplerate if length_is_known else None
            yield Recording(kind, sound.samplerate, sound.channels, seconds, _soundfile_blocks(sound), gain)


def _why(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).strip().rstrip(".") or f"libsndfile error {error.code}"


def _mix(block_NC: np.ndarray) -> np.ndarray:
    """Return the mean of the channels. numpy's mean along a short axis would take five times as long as this loop."""
    if block_NC.shape[1] == 1:
        return np.ascontiguousarray(block_NC[:, 0])
    mono = block_NC[:, 0] + block_NC[:, 1]
    for c in range(2, block_NC.shape[1]):
        mono += block_NC[:, c]
    mono /= block_NC.shape[1]
    return mono


def _soundfile_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    is_float = sound.subtype in ("FLOAT", "DOUBLE")
    done = 0
    buffer = np.empty((BLOCK_VALUES, sound.channels), np.float32)
    while True:
        try:
            with _quiet_library():
                block = sound.read(dtype="float32", always_2d=True, out=buffer)
        except soundfile.LibsndfileError as error:
            raise BadRecording(f"damaged or truncated after {done / sound.samplerate:.1f} s: {_why(error)}") from None
        if not len(block):
            return
        if is_float and not np.isfinite(block).all():
            raise BadRecording(f"NaN or infinite values after {done / sound.samplerate:.1f} s")
        done += len(block)
        yield _mix(block)


@contextmanager
def _open_av(file: IO[bytes], kind: str, gain: float) -> Iterator[Recording]:
    # Imported here: FFmpeg takes 40 MB of memory, and few formats need it.
    try:
        import av
    except ImportError:
        raise BadRecording("M4B, MP4 and AAC need PyAV: pip install -e '.[preprocess]' in the clone") from None

    try:
        container = av.open(file)
    except (av.FFmpegError, ValueError) as error:
        raise BadRecording(f"truncated or not audio: {_av_why(error)}") from None
    with container:
        if not container.streams.audio:
            raise BadRecording("not audio: it has no audio track")
        stream = container.streams.audio[0]
        # Raw AAC has no header: its length would be a guess from the bit rate.
        seconds = None
        if kind == "MP4" and stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        yield Recording(kind, stream.rate, stream.channels, seconds, _av_blocks(container, stream), gain)


def _av_why(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error).split(":")[0])


def _av_blocks(container: Any, stream: Any) -> Iterator[np.ndarray]:
    import av

    planar = av.AudioResampler(format="fltp")
    waiting: list[np.ndarray] = []
    num_waiting = done = 0
    try:
        for frame in container.decode(stream):
            if frame.sample_rate != stream.rate:
                raise BadRecording(f"its sample rate changes after {done / stream.rate:.1f} s")
            for converted in planar.resample(frame):
                mono = _mix(converted.to_ndarray().T)
                waiting.append(mono)
                num_waiting += len(mono)
                done += len(mono)
            if num_waiting >= BLOCK_VALUES:
                yield np.concatenate(waiting)
                waiting, num_waiting = [], 0
    except av.FFmpegError as error:
        raise BadRecording(f"damaged or truncated after {done / stream.rate:.1f} s: {_av_why(error)}") from None
    if waiting:
        yield np.concatenate(waiting)
