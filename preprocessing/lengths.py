"""What a file's own structure says about its length, where FFmpeg does not check it: WAV, MP3, Ogg and MP4.

FFmpeg reads all of a file's audio. These functions find out whether the file has an end that it should not have.
"""

import mmap
import os
import re
from typing import IO, Literal

from preprocessing.kinds import BadRecording

# The length of a WAV that was written to a pipe is never filled in: zero, or about the maximum of 31 bits (sox,
# arecord) or of 32 bits (FFmpeg).
_PLACEHOLDERS = (range(1), range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000))
# Fewer bytes than these after the audio of a WAV are no audio, but a tag that another program has appended.
_TAG_BYTES = 4096
# The header of an Ogg page.
_PAGE = re.compile(rb"OggS\x00[\x00-\x07].{21}", re.DOTALL)
_JOINED = "several {} files joined byte by byte, only the first can be read; join them with ffmpeg"

WavLength = Literal["known", "unknown", "too small"]


def inspect_wav(file: IO[bytes]) -> WavLength:
    """Return whether the length in a WAV's header is known; seek back to the beginning.

    Returns:
        "unknown" if it was never filled in: the audio ends with the file. "too small" if audio follows after it: the
        length of a file above 4 GB was cut to 32 bits.

    Raises:
        BadRecording: truncated, or several WAVs joined.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    try:
        return _inspect_wav(file, file_bytes)
    finally:
        file.seek(0)


def _inspect_wav(file: IO[bytes], file_bytes: int) -> WavLength:
    at, length_64 = 12, None
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return "known"
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            break
        if name == b"ds64":
            length_64 = int.from_bytes(file.read(16)[8:], "little")
        at += 8 + length + length % 2
    is_placeholder = any(length in values for values in _PLACEHOLDERS)
    if length_64 is not None and length == 0xFFFF_FFFF:
        length, is_placeholder = length_64, length_64 == 0
    end = at + 8 + length
    if is_placeholder and (end > file_bytes or not length):
        return "unknown"
    if end > file_bytes:
        raise BadRecording(f"truncated: {end - file_bytes:,} bytes are missing according to its header")
    # Some programs omit the byte that makes the length even.
    if file_bytes - end < _TAG_BYTES or any(_has_chunks_only(file, end + pad, file_bytes) for pad in {length % 2, 0}):
        return "known"
    return "too small"


def _has_chunks_only(file: IO[bytes], at: int, file_bytes: int) -> bool:
    """Return whether whole chunks without audio follow up to the end of a WAV."""
    while at + 8 <= file_bytes:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] in (b"RIFF", b"RF64", b"data") and at + 8 + length <= file_bytes + 1:
            raise BadRecording(_JOINED.format("WAV"))
        if not head[:4].isascii() or not head[:4].decode().isprintable():
            return False
        at += 8 + length + length % 2
    return at - 1 <= file_bytes <= at + 8


def find_mp3_length(file: IO[bytes], first_byte: int, rate_hz: int) -> float | None:
    """Return the seconds in an MP3's Xing header, which is the frame before the first audio; None without one.

    FFmpeg gives an estimate instead if the file is larger than the header says, as joined ones are.

    Args:
        file: the file; its position is kept.
        first_byte: where its first packet starts.
        rate_hz: sample rate of the first packet.
    """
    position = file.tell()
    file.seek(max(0, first_byte - 4096))
    before = file.read(min(first_byte, 4096))
    file.seek(position)
    at = max(before.rfind(b"Xing"), before.rfind(b"Info"))
    if not 0 <= at < len(before) - 12 or not before[at + 7] & 1:
        return None
    # MPEG-1 has 1,152 values per frame, and the lower rates of MPEG-2 have half of them.
    return int.from_bytes(before[at + 8 : at + 12], "big") * (1152 if rate_hz >= 32000 else 576) / rate_hz


def inspect_ogg(file: IO[bytes]) -> tuple[list[int], int]:
    """Return where the parts of a chained Ogg file start, and how many of its bytes are not those of audio packets.

    Raises:
        BadRecording: truncated: it does not end with a whole last page.
    """
    _check_ogg_end(file)
    links, first_end, overhead = [0], 0, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in _PAGE.finditer(data):
            at, head = found.start(), found.group()
            lengths = data[at + 27 : at + 27 + head[26]]
            # The pages of headers, of metadata for example, have granule position zero.
            overhead += 27 + head[26] + (sum(lengths) if head[6:14] == bytes(8) else 0)
            if head[5] & 2:
                # The first pages of all streams of a part follow one another.
                if at not in (0, first_end):
                    links.append(at)
                first_end = at + 27 + head[26] + sum(lengths)
    return links, overhead


def _check_ogg_end(file: IO[bytes]) -> None:
    # A page has at most 65,307 bytes.
    file.seek(max(0, os.fstat(file.fileno()).st_size - 66_000))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"OggS")
    last = tail[at:] if at >= 0 else b""
    is_whole = len(last) >= 27 and len(last) >= 27 + last[26] + sum(last[27 : 27 + last[26]])
    if not is_whole or not last[5] & 4:
        raise BadRecording("truncated: the last page is missing or incomplete")


def check_mp4_boxes(file: IO[bytes]) -> None:
    """Raise if an MP4 has two indices, of which FFmpeg reads the first; seek back to the beginning.

    Raises:
        BadRecording: several MP4s joined.
    """
    file_bytes, at, indices = os.fstat(file.fileno()).st_size, 0, 0
    while at + 8 <= file_bytes:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            break
        indices += head[4:8] == b"moov"
        at += length
    file.seek(0)
    if indices > 1:
        raise BadRecording(_JOINED.format("MP4"))
