"""Files, folders and zips -> the recordings in them, each with a unique name.

    found = find_sources([Path("tale.zip"), Path("books")])

A file is named by its stem; a file in a folder or zip by the name of that and its path inside, so that two books may
both have a chapter 01: `tale/part-01`, `book/disc-2/chapter-07`. Files that are clearly not audio (texts, covers) are
ignored, but listed; other files that can't be used are failures with their cause.
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

from preprocessing.kinds import SUFFIXES, UNSUPPORTED_SUFFIXES, BadRecording, read_head, sniff

COPY_BYTES = 1 << 20
UNSUPPORTED_SUFFIX = "{} is not supported; convert it, e.g. with ffmpeg to .flac"


@dataclass(frozen=True)
class Source:
    """One recording.

    Attributes:
        name: unique among the sources.
        path: the file, or the zip that contains it.
        member: path in the zip, None for a plain file.
        num_bytes: size of the file.
    """

    name: str
    path: Path
    member: str | None
    num_bytes: int

    @property
    def suffix(self) -> str:
        """Suffix of the recording's file, in lower case."""
        return PurePosixPath(self.member or self.path.name).suffix.lower()

    @property
    def file(self) -> str:
        """Path of the file for messages: `ZIP:MEMBER` in a zip."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass
class Found:
    """Recordings, failures as (name, cause), and paths that were ignored."""

    sources: list[Source] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_sources(paths: list[Path]) -> Found:
    """Return the recordings in files, folders (recursively, in order of names) and zips.

    Raises:
        FileNotFoundError: a path does not exist.
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
    _drop_equal_names(found)
    return found


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _stem(path: str) -> str:
    return _printable(str(PurePosixPath(path).with_suffix("")))


def _is_hidden(path: PurePosixPath) -> bool:
    # macOS adds "._chapter.mp3" and __MACOSX to zips and folders.
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _search_folder(folder: Path, found: Found) -> None:
    def add_failure(error: OSError) -> None:
        found.failures.append((str(error.filename), f"unreadable: {error.strerror}"))

    name = folder.resolve().name
    for parent, folders, files in os.walk(folder, onerror=add_failure, followlinks=False):
        hidden = sorted(name for name in folders if _is_hidden(PurePosixPath(name)))
        found.ignored += [_printable(f"{parent}/{name}/") for name in hidden]
        # In place, because os.walk continues with this list.
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
            cause = _explain_suffix(suffix, sniff(read_head(file)))
    except OSError as error:
        found.failures.append((name, f"unreadable: {path}: {error.strerror}"))
        return
    if cause or is_named:
        found.failures.append(
            (name, cause or f"not audio: suffix {suffix or '(none)'} must be one of {' '.join(SUFFIXES)}")
        )
    else:
        found.ignored.append(_printable(str(path)))


def _explain_suffix(suffix: str, content: str | None) -> str | None:
    """Return the cause if a file without a supported suffix is audio."""
    if suffix in UNSUPPORTED_SUFFIXES:
        return UNSUPPORTED_SUFFIX.format(suffix)
    if content:
        kind = "MP3" if content == "ID3" else content
        return f"wrong suffix: named {suffix or 'without a suffix'}, but it contains {kind}; rename it"
    return None


def _search_zip(path: Path, name: str, found: Found) -> None:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        found.failures.append((_printable(name), f"can't open the zip {path}: {cause}"))
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
                is_zip = suffix == ".zip"
                cause = "a zip inside a zip; unpack it first" if is_zip else UNSUPPORTED_SUFFIX.format(suffix)
                found.failures.append((member_name, cause))
            else:
                found.ignored.append(f"{path}:{info.filename}")


def _drop_equal_names(found: Found) -> None:
    """Keep the first of several recordings with the same name, which are often one chapter in two formats."""
    first: dict[str, Source] = {}
    for source in found.sources:
        before = first.setdefault(source.name, source)
        if before is not source:
            found.failures.append(
                (source.name, f"two files with the same name: {source.file} and {before.file}; rename or remove one")
            )
    found.sources = list(first.values())


@contextmanager
def open_source(source: Source, scratch: Path) -> Iterator[Path]:
    """Open a recording as a plain file; a member of a zip is unpacked while it is open.

    Args:
        source: the recording.
        scratch: an existing folder to unpack to.

    Raises:
        BadRecording: the zip's member is damaged or encrypted.
        OSError: the disk is full, or another error of the file system.
    """
    if source.member is None:
        yield source.path
        return
    # Unique, because a process unpacks one recording at a time.
    unpacked = scratch / f"{os.getpid()}{source.suffix}"
    try:
        with zipfile.ZipFile(source.path) as archive, unpacked.open("wb") as copy:
            try:
                with archive.open(source.member) as member:
                    shutil.copyfileobj(member, copy, COPY_BYTES)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise BadRecording(f"can't unpack it from the zip: {error}") from None
        yield unpacked
    finally:
        unpacked.unlink(missing_ok=True)
