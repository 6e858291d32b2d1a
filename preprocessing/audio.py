"""A recording's file -> its pcm, block by block, and the cause where it has none.

In: the path of an MP3, FLAC, WAV, OGG, M4B or AAC file, of any rate and number of channels. Steps, for one block of
`BLOCK_VALUES` values a channel after another, so that 16 hours need no more memory than a minute:

1. look at the first bytes: what the name promises must be what is inside;
2. decode, once and in order, with soundfile, or PyAV for what soundfile does not read;
3. mix to mono, resample to 8 kHz with soxr, apply the gain, round to int16;
4. at the end compare what was decoded with what the file's own header promised.

Out: int16 pcm at 8 kHz, or `BadRecording`, whose message is the cause as it stands in the report.
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

# MP3 decodes to the same values only in blocks of one size: never a setting.
BLOCK_VALUES = 1 << 16
MIN_SECONDS = 1.0
# A recording that never gets louder than this is called silent: a thousandth of full scale.
SILENT_PEAK_DBFS = -60.0
# How much less than promised counts as truncated: encoders pad by a few thousand values and decoders trim them.
TRUNCATED_SECONDS = 0.5


class BadRecording(ValueError):
    """A recording that can't be used; the message is the cause, without the recording's name."""


def _check_kind(path: Path, file: IO[bytes]) -> str:
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise BadRecording(f"a file named {suffix or 'without an ending'} is not read; {', '.join(KINDS)} are")
    wanted = KINDS[suffix]
    head = read_head(file)
    if not head:
        raise BadRecording("empty: the file has no bytes")
    found = sniff(head)
    if found == "ID3":
        found = "MP3"
    if found and found != wanted:
        raise BadRecording(f"wrong extension: it is called {suffix}, but there is {found} inside; rename it")
    if found is None and wanted != "MP3":
        raise BadRecording(f"not audio, or damaged at its beginning: called {suffix}, but it opens with {head[:4]!r}")
    return wanted


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Hold back what libmpg123 prints: "part2_3_length too large" many times a file, though it decodes well."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_xing(file: IO[bytes]) -> bool:
    """Return whether an MP3's first frame tells how many follow; without it the length is only estimated.

    Raises:
        BadRecording: another MP3 follows behind the bytes that it tells of; decoders stop there without a word.
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
        behind = file.read(16)
        if sniff(behind) in ("MP3", "ID3"):
            raise BadRecording("several MP3s joined byte by byte: only the first would be read; join them with ffmpeg")
    file.seek(0)
    return bool(flags & 1)


def _check_pages(file: IO[bytes]) -> None:
    """Raise if an Ogg file does not end with a whole page that says it is the last, of the stream that it began with.

    Raises:
        BadRecording: truncated, or several streams one behind the other, of which libsndfile reads the first.
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
        raise BadRecording("truncated: its last page is missing or cut")
    if first[14:18] != last[14:18]:
        raise BadRecording("several OGG streams joined: only the first would be read; join them with ffmpeg")


def _missing_wav_bytes(file: IO[bytes]) -> int:
    """Return how many bytes a WAV's data chunk promises and the file lacks; 0 where its length was never filled in."""
    size = os.fstat(file.fileno()).st_size
    file.seek(12)
    missing = 0
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            # Written to a pipe, the length is the largest there is, or zero.
            unknown = length >= 0xFFFFF000 or length == 0
            missing = 0 if unknown else max(0, file.tell() + length - size)
            break
        file.seek(length + length % 2, os.SEEK_CUR)
    file.seek(0)
    return missing


@dataclass
class Recording:
    """An open recording: what its header says, and its pcm, which can be read once.

    Attributes:
        kind: "MP3", "FLAC" ...
        rate_hz: values a second and channel in the file.
        channels: channels in the file.
        seconds: the length that the file promises, None where it promises none.
    """

    kind: str
    rate_hz: int
    channels: int
    seconds: float | None
    _blocks: Iterator[np.ndarray]
    _gain: float
    _meter: PcmMeter = field(default_factory=PcmMeter)

    def pcm_blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording as int16 pcm at 8 kHz, in order.

        Raises:
            BadRecording: damaged, truncated, empty, silent, under a second, or with values that are no numbers. What
                was yielded before is then not to be used either.
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
            raise BadRecording(f"truncated: {facts.seconds:.1f} s of the {self.seconds:.1f} s that its header promises")
        if not facts.seconds:
            raise BadRecording("empty: there is no audio in it")
        if facts.seconds < MIN_SECONDS:
            raise BadRecording(f"too short: {facts.seconds:.2f} s, at least {MIN_SECONDS:g} s is needed")
        if facts.peak_dbfs < SILENT_PEAK_DBFS:
            raise BadRecording(f"silent: it never gets louder than {facts.peak_dbfs:g} dB of full scale")

    def facts(self) -> PcmFacts:
        """Return the facts of the pcm that was read so far."""
        return self._meter.facts()


@contextmanager
def open_recording(path: Path, gain_db: float = 0.0) -> Iterator[Recording]:
    """Give an open recording.

    Args:
        path: a file whose suffix is one of `KINDS`.
        gain_db: how much louder to make it before it is rounded to int16.

    Raises:
        BadRecording: not readable, empty, not audio, truncated as its header shows, or wrongly named.
    """
    try:
        # Unbuffered, as libsndfile reads on from wherever the descriptor stands.
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise BadRecording(f"unreadable: {error.strerror}") from None
    gain = 10 ** (gain_db / 20)
    with file:
        kind = _check_kind(path, file)
        if kind == "WAV" and (missing := _missing_wav_bytes(file)):
            raise BadRecording(f"truncated: {missing:,} bytes fewer than its header promises")
        if kind == "OGG":
            _check_pages(file)
        if kind in ("MP4", "AAC"):
            with _open_av(file, kind, gain) as recording:
                yield recording
            return
        length_is_known = kind != "MP3" or _check_xing(file)
        try:
            with _quiet_library():
                # By number: a name that is no UTF-8 is no hindrance then.
                sound = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise BadRecording(f"not audio, or damaged at its beginning: {_why(error)}") from None
        with sound:
            # FLAC written to a pipe does not know its length, which libsndfile can't read to the end.
            if sound.frames >= 1 << 62:
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                with _open_av(file, kind, gain) as recording:
                    yield recording
                return
            seconds = sound.frames / sound.samplerate if length_is_known else None
            yield Recording(kind, sound.samplerate, sound.channels, seconds, _soundfile_blocks(sound), gain)


def _why(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).strip().rstrip(".") or f"libsndfile's error {error.code}"


def _mix(block_NC: np.ndarray) -> np.ndarray:
    """Return the mean of the channels; a loop over them, as numpy's mean along a short axis takes five times longer."""
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
            raise BadRecording(f"values that are no numbers (NaN or infinite) after {done / sound.samplerate:.1f} s")
        done += len(block)
        yield _mix(block)


@contextmanager
def _open_av(file: IO[bytes], kind: str, gain: float) -> Iterator[Recording]:
    # Imported here: FFmpeg takes 40 MB of memory, and only these formats need it.
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
            raise BadRecording("not audio: there is no sound track in it")
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
                raise BadRecording(f"changes its rate after {done / stream.rate:.1f} s")
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
