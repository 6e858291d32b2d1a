"""The Ray tasks of preprocessing, and the messages that they send to the driver.

1. `decode_in_ray`, one task per recording, decodes it once and yields messages: `Opened`; `ChunkHeader`, each followed
   by the chunk's pcm; `Decoded`. Recordings that are Codec 2 already yield `Packets` instead of chunks.
2. `encode_in_ray`, one task per chunk, returns its packets.

A recording that can't be used ends with `Failed`; a full disk, which stops the whole job, with `DiskFull`.
"""

import errno
import hashlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from babble.codec.codec2 import decode_packets, parse_c2, parse_c2cb
from babble.codec.frames import Mode, pack_packets
from jobs.preprocess.staging import Staged
from preprocessing.audio import MIN_SECONDS, open_recording
from preprocessing.encode import Chunk, Encoding, cut_chunks, encode_chunk
from preprocessing.kinds import BadRecording, sniff
from preprocessing.sources import Source, open_source

# What the operating system reports for a full disk and for a full quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Opened:
    """A recording can be opened: the sha256 of its file, and its length, None if the header does not give it."""

    sha256: str
    seconds: float | None


@dataclass(frozen=True)
class ChunkHeader:
    """The next object of the stream is the int16 pcm (N,) of this chunk, `warmup_frames` + `frames` frames long.

    The pcm is an object of its own so that an encoder can take it from the node where it is; the driver never reads it.
    """

    index: int
    first_frame: int
    warmup_frames: int
    frames: int


@dataclass(frozen=True)
class Packets:
    """All packets of a recording that is Codec 2 already, once per encoding."""

    packets: list[bytes]


@dataclass(frozen=True)
class Decoded:
    """The recording was read to its end.

    Attributes:
        facts: about the file and its pcm, for the manifest; None if an earlier run has staged the whole recording.
    """

    facts: dict[str, Any] | None


@dataclass(frozen=True)
class Failed:
    """The recording can't be used."""

    cause: str


@dataclass(frozen=True)
class DiskFull:
    """The disk is full; what was being written."""

    what: str


Message = Opened | ChunkHeader | Packets | Decoded | Failed | DiskFull


def decode_recording(
    source: Source,
    scratch: Path,
    mode: Mode,
    encodings: Sequence[Encoding],
    gain_db: float,
    chunk_frames: int,
    staged: Mapping[str, Staged],
) -> Iterator[Message | np.ndarray]:
    """Yield a recording as messages, each `ChunkHeader` followed by the chunk's pcm.

    Args:
        source: the recording.
        scratch: folder for unpacking a zip's member.
        mode: Codec 2 mode.
        encodings: how a recording is encoded.
        gain_db: gain before the pcm is rounded to int16, in dB.
        chunk_frames: frames per chunk.
        staged: what earlier runs have staged, by the sha256 of the recording's file.
    """
    try:
        with open_source(source, scratch) as path:
            yield from _decode_file(source, path, mode, encodings, gain_db, chunk_frames, staged)
    except BadRecording as bad:
        yield Failed(str(bad))
    except OSError as error:
        if error.errno in DISK_FULL:
            yield DiskFull(f"{error.strerror} while unpacking {source.file}")
        else:
            yield Failed(f"unreadable: {error.strerror or error}")
    except Exception as error:  # An unforeseen error in one recording must not stop the others.
        yield Failed(f"can't be decoded: {type(error).__name__}: {error}")


def _decode_file(
    source: Source,
    path: Path,
    mode: Mode,
    encodings: Sequence[Encoding],
    gain_db: float,
    chunk_frames: int,
    staged: Mapping[str, Staged],
) -> Iterator[Message | np.ndarray]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    before = staged.get(sha256, Staged())
    if before.is_whole:
        yield Opened(sha256, None)
        yield Decoded(None)
    elif source.is_encoded:
        packets = _read_packets(path, source, mode)
        yield Opened(sha256, len(packets) // mode.packet_bytes / mode.frames_per_second)
        yield Packets([packets, *_encode_again(packets, mode, encodings[1:])])
        yield Decoded({"kind": "Codec 2"})
    else:
        with open_recording(path, gain_db) as recording:
            yield Opened(sha256, recording.seconds)
            for chunk in cut_chunks(recording.pcm_blocks(), mode, chunk_frames):
                if chunk.index not in before.chunks:
                    frames = len(chunk.pcm) // mode.pcm_per_frame - chunk.warmup_frames
                    yield ChunkHeader(chunk.index, chunk.first_frame, chunk.warmup_frames, frames)
                    yield chunk.pcm
            about = {"kind": recording.kind, "rate_hz": recording.rate_hz, "channels": recording.channels}
            warnings = {"warnings": recording.warnings} if recording.warnings else {}
            yield Decoded(about | asdict(recording.facts()) | warnings)


def _read_packets(path: Path, source: Source, mode: Mode) -> bytes:
    data = path.read_bytes()
    if not data:
        raise BadRecording("empty: the file has no bytes")
    try:
        if source.suffix == ".c2cb" and sniff(data[:16]) != "Codec 2":
            packets = pack_packets(parse_c2cb(data, mode, "read as .c2cb"), mode)
            found = mode
        else:
            packets, found = parse_c2(data, "read as .c2")
    except ValueError as error:
        raise BadRecording(str(error)) from None
    if found != mode:
        raise BadRecording(f"encoded in mode {found.name}, expected mode {mode.name}; preprocess it to another --out")
    seconds = len(packets) / mode.packet_bytes / mode.frames_per_second
    if seconds < MIN_SECONDS:
        raise BadRecording(f"too short: {seconds:.2f} s, expected at least {MIN_SECONDS:g} s")
    if packets == packets[: mode.packet_bytes] * (len(packets) // mode.packet_bytes):
        raise BadRecording("silent: all frames are the same")
    return packets


def _encode_again(packets: bytes, mode: Mode, encodings: Sequence[Encoding]) -> list[bytes]:
    """Return packets, decoded and encoded again."""
    if not encodings:
        return []
    # In a process of its own: decoded PCM depends on what the process has decoded before.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        pcm = fresh.submit(decode_packets, packets, mode).result()
    return encode_chunk(Chunk(0, 0, 0, pcm), mode, encodings)


def decode_in_ray(*args: Any) -> Iterator[Message | np.ndarray]:
    """Run `decode_recording` as a Ray task."""
    _ignore_ctrl_c()
    yield from decode_recording(*args)


def encode_in_ray(pcm: np.ndarray, header: ChunkHeader, mode: Mode, encodings: Sequence[Encoding]) -> list[bytes]:
    """Run `encode_chunk` as a Ray task."""
    _ignore_ctrl_c()
    return encode_chunk(Chunk(header.index, header.first_frame, header.warmup_frames, pcm), mode, encodings)


def _ignore_ctrl_c() -> None:
    # A terminal sends it to the workers too. The driver stops them; an interrupted worker would only print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
