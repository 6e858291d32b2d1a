"""PCM of a recording -> chunks -> packets.

Encoding takes most of the time of preprocessing, so a recording is cut into chunks that can be encoded anywhere, in any
order. Cuts are at multiples of the chunk length, whatever the number of workers. Each chunk starts with the PCM of
`mode.warmup_frames` frames of the previous chunk, whose packets are discarded. In modes with local encoding, the
packets are those of one encoder that reads the whole recording.

The same speech encoded from a fraction of a frame later, or played a little slower or faster, gives other frames: for
training they are like more speech.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import soxr

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import Mode


@dataclass(frozen=True)
class Chunk:
    """A fixed-length cut of a recording.

    Attributes:
        index: number of the chunk in the recording, from 0.
        first_frame: number of its first frame after the warm-up, in the recording.
        warmup_frames: number of frames at its beginning that belong to the previous chunk.
        pcm: int16 (N,) at 8 kHz, a whole number of frames.
    """

    index: int
    first_frame: int
    warmup_frames: int
    pcm: np.ndarray


@dataclass(frozen=True)
class Encoding:
    """One of several encodings of the same recording.

    Its frame j is the speech from `offset + j * speed` frames of the recording on, for `speed` frames.

    Attributes:
        speed: how much faster than the recording it is played, which raises the pitch by the same factor.
        offset: where its first frame begins, in frames of the recording.
        name: how it differs from the recording as it is, e.g. "speed 0.96, shift 1"; empty if it does not.
    """

    speed: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    name: str = ""

    def first_from(self, frame: int) -> int:
        """Return its first frame that begins at a frame of the recording or after it."""
        return max(0, math.ceil((frame - self.offset) / self.speed))

    def count_until(self, frame: int) -> int:
        """Return how many of its frames end before a frame of the recording begins, or just then."""
        return max(0, math.floor((frame - self.offset) / self.speed))


def list_encodings(shifts: int, speeds: Sequence[float]) -> list[Encoding]:
    """Return the recording as it is, then shifted; and the same at each other speed.

    Args:
        shifts: encodings per speed. Encoding k of n starts k/n of a frame earlier than encoding 0, as frame i starts
            (1 - k/n) of a frame after frame i of encoding 0: nothing comes before the beginning of a recording.
        speeds: 1 is that of the recording.

    Source of the speeds: Ko, Peddinti, Povey and Khudanpur 2015, "Audio augmentation for speech recognition".
    """
    encodings = []
    for speed in (1.0, *(speed for speed in speeds if speed != 1)):
        exact = Fraction(str(speed))
        for k in range(shifts):
            names = [f"speed {speed:g}"] * (speed != 1) + [f"shift {k}"] * (k > 0)
            offset = exact * (shifts - k) / shifts if k else Fraction(0)
            encodings.append(Encoding(exact, offset, ", ".join(names)))
    return encodings


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
                yield Chunk(index, index * chunk_frames, warmup, buffer)
                kept = min(mode.warmup_frames, len(buffer) // step)
                # A new buffer: the caller may still be using the previous chunk.
                following = np.empty((kept + chunk_frames) * step, np.int16)
                following[: kept * step] = buffer[len(buffer) - kept * step :]
                buffer, filled, warmup, index = following, kept * step, kept, index + 1
    whole = filled // step
    if whole > warmup:
        yield Chunk(index, index * chunk_frames, warmup, buffer[: whole * step])


def encode_chunk(chunk: Chunk, mode: Mode, encodings: Sequence[Encoding] = (Encoding(),)) -> list[bytes]:
    """Return the packets of a chunk, without those of its warm-up, once per encoding.

    A frame of another encoding that begins in one chunk and ends in the next belongs to the next.
    """
    step, begin = mode.pcm_per_frame, chunk.first_frame - chunk.warmup_frames
    end = begin + len(chunk.pcm) // step
    encoded = []
    for encoding in encodings:
        first, last = encoding.first_from(begin), encoding.count_until(end)
        start = math.ceil((encoding.offset + first * encoding.speed - begin) * step)
        packets = encode_pcm(_change_speed(chunk.pcm[start:], encoding.speed, (last - first) * step), mode)
        warmup = encoding.count_until(chunk.first_frame) - first
        encoded.append(packets[max(0, warmup) * mode.packet_bytes : (last - first) * mode.packet_bytes])
    return encoded


def _change_speed(pcm: np.ndarray, speed: Fraction, length: int) -> np.ndarray:
    """Return PCM played at another speed, of a given length."""
    if speed == 1:
        return pcm[:length]
    # The resampler may round the length down.
    played = soxr.resample(pcm, float(speed), 1.0)[:length]
    return np.pad(played, (0, length - len(played)), mode="edge")


def encode_recording(blocks: Iterable[np.ndarray], mode: Mode, chunk_frames: int) -> bytes:
    """Return the packets of a whole recording, encoded in this process, equal to those of the preprocessing job."""
    chunks = cut_chunks(blocks, mode, chunk_frames)
    return b"".join(encode_chunk(chunk, mode)[0] for chunk in chunks)
