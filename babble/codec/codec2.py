"""PCM <-> packets through pycodec2, and the files that hold packets or frames: .c2 and .c2cb.

    frames = unpack_packets(encode_pcm(pcm, mode), mode)
    pcm = decode_frames(frames, mode)

pycodec2 has traps without an error message. They are handled here, and no other module calls it:

- Given several frames, it encodes the first and fills the rest with zeros: one frame per call.
- It misreads a strided array: PCM is made contiguous first.
- A codec object holds the state of one stream and can't be pickled: `encode_pcm` and `decode_packets` make their own.
- Decoding twice in one process gives different PCM, because the library takes unvoiced phases from one global random
  generator: compare frames, never PCM.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pycodec2

from babble.codec.frames import MODES, TOKENS, Mode, check_levels, pack_packets, unpack_packets
from babble.files import write_bytes

C2_MAGIC = bytes.fromhex("c0dec2")
# The version that libcodec2 1.2 writes. c2enc of Codec 2 1.0 writes 1.0; c2dec reads either.
C2_VERSION = bytes([1, 2])
C2_HEADER_BYTES = 7
# Where a second file starts in joined ones. By chance, packets contain this in one of 10^14 places.
_JOINED_HEADER = re.compile(rb"\xc0\xde\xc2\x01[\x00-\x0f][\x00-\x0f]\x00", re.DOTALL)


def _open_codec(mode: Mode) -> pycodec2.Codec2:
    return pycodec2.Codec2(700 if mode.name == "700C" else int(mode.name))


def check_pcm(pcm: np.ndarray) -> np.ndarray:
    """Return PCM as a contiguous array.

    Raises:
        ValueError: not one-dimensional int16.
    """
    if pcm.ndim != 1 or pcm.dtype != np.int16:
        raise ValueError(
            f"PCM has shape {pcm.shape} and type {pcm.dtype}; Codec 2 reads one channel of int16 at 8 kHz."
        )
    return np.ascontiguousarray(pcm)


def encode_pcm(pcm: np.ndarray, mode: Mode) -> bytes:
    """Return the packets of PCM from a fresh encoder.

    Args:
        pcm: int16 (N,) at 8 kHz. A remainder shorter than a frame is dropped, as by c2enc.

    Raises:
        ValueError: PCM of another shape or type.
    """
    pcm = check_pcm(pcm)
    encode = _open_codec(mode).encode
    step = mode.pcm_per_frame
    return b"".join(encode(pcm[start : start + step]) for start in range(0, len(pcm) - step + 1, step))


class Decoder:
    """Decodes the packets of one stream; the decoder's state is carried from call to call."""

    def __init__(self, mode: Mode) -> None:
        self._codec = _open_codec(mode)
        self._packet_bytes = mode.packet_bytes

    def decode(self, packets: bytes) -> np.ndarray:
        """Return the PCM of whole packets, int16 (frames * pcm_per_frame,) at 8 kHz.

        Raises:
            ValueError: the length is not a whole number of packets.
        """
        if len(packets) % self._packet_bytes:
            raise ValueError(f"{len(packets)} bytes are not a whole number of packets of {self._packet_bytes} bytes.")
        step = self._packet_bytes
        pcm = [self._codec.decode(packets[start : start + step]) for start in range(0, len(packets), step)]
        return np.concatenate(pcm) if pcm else np.empty(0, np.int16)


def decode_packets(packets: bytes, mode: Mode) -> np.ndarray:
    """Return the PCM of packets from a fresh decoder, int16 (frames * pcm_per_frame,) at 8 kHz."""
    return Decoder(mode).decode(packets)


