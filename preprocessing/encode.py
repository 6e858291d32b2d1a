"""A recording's pcm -> pieces -> packets.

The encoder is what takes the time, so a recording is cut into pieces that can be encoded anywhere, in any order. Cuts
lie at multiples of the piece length and never depend on how many workers there are; before each piece comes the pcm of
`mode.warmup_frames` frames, whose packets are thrown away. In the modes whose encoding is local, the packets are those
of one encoder that read the recording from its beginning.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import Mode


@dataclass(frozen=True)
class Piece:
    """One piece of a recording.

    Attributes:
        index: counted through the recording from 0.
        warmup_frames: how many frames at its beginning belong to the piece before.
        pcm: int16 (N,) at 8 kHz, a whole number of frames.
    """

    index: int
    warmup_frames: int
    pcm: np.ndarray


def cut_pieces(blocks: Iterable[np.ndarray], mode: Mode, piece_frames: int) -> Iterator[Piece]:
    """Yield the pieces of pcm that comes in blocks of any size.

    Args:
        blocks: int16 pcm at 8 kHz, in order.
        piece_frames: frames a piece, warm-up not counted; the last piece has what is left. What is left over after
            the last whole frame is dropped, as c2enc does.
    """
    step = mode.pcm_per_frame
    index = warmup = 0
    buffer = np.empty(piece_frames * step, np.int16)
    filled = 0
    for block in blocks:
        while len(block):
            taken = min(len(block), len(buffer) - filled)
            buffer[filled : filled + taken] = block[:taken]
            filled += taken
            block = block[taken:]
            if filled == len(buffer):
                yield Piece(index, warmup, buffer)
                kept = min(mode.warmup_frames, len(buffer) // step)
                # A new one: whoever took the piece may still be reading the old.
                following = np.empty((kept + piece_frames) * step, np.int16)
                following[: kept * step] = buffer[len(buffer) - kept * step :]
                buffer, filled, warmup, index = following, kept * step, kept, index + 1
    whole = filled // step
    if whole > warmup:
        yield Piece(index, warmup, buffer[: whole * step])


def encode_piece(pcm: np.ndarray, warmup_frames: int, mode: Mode) -> bytes:
    """Return the packets of a piece's pcm, those of its warm-up thrown away."""
    return encode_pcm(pcm, mode)[warmup_frames * mode.packet_bytes :]


def encode_recording(blocks: Iterable[np.ndarray], mode: Mode, piece_frames: int) -> bytes:
    """Return the packets of a whole recording, as the preprocessing job makes them, in this process."""
    pieces = cut_pieces(blocks, mode, piece_frames)
    return b"".join(encode_piece(piece.pcm, piece.warmup_frames, mode) for piece in pieces)
