"""Files, folders and zips -> the recordings in them, each with a name of its own.

A file is named by its stem, and what lies in a folder or zip by that folder's or zip's name and its path inside, so
that two books may both have a chapter 01: `tale/part-01`, `book/disc-2/chapter-07`. What can't be a recording is
either clearly none (a text, a cover: ignored, but listed) or a failure with its cause.
"""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from preprocessing.audio import BadRecording
from preprocessing.kinds import SUFFIXES, UNSUPPORTED_SUFFIXES, read_head, sniff

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One recording to be read.

    Attributes:
        name: its name, unique among the sources.
        path: the file, or the zip that holds it.
        member: its path in the zip, None for a plain file.
        num_bytes: its size.
    """

    name: str
    path: Path
    member: str | None
    num_bytes: int

    @property
    def suffix(self) -> str:
        """The suffix of the file itself, in lower case."""
        return PurePosixPath(self.member or self.path.name).suffix.lower()

    @property
    def file(self) -> str:
        """The file as a person finds it: its path, with the zip's before it."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass
class Found:
    """What the sources hold: recordings, failures as (name, cause), and what was ignored."""

    sources: list[Source] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_sources(paths: list[Path]) -> Found:
    """Return the recordings in files, folders (searched through, in order of their names) and zips.

    Raises:
        FileNotFoundError: a path that is not there.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            _search_folder(path, found)
        elif not path.exists():
            raise FileNotFoundError(f"--sources {path} does not exist.")
        elif path.suffix.lower() == ".zip":
            _search_zip(path, path.stem, found)
        else:
            _take_file(path, _stem(path.name), found, is_named=True)
    _refuse_equal_names(found)
    return found


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _stem(path: str) -> str:
    return _printable(str(PurePosixPath(path).with_suffix("")))


def _is_hidden(path: PurePosixPath) -> bool:
    # "._chapter.mp3" and __MACOSX are what a Mac leaves beside the real files.
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _search_folder(folder: Path, found: Found) -> None:
    def complain(error: OSError) -> None:
        found.failures.append((str(error.filename), f"unreadable: {error.strerror}"))

    name = folder.resolve().name
    for parent, folders, files in os.walk(folder, onerror=complain, followlinks=False):
        hidden = sorted(name for name in folders if _is_hidden(PurePosixPath(name)))
        found.ignored += [_printable(f"{parent}/{name}/") for name in hidden]
        # In place: os.walk goes where this list says.
        folders[:] = sorted(set(folders) - set(hidden))
        for file in sorted(files):
            path = Path(parent, file)
            inside = path.relative_to(folder).as_posix()
            if _is_hidden(PurePosixPath(inside)):
                found.ignored.append(_printable(str(path)))
            elif path.suffix.lower() == ".zip":
                _search_zip(path, f"{name}/{_stem(inside)}", found)
            else:
                _take_file(path, f"{name}/{_stem(inside)}", found, is_named=False)


def _take_file(path: Path, name: str, found: Found, *, is_named: bool) -> None:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            found.failures.append((name, f"unreadable: {path} is not a regular file"))
            return
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            found.sources.append(Source(name, path, None, about.st_size))
            return
        with path.open("rb") as file:
            cause = _refuse_suffix(suffix, sniff(read_head(file)))
    except OSError as error:
        found.failures.append((name, f"unreadable: {path}: {error.strerror}"))
        return
    if cause or is_named:
        found.failures.append((name, cause or f"not audio: {suffix or 'no suffix'} is none of {' '.join(SUFFIXES)}"))
    else:
        found.ignored.append(_printable(str(path)))


def _refuse_suffix(suffix: str, inside: str | None) -> str | None:
    if suffix in UNSUPPORTED_SUFFIXES:
        return f"{suffix} is not read here; convert it, for instance with ffmpeg to .flac"
    if inside:
        kind = "MP3" if inside == "ID3" else inside
        return f"wrong extension: there is {kind} inside, but it is called {suffix or 'by no suffix'}; rename it"
    return None


def _search_zip(path: Path, name: str, found: Found) -> None:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        found.failures.append((_printable(name), f"zip that can't be opened, {path}: {why}"))
        return
    with archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            inside = PurePosixPath(info.filename)
            if info.is_dir():
                continue
            member_name = f"{_printable(name)}/{_stem(info.filename)}"
            suffix = inside.suffix.lower()
            if _is_hidden(inside):
                found.ignored.append(f"{path}:{info.filename}")
            elif suffix in SUFFIXES:
                found.sources.append(Source(member_name, path, info.filename, info.file_size))
            elif suffix in UNSUPPORTED_SUFFIXES or suffix == ".zip":
                cause = "zip inside a zip; unpack it first" if suffix == ".zip" else _refuse_suffix(suffix, None)
                found.failures.append((member_name, str(cause)))
            else:
                found.ignored.append(f"{path}:{info.filename}")


def _refuse_equal_names(found: Found) -> None:
    """Keep the first of several recordings of one name: often one chapter in two formats, and never told apart."""
    first: dict[str, Source] = {}
    for source in found.sources:
        before = first.setdefault(source.name, source)
        if before is not source:
            found.failures.append(
                (source.name, f"two files of one name: {source.file} and {before.file}; rename one or leave it out")
            )
    found.sources = list(first.values())


@contextmanager
def open_source(source: Source, scratch: Path) -> Iterator[Path]:
    """Give a recording as a plain file; one from a zip is unpacked, in chunks, for as long as it is open.

    Args:
        scratch: an existing folder to unpack to.

    Raises:
        BadRecording: a zip's member that is damaged or encrypted.
        OSError: the disk is full, among others.
    """
    if source.member is None:
        yield source.path
        return
    # One recording of one run is unpacked once at a time: the process makes the name unique.
    unpacked = scratch / f"{os.getpid()}{source.suffix}"
    try:
        with zipfile.ZipFile(source.path) as archive, unpacked.open("wb") as copy:
            try:
                with archive.open(source.member) as member:
                    shutil.copyfileobj(member, copy, COPY_BYTES)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise BadRecording(f"can't be unpacked from the zip: {error}") from None
        yield unpacked
    finally:
        unpacked.unlink(missing_ok=True)
