"""Zips of recordings: their members with names as the file system would give them.

with open_zip(Path("book.zip")) as archive:
    for name, info in list_members(archive): ...
"""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What zipfile and the decompressors raise for a damaged, cut or encrypted zip, besides OSError.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError),
)
_UTF8_FLAG = 0x08  # in the high byte of a header's flags
_BYTES = "latin-1"


class _WithoutUtf8Flags(io.FileIO):
    """A zip whose headers do not promise that names are UTF-8, because zipfile opens no zip where that is not true."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = bytearray(super().read(-1 if size is None else size) or b"")
        if len(data) == 30 and data.startswith(b"PK\x03\x04"):  # the header in front of a member
            data[7] &= ~_UTF8_FLAG
        start = 0
        while data.startswith(b"PK\x01\x02", start) and start + 46 <= len(data):  # the directory, read in one go
            data[start + 9] &= ~_UTF8_FLAG
            start += 46 + sum(struct.unpack_from("<3H", data, start + 28))
        return bytes(data)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip to read.

    Raises:
        OSError, or one of `ZIP_ERRORS`: it can't be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError:
        with _WithoutUtf8Flags(path) as file, zipfile.ZipFile(file, metadata_encoding=_BYTES) as archive:
            yield archive
        return
    with archive:
        yield archive


def list_members(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """Return the files in a zip, in order of their names; bytes of a name that are not UTF-8 are surrogates."""

    def name(info: zipfile.ZipInfo) -> str:
        if getattr(archive, "metadata_encoding", None) == _BYTES:
            return info.filename.encode(_BYTES).decode("utf-8", "surrogateescape")
        return info.filename

    return sorted(
        ((name(info), info) for info in archive.infolist() if not info.is_dir()), key=lambda member: member[0]
    )


def explain_zip_error(error: Exception) -> str:
    """Return the cause of one of `ZIP_ERRORS` or of an OSError, in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, zipfile.BadZipFile) and "not a zip file" in str(error):
        return "it is cut or damaged, or not a zip: copy or download it again"
    return str(error) or type(error).__name__
