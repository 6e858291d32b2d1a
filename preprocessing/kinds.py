"""Which files are recordings: by their first bytes, and where these are unknown by their suffix.

Needs no audio library.
"""

from typing import IO

# Kind of audio by file suffix.
KINDS = {
    ".mp3": "MP3",
    ".flac": "FLAC",
    ".wav": "WAV",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".m4b": "MP4",
    ".m4a": "MP4",
    ".mp4": "MP4",
    ".aac": "AAC",
    ".mpga": "MP3",
}
# Recordings that are encoded already.
FRAME_SUFFIXES = (".c2", ".c2cb")
FRAME_KINDS = ("Codec 2", "C2CB")
SUFFIXES = (*KINDS, *FRAME_SUFFIXES)
# Audio that is not read here. It is reported, because ignoring it would lose speech unnoticed.
UNSUPPORTED_SUFFIXES = {".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".mka", ".ra", ".spx", ".wma", ".webm", ".wv"}


class BadRecording(ValueError):
    """A recording that can't be used; the message is the cause, without the recording's name."""


def sniff(head: bytes) -> str | None:
    """Return the kind of audio of a file by its first bytes (at least 12 of them), None if it is unknown.

    FLAC and AAC may start with an ID3 tag too: "ID3" means that the bytes after the tag decide.
    """
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head.startswith(b"OggS"):
        return "OGG"
    if head[4:8] == b"ftyp":
        return "MP4"
    if head.startswith(b"\xc0\xde\xc2"):
        return "Codec 2"
    if head.startswith(b"ID3"):
        return "ID3"
    if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        layer = head[1] >> 1 & 3
        if layer == 0 and head[1] & 0xF0 == 0xF0:
            return "AAC"
        if layer:
            return "MP3"
    return None


# Pictures in the container that MP4 has too.
_PICTURES = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


def kind_of(head: bytes, suffix: str) -> str | None:
    """Return the kind of a recording by its first bytes, else by its suffix; "ZIP" for a zip; None for all others.

    Args:
        head: first bytes of the file, at least 16, as `read_head` returns them. "ID3" counts as MP3.
        suffix: in lower case, with its dot; "" to go by the first bytes alone.
    """
    if suffix == ".zip" or (not suffix and head.startswith(b"PK\x03\x04")):
        return "ZIP"
    content = sniff(head)
    if content in ("MP3", "AAC", "ID3") and suffix not in KINDS and not _is_plausible(head):
        content = None
    if content == "MP4" and head[8:12] in _PICTURES:
        content = None
    # The bytes of a .c2cb are levels, which may look like the two bytes that an MP3 starts with.
    if suffix == ".c2cb" and content in (None, "MP3", "AAC"):
        return "C2CB"
    if content:
        return "MP3" if content == "ID3" else content
    return "Codec 2" if suffix == ".c2" else KINDS.get(suffix)


def _is_plausible(head: bytes) -> bool:
    """Return whether the first bytes are an MP3's or AAC's, although nothing in the name says so.

    A text may start with "ID3", and in UTF-16 with FF FE, which would be an MP3's Layer I.
    """
    if head.startswith(b"ID3"):
        return len(head) >= 10 and head[3] < 10 and max(head[6:10]) < 0x80
    return len(head) >= 3 and not (head[1] & 0x06 == 0x06 or head[1] & 0x18 == 0x08 or head[2] & 0xF0 == 0xF0)


def read_head(file: IO[bytes]) -> bytes:
    """Return the first bytes of a file's content, after an ID3 tag, and seek back to its beginning."""
    head = file.read(16)
    if head.startswith(b"ID3") and len(head) >= 10:
        file.seek(10 + tag_size(head))
        content = file.read(16)
        # Some writers pad after the tag; then only the tag is known, which is MP3's own.
        head = content if sniff(content) else head
    file.seek(0)
    return head


def tag_size(head: bytes) -> int:
    """Return the size of an ID3 tag without its header of ten bytes."""
    return head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
