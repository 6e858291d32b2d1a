"""PCM of a recording -> chunks -> packets.

Encoding takes most of the time of preprocessing, so a recording is cut into chunks that can be encoded anywhere, in any
order. Cuts are at multiples of the chunk length, whatever the number of workers. Each chunk starts with the PCM of
`mode.warmup_frames` frames of the previous chunk, whose packets are discarded. In modes with local encoding, the
packets are those of one encoder that reads the whole recording.

The same speech encoded from a fraction of a frame later gives other frames: for training they are like more speech.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import Mode


@dataclass(frozen=True)
class Chunk:
    """A fixed-length cut of a recording.

    Attributes:
        index: number of the chunk in the recording, from 0.
        warmup_frames: number of frames at its beginning that belong to the previous chunk.
        pcm: int16 (N,) at 8 kHz, a whole number of frames.
    """

    index: int
    warmup_frames: int
    pcm: np.ndarray


def cut_chunks(blocks: Iterable[np.ndarray], mode: Mode, chunk_frames: int) -> Iterator[Chunk]:
    """Yield the chunks of PCM that comes in blocks of any size.

    Args:
        blocks: int16 PCM at 8 kHz, in order.
        chunk_frames: frames per chunk without warm-up; the last chunk is shorter. A remainder shorter than a frame is
            dropped, as by c2enc.
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
                # A new buffer: the caller may still be using the previous chunk.
                following = np.empty((kept + chunk_frames) * step, np.int16)
                following[: kept * step] = buffer[len(buffer) - kept * step :]
                buffer, filled, warmup, index = following, kept * step, kept, index + 1
    whole = filled // step
    if whole > warmup:
        yield Chunk(index, warmup, buffer[: whole * step])


def encode_chunk(pcm: np.ndarray, warmup_frames: int, mode: Mode, shifts: int = 1) -> list[bytes]:
    """Return the packets of a chunk's PCM, without those of its warm-up, once per shift.

    Args:
        pcm: int16 (N,) at 8 kHz, a whole number of frames.
        warmup_frames: number of frames at its beginning that belong to the previous chunk.
        mode: Codec 2 mode.
        shifts: how many times to encode. Encoding k of n starts k/n of a frame earlier than encoding 0. Nothing comes
            before the first chunk of a recording: there encodings 1 to n - 1 start with the second frame, so they have
            one frame less, and frame i starts (1 - k/n) of a frame after frame i of encoding 0.
    """
    step = mode.pcm_per_frame
    packets = [encode_pcm(pcm, mode)[warmup_frames * mode.packet_bytes :]]
    for k in range(1, shifts):
        shifted = encode_pcm(pcm[step - step * k // shifts :], mode)
        packets.append(shifted[max(0, warmup_frames - 1) * mode.packet_bytes :])
    return packets


def encode_recording(blocks: Iterable[np.ndarray], mode: Mode, chunk_frames: int) -> bytes:
    """Return the packets of a whole recording, encoded in this process, equal to those of the preprocessing job."""
    chunks = cut_chunks(blocks, mode, chunk_frames)
    return b"".join(encode_chunk(chunk.pcm, chunk.warmup_frames, mode)[0] for chunk in chunks)
