"""A recording's pcm -> chunks -> packets.

The encoder is what takes the time, so a recording is cut into chunks that can be encoded anywhere, in any order. Cuts
lie at multiples of the chunk length and never depend on how many workers there are; before each chunk comes the pcm of
`mode.warmup_frames` frames, whose packets are thrown away. In the modes whose encoding is local, the packets are those
of one encoder that read the recording from its beginning.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import Mode


@dataclass(frozen=True)
class Chunk:
    """One chunk of a recording.

    Attributes:
        index: counted through the recording from 0.
        warmup_frames: how many frames at its beginning belong to the chunk before.
        pcm: int16 (N,) at 8 kHz, a whole number of frames.
    """

    index: int
    warmup_frames: int
    pcm: np.ndarray


def cut_chunks(blocks: Iterable[np.ndarray], mode: Mode, chunk_frames: int) -> Iterator[Chunk]:
    """Yield the chunks of pcm that comes in blocks of any size.

    Args:
        blocks: int16 pcm at 8 kHz, in order.
        chunk_frames: frames a chunk, warm-up not counted; the last chunk has what is left. What is left over after
            the last whole frame is dropped, as c2enc does.
    """
    step = mode.pcm_per_frame
    index = warmup = 0
    buffer = np.empty(chunk_frames * step, np.int16)
    filled = 0
    for block in blocks:
        while len(block):
            taken = min(len(block), len(buffer) - filled)
            buffer[filled : filled + taken] = block[:taken]
            filled += taken
            block = block[taken:]
            if filled == len(buffer):
                yield Chunk(index, warmup, buffer)
                kept = min(mode.warmup_frames, len(buffer) // step)
                # A new one: whoever took the chunk may still be reading the old.
                following = np.empty((kept + chunk_frames) * step, np.int16)
                following[: kept * step] = buffer[len(buffer) - kept * step :]
                buffer, filled, warmup, index = following, kept * step, kept, index + 1
    whole = filled // step
    if whole > warmup:
        yield Chunk(index, warmup, buffer[: whole * step])


def encode_chunk(pcm: np.ndarray, warmup_frames: int, mode: Mode) -> bytes:
    """Return the packets of a chunk's pcm, those of its warm-up thrown away."""
    return encode_pcm(pcm, mode)[warmup_frames * mode.packet_bytes :]


def encode_recording(blocks: Iterable[np.ndarray], mode: Mode, chunk_frames: int) -> bytes:
    """Return the packets of a whole recording, as the preprocessing job makes them, in this process."""
    chunks = cut_chunks(blocks, mode, chunk_frames)
    return b"".join(encode_chunk(chunk.pcm, chunk.warmup_frames, mode) for chunk in chunks)
