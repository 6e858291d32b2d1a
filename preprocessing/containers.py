"""A recording's file -> decoded audio in blocks, with PyAV (FFmpeg), to the last byte of the file.

    with open_audio(file, "MP3") as audio:
        for block in audio.blocks(): ...

FFmpeg decodes packet by packet and continues after damage, tags and zeros, so a file is read to its end whatever its
headers say about its length. The container's format is that of the file's first bytes: FFmpeg neither guesses it nor
opens another file.

At the end the decoded length is compared with the length in the header, the length of the packets that gave no audio is
looked at, and the bytes of all packets are compared with those of the file. A difference is a `BadRecording` or a
warning.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, Any

import av
import numpy as np

from preprocessing.kinds import BadRecording
from preprocessing.lengths import check_mp4_boxes, find_mp3_length, inspect_ogg, inspect_wav

# Not a setting: resampling gives the same values only in blocks of the same size.
BLOCK_VALUES = 1 << 16
# A recording that is shorter than its header says by more than this is truncated. Encoders pad by a few thousand
# values, and decoders remove them.
TOLERANCE_SECONDS = 0.5
# Packets that can't be decoded: more than the first length together gives a warning, more than the second is refused.
UNNOTICED_SECONDS, LOST_SECONDS = 0.1, 0.3
# A container's own bytes, its index for example, are at most this share of the file.
CONTAINER_SHARE = 0.1
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 768_000

_FORMATS = {"MP3": "mp3", "FLAC": "flac", "WAV": "wav", "OGG": "ogg", "MP4": "mov", "AAC": "aac"}
# FFmpeg takes bytes that are no audio for a part of the packet before them, but not in these containers.
_COUNTED = ("OGG", "MP4")
# By convention of WAV, files with so many channels and no names for them are 5.1 and 7.1.
_SURROUND = (6, 8)


@dataclass(frozen=True)
class Block:
    """Consecutive audio of one sample rate.

    Attributes:
        rate_hz: sample rate.
        values_CN: float32 (C, N), C = 1 or 2, with full scale at 1. More than two channels are mixed to one.
    """

    rate_hz: int
    values_CN: np.ndarray


class _Queue:
    """Collects decoded frames of one format, and gives them as blocks."""

    def __init__(self, frame: Any) -> None:
        layout = frame.layout
        self.rate_hz, self.channels = frame.sample_rate, layout.nb_channels
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise BadRecording(f"unusable sample rate: {self.rate_hz} Hz")
        # FFmpeg knows how to mix 5.1 and the like; it would drop the third of three channels without names.
        is_surround = layout.nb_channels in _SURROUND or (
            layout.nb_channels > 2 and not layout.name.endswith(" channels")
        )
        # To 16 bits, because FFmpeg divides by the sum of the weights for integers only.
        self._converter = av.AudioResampler("s16", "mono") if is_surround else av.AudioResampler("fltp", layout)
        self._needs_converter = is_surround or frame.format.name != "fltp"
        self.frames = av.AudioFifo()

    def take(self, num_values: int) -> Iterator[Block]:
        """Yield all blocks of this size; with 0, all that is left as one block."""
        while self.frames.samples and self.frames.samples >= num_values:
            frame = self.frames.read(num_values, partial=not num_values)
            yield Block(self.rate_hz, self._convert(frame))

    def _convert(self, frame: Any) -> np.ndarray:
        if self._needs_converter:
            (frame,) = self._converter.resample(frame)
        values_CN: np.ndarray = frame.to_ndarray()
        if values_CN.dtype == np.int16:
            return values_CN.astype(np.float32) / 32768
        return values_CN if len(values_CN) <= 2 else values_CN.mean(axis=0, keepdims=True)


@dataclass
class Audio:
    """An open file, whose audio can be read once.

    Attributes:
        kind: "MP3", "FLAC" ...
        seconds: length according to the file's header, of an MP3 perhaps an estimate; None if there is none.
        rate_hz: sample rate according to the header, and of the first block once that is read.
        channels: number of channels, likewise.
        is_float: whether the samples are stored as floats, which may exceed full scale.
        warnings: differences that are no reason to refuse the recording.
    """

    kind: str
    seconds: float | None
    rate_hz: int
    channels: int
    is_float: bool
    _file: IO[bytes]
    _container: Any
    _next_parts: list[Any]
    # Of an Ogg file: its bytes that are not those of audio packets.
    _overhead_bytes: int | None
    warnings: list[str] = field(default_factory=list)
    _decoded_seconds: float = 0.0
    _lost_seconds: float = 0.0
    _packet_bytes: int = 0
    _first_byte: int | None = None
    _is_cut: bool = False

    def blocks(self) -> Iterator[Block]:
        """Yield the audio in blocks of `BLOCK_VALUES` values; the last one, and those before a new rate, are shorter.

        Raises:
            BadRecording: damaged or truncated by more than `TOLERANCE_SECONDS`, or with an unusable sample rate.
        """
        for block in self._decode():
            self._decoded_seconds += block.values_CN.shape[1] / block.rate_hz
            yield block
        self._check_length()

    def _decode(self) -> Iterator[Block]:
        """Yield all blocks. The inner loops are short, because an hour of speech has 140,000 packets."""
        queue: _Queue | None = None
        is_inspected = self.kind in (*_COUNTED, "AAC")
        for container in self._containers():
            stream = container.streams.audio[0]
            decoder = stream.codec_context
            try:
                for number, packet in enumerate(container.demux(stream)):
                    if is_inspected or self._first_byte is None:
                        self._inspect(packet)
                    for frame in self._decode_packet(packet, number):
                        # PyAV's queue checks the rate and the kind of values; another number of channels crashes it.
                        if queue is None or queue.channels != decoder.channels or not _add(queue.frames, frame):
                            if queue is None:
                                self.rate_hz, self.channels = frame.sample_rate, frame.layout.nb_channels
                            else:
                                yield from queue.take(BLOCK_VALUES)
                                yield from queue.take(0)
                            queue = _Queue(frame)
                            _add(queue.frames, frame)
                    if queue is not None and queue.frames.samples >= BLOCK_VALUES:
                        yield from queue.take(BLOCK_VALUES)
            except av.FFmpegError as error:
                where = f"{self._decoded_seconds:.1f} s"
                raise BadRecording(f"damaged or truncated after {where}: {explain(error)}") from None
        if queue is not None:
            yield from queue.take(0)

    def _containers(self) -> Iterator[Any]:
        """Yield the container, and those of the other parts of a chained Ogg file."""
        yield self._container
        for part in self._next_parts:
            with _open_container(part, self.kind, {}) as container:
                yield container

    def _inspect(self, packet: Any) -> None:
        if self._first_byte is None:
            self._first_byte = packet.pos or 0
        self._packet_bytes += packet.size
        if self.kind == "AAC" and packet.size >= 6:
            # The length of a packet is in its own header.
            self._is_cut = packet.size < (int.from_bytes(bytes(packet)[3:6], "big") >> 5) & 0x1FFF

    def _decode_packet(self, packet: Any, number: int) -> list[Any]:
        try:
            if frames := packet.decode():
                return frames
        except av.FFmpegError:
            pass
        # The first packet only prepares some decoders; where MP3s are joined, the header of each is a packet.
        is_header = number == 0 or (self.kind == "MP3" and re.search(b"Xing|Info", bytes(packet)))
        if packet.duration and packet.time_base and not is_header:
            self._lost_seconds += float(packet.duration * packet.time_base)
        return []

    def _check_length(self) -> None:
        decoded, header = self._decoded_seconds, self.seconds
        if self.kind == "MP3" and self.rate_hz:
            header = find_mp3_length(self._file, self._first_byte or 0, self.rate_hz)
        if header and decoded < header - TOLERANCE_SECONDS:
            raise BadRecording(f"truncated: {decoded:.1f} s of the {header:.1f} s in its header")
        if self._is_cut:
            raise BadRecording(f"truncated after {decoded:.1f} s: its last packet is incomplete")
        if self._lost_seconds > LOST_SECONDS:
            raise BadRecording(f"damaged: {self._lost_seconds:.1f} s of it can't be decoded, {decoded:.1f} s can")
        if self._lost_seconds > UNNOTICED_SECONDS:
            self.warnings.append(f"damaged: {self._lost_seconds:.2f} s of it can't be decoded and are left out")
        # Other kinds have values before and after the audio, which decoders remove or not.
        if header and self.kind == "FLAC" and decoded < header - 0.01:
            self.warnings.append(
                f"damaged: {header - decoded:.2f} s of {header:.1f} s can't be decoded and are left out"
            )
        if self.kind in _COUNTED and len(self._container.streams) == 1:
            self._check_bytes(decoded)

    def _check_bytes(self, decoded: float) -> None:
        """Compare the bytes of all packets with those of the file."""
        file_bytes = os.fstat(self._file.fileno()).st_size
        others = file_bytes - self._packet_bytes
        if self._overhead_bytes is None:
            others -= self._first_byte or 0
            if others > CONTAINER_SHARE * file_bytes:
                self.warnings.append(f"{others:,} of its {file_bytes:,} bytes are no audio")
        elif self._packet_bytes:
            # FFmpeg drops pages of an Ogg file whose checksum is wrong.
            lost = (others - self._overhead_bytes) * decoded / self._packet_bytes
            if lost > TOLERANCE_SECONDS:
                raise BadRecording(f"damaged: about {lost:.1f} s of it can't be decoded, {decoded:.1f} s can")


@contextlib.contextmanager
def open_audio(file: IO[bytes], kind: str) -> Iterator[Audio]:
    """Open a file's first audio track.

    Args:
        file: the file, at its beginning.
        kind: what its first bytes are: "MP3", "FLAC", "WAV", "OGG", "MP4" or "AAC".

    Raises:
        BadRecording: truncated according to its header, not audio, or several files joined that FFmpeg can't read.
    """
    options: dict[str, str] = {}
    warnings: list[str] = []
    parts: list[Any] = [file]
    if kind == "WAV" and (length := inspect_wav(file)) != "known":
        options["ignore_length"] = "1"
        if length == "too small":
            warnings.append("its header gives too small a length; it was read to the end of the file")
    overhead = None
    if kind == "OGG":
        links, overhead = inspect_ogg(file)
        if len(links) > 1:
            parts = [_Part(file, start, end) for start, end in pairwise((*links, os.fstat(file.fileno()).st_size))]
    if kind == "MP4":
        check_mp4_boxes(file)
    with _open_container(parts[0], kind, options) as container:
        stream = container.streams.audio[0]
        if (num_tracks := len(container.streams.audio)) > 1:
            warnings.append(f"it has {num_tracks} audio tracks; the first was read")
        seconds = None
        # Raw AAC has no header: its length would be a guess from the bit rate.
        if kind != "AAC" and len(parts) == 1 and stream.duration and stream.time_base and not options:
            seconds = float(stream.duration * stream.time_base)
        is_float = stream.codec_context.name.startswith("pcm_f")
        yield Audio(
            kind, seconds, stream.rate or 0, stream.channels, is_float, file, container, parts[1:], overhead, warnings
        )


@contextlib.contextmanager
def _open_container(file: Any, kind: str, options: dict[str, str]) -> Iterator[Any]:
    # FFmpeg reads a file of its own twice as fast as one of Python.
    source = file if isinstance(file, _Part) else f"/dev/fd/{file.fileno()}"
    try:
        container = av.open(source, format=_FORMATS[kind], container_options=options)
    except (av.FFmpegError, ValueError) as error:
        raise BadRecording(f"not audio, or truncated: {explain(error)}") from None
    with container:
        if not container.streams.audio:
            raise BadRecording("not audio: it has no audio track")
        decoder = container.streams.audio[0].codec_context
        if decoder is None:
            raise BadRecording("no decoder for its audio track, or a damaged header")
        # One task decodes on one core.
        decoder.thread_count = 1
        if decoder.name == "flac":
            # Otherwise damaged frames are noise.
            decoder.options = {"err_detect": "crccheck+explode"}
        yield container


class _Part:
    """The bytes of a file from `start` to `end`, as a file."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._start, self._end, self._at = file, start, end, start

    def read(self, size: int) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = max(self._start, min(self._end, base + offset))
        return self.tell()

    def tell(self) -> int:
        return self._at - self._start


def _add(frames: Any, frame: Any) -> bool:
    """Add a frame to PyAV's queue, and return True; return False if it has another format."""
    # The queue would refuse a frame after a gap in the times.
    frame.pts = None
    try:
        frames.write(frame)
    except ValueError:
        return False
    return True


def explain(error: Exception) -> str:
    """Return the cause in an error of FFmpeg."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error).split(":")[0])