def decode_frames(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return the PCM of frames (T, F) from a fresh decoder, int16 (T * pcm_per_frame,) at 8 kHz."""
    return decode_packets(pack_packets(frames, mode), mode)


def silence_frame(mode: Mode) -> np.ndarray:
    """Return the frame of digital silence, (F,). Pad with it: the frame of zeros is a sound.

    It is the frame that a long silence settles to; a fresh encoder's first frame of silence is voiced.
    """
    pcm = np.zeros(mode.pcm_per_frame * (mode.warmup_frames + 1), np.int16)
    return unpack_packets(encode_pcm(pcm, mode), mode)[-1]


def c2_header(mode: Mode) -> bytes:
    """Return the seven bytes at the start of a .c2 file: magic, version, mode, flags (0: Gray coded)."""
    return C2_MAGIC + C2_VERSION + bytes([mode.header_id, 0])


def parse_c2(data: bytes, where: str) -> tuple[bytes, Mode]:
    """Return the packets and the mode of a .c2 file's bytes, or of several files joined byte by byte.

    Args:
        where: the name of the file in error messages.

    Raises:
        ValueError: no Codec 2 header, an unknown mode, files of two modes, or bytes that are not whole packets.

    Source: `struct c2_header` of Codec 2's src/c2file.h.
    """
    if len(data) < C2_HEADER_BYTES or not data.startswith(C2_MAGIC):
        raise ValueError(f"{where}: does not start with Codec 2's header (c0 de c2). Did c2enc write it as .bin?")
    header_id = data[5]
    modes = [mode for mode in (*MODES.values(), TOKENS) if mode.header_id == header_id]
    if not modes:
        raise ValueError(f"{where}: unknown mode number {header_id} in its header; known are {', '.join(MODES)}.")
    if data[6]:
        raise ValueError(
            f"{where}: its header has flags {data[6]:#x} (packets not Gray coded), which babble does not read."
        )
    mode = modes[0]
    starts = [0, *(found.start() for found in _JOINED_HEADER.finditer(data, C2_HEADER_BYTES))]
    parts = [data[start + C2_HEADER_BYTES : end] for start, end in pairwise([*starts, len(data)])]
    for start, part in zip(starts, parts, strict=True):
        if data[start + 5] != header_id:
            raise ValueError(f"{where}: several files joined, of mode numbers {header_id} and {data[start + 5]}.")
        if len(part) % mode.packet_bytes:
            raise ValueError(
                f"{where}: truncated: {len(part)} bytes are not a whole number of packets of {mode.packet_bytes} bytes."
            )
    return b"".join(parts), mode


def read_c2(path: Path) -> tuple[np.ndarray, Mode]:
    """Return the frames (T, F) and the mode of a .c2 file; raises as `parse_c2` does."""
    packets, mode = parse_c2(path.read_bytes(), str(path))
    return unpack_packets(packets, mode), mode


def write_c2(path: Path, frames: np.ndarray, mode: Mode) -> None:
    """Write frames (T, F) as a .c2 file that `c2dec` plays, whole or not at all."""
    write_bytes(path, c2_header(mode) + pack_packets(frames, mode))


def parse_c2cb(data: bytes, mode: Mode, where: str) -> np.ndarray:
    """Return the frames (T, F) of a corpus file of 2017: one byte per field, in natural binary, no header.

    Mode 1300 has 16 bytes per frame. Mode 3200 has 13, because its two voicing bits are one value, 2 * v0 + v1 (the
    published files contain only 0 and 1; the 2017 text calls it the voicing bit).

    Raises:
        ValueError: another mode, a length that is not a whole number of frames, or an illegal level.
    """
    if mode.name not in ("1300", "3200"):
        raise ValueError(f"{where}: .c2cb files have mode 1300 or 3200, not {mode.name}.")
    width = mode.num_fields if mode.name == "1300" else mode.num_fields - 1
    if len(data) % width:
        raise ValueError(f"{where}: truncated: {len(data)} bytes are not a whole number of {width}-byte frames.")
    bytes_TB = np.frombuffer(data, np.uint8).reshape(-1, width)
    if mode.name == "1300":
        frames = bytes_TB
    else:
        voicing = bytes_TB[:, :1]
        if voicing.max(initial=0) > 3:
            raise ValueError(f"{where}: voicing is {voicing.max()}, but the range of two voicing bits is 0 to 3.")
        frames = np.concatenate([voicing >> 1, voicing & 1, bytes_TB[:, 1:]], axis=1)
    check_levels(frames, mode, where)
    return frames


def read_c2cb(path: Path, mode: Mode) -> np.ndarray:
    """Return the frames (T, F) of a .c2cb file; raises as `parse_c2cb` does."""
    return parse_c2cb(path.read_bytes(), mode, str(path))
