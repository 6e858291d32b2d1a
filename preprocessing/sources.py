"""Files, folders and zips -> the recordings in them, each with a unique name.

    found = find_sources([Path("tale.zip"), Path("books")])

A file is named by its stem; a file in a folder or zip by the name of that and its path inside, so that two books may
both have a chapter 01: `tale/part-01`, `book/disc-2/chapter-07`. Its first bytes decide whether a file is a recording,
and where they are unknown its suffix: the same in a folder, in a zip and if the file itself is named. Links to folders
are followed. Files that are clearly not audio (texts, covers) are ignored, but listed with the reason; other files that
can't be used are failures with their cause.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from preprocessing.kinds import FRAME_KINDS, SUFFIXES, UNSUPPORTED_SUFFIXES, BadRecording, kind_of, read_head
from preprocessing.names import escape_bytes, explain_ignored, is_hidden, printable, split_suffix
from preprocessing.zips import ZIP_ERRORS, explain_zip_error, list_members, open_zip

COPY_BYTES = 1 << 20
HEAD_BYTES = 16


@dataclass(frozen=True)
class Source:
    """One recording.

    Attributes:
        name: unique among the sources, and printable.
        path: the file, or the zip that contains it.
        member: path in the zip, None for a plain file.
        num_bytes: size of the file.
        stamp: differs if the file was written again: its time, or the CRC of a zip's member.
        is_encoded: whether it is Codec 2 already.
    """

    name: str
    path: Path
    member: str | None
    num_bytes: int
    stamp: str = ""
    is_encoded: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the recording's file, in lower case."""
        return split_suffix(self.member or self.path.name)[1]

    @property
    def file(self) -> str:
        """Path of the file for messages: `ZIP:MEMBER` in a zip."""
        return printable(f"{self.path}:{self.member}" if self.member else str(self.path))

    @property
    def file_name(self) -> str:
        """Name of the recording's file, without its folders."""
        return printable((self.member or str(self.path)).rpartition("/")[2])


@dataclass
class Found:
    """Recordings, failures as (name, cause), and what was ignored as (path, reason)."""

    sources: list[Source] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)


def find_sources(paths: list[Path]) -> Found:
    """Return the recordings in files, folders (recursively, in order of names) and zips.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    search = _Search()
    for path in paths:
        if path.is_dir():
            search.read_folder(path)
        elif not path.exists():
            raise FileNotFoundError(f"--sources {path} does not exist.")
        else:
            search.take_file(path, path.name, is_named=True)
    _make_names_unique(search.found)
    return search.found


class _Search:
    """Collects what sources hold; remembers the folders that it has read, because links may lead to one twice."""

    def __init__(self) -> None:
        self.found = Found()
        self._read: dict[str, str] = {}

    def read_folder(self, folder: Path) -> None:
        """Sort in the files of a folder, and of the folders in it and linked from it."""
        # Links wait until what they may lead to has been read by its own name.
        waiting = deque([(str(folder), folder.resolve().name)])
        while waiting:
            top, name = waiting.popleft()
            if not self._enter(top):
                continue
            for parent, folders, files in os.walk(top, onerror=self._add_unreadable):
                inside = name + parent.removeprefix(top.rstrip("/"))
                kept = []
                for folder_name in sorted(folders):
                    path = os.path.join(parent, folder_name)
                    if reason := explain_ignored(f"{folder_name}/"):
                        self._ignore(f"{path}/", reason)
                    elif not os.path.islink(path):
                        if self._enter(path):
                            kept.append(folder_name)
                    elif Path(os.path.realpath(parent)).is_relative_to(real := os.path.realpath(path)):
                        self._ignore(f"{path}/", f"a link to a folder that it is in, {real}")
                    else:
                        waiting.append((path, f"{inside}/{folder_name}"))
                # In place, because os.walk continues with this list.
                folders[:] = kept
                for file in sorted(files):
                    self.take_file(Path(parent, file), f"{inside}/{file}", is_named=False)

    def _enter(self, folder: str) -> bool:
        """Return whether a folder is still to be read; if not, it is ignored."""
        real = os.path.realpath(folder)
        if real in self._read:
            self._ignore(f"{folder}/", f"the same folder as {self._read[real]}/")
            return False
        self._read[real] = folder
        return True

    def _ignore(self, path: str, reason: str) -> None:
        self.found.ignored.append((printable(path), printable(reason)))

    def _fail(self, name: str, cause: str) -> None:
        self.found.failures.append((printable(split_suffix(name)[0]), printable(cause)))

    def _add_unreadable(self, error: OSError) -> None:
        self.found.failures.append((printable(str(error.filename)), f"unreadable: {error.strerror}"))

    def take_file(self, path: Path, name: str, *, is_named: bool) -> None:
        """Sort in a file of a folder, or one that is named itself; `name` has its suffix still."""
        reason = explain_ignored(path.name)
        if reason and not is_named:
            self._ignore(str(path), reason)
            return
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                self._fail(name, f"unreadable: {path} is not a regular file")
                return
            with path.open("rb") as file:
                head = read_head(file)
        except OSError as error:
            self._fail(name, f"unreadable: {path}: {error.strerror}")
            return
        if kind_of(head, split_suffix(path.name)[1]) == "ZIP":
            self._read_zip(path, split_suffix(name)[0])
        else:
            source = Source(name, path, None, about.st_size, f"mtime {about.st_mtime_ns}")
            self._sort_in(source, head, reason, is_named)

    def _read_zip(self, path: Path, name: str) -> None:
        try:
            with open_zip(path) as archive:
                for member, info in list_members(archive):
                    source = Source(f"{name}/{member}", path, member, info.file_size, f"crc {info.CRC:08x}")
                    if reason := explain_ignored(member):
                        self._ignore(source.file, reason)
                    elif info.flag_bits & 1:
                        self._fail(source.name, "encrypted in the zip; unpack it with its password first")
                    else:
                        try:
                            with archive.open(info) as file:  # Only this much of it is unpacked.
                                head = file.read(HEAD_BYTES)
                        except (OSError, *ZIP_ERRORS) as error:
                            self._fail(source.name, f"can't unpack it from the zip: {explain_zip_error(error)}")
                        else:
                            self._sort_in(source, head, None, is_named=False)
        except (OSError, *ZIP_ERRORS) as error:
            self._fail(f"{name}.zip", f"can't open the zip {path}: {explain_zip_error(error)}")

    def _sort_in(self, source: Source, head: bytes, reason: str | None, is_named: bool) -> None:
        """Add a file to the recordings, the failures or the ignored files, by its first bytes and its suffix."""
        suffix = source.suffix
        # The suffix of a hidden file says what a program keeps there, e.g. a half-written download.
        is_file_hidden = is_hidden(source.file_name) and not is_named
        kind = kind_of(head, "" if is_file_hidden else suffix)
        if suffix in UNSUPPORTED_SUFFIXES and not is_file_hidden:
            self._fail(source.name, f"{suffix} is not supported; convert it, e.g. with ffmpeg to .flac")
        elif kind == "ZIP":
            self._fail(source.name, "a zip inside a zip; unpack it first")
        elif kind:
            self.found.sources.append(replace(source, is_encoded=kind in FRAME_KINDS))
        elif is_named:
            known = f"not audio: suffix {suffix or '(none)'} must be one of {' '.join(SUFFIXES)}"
            self._fail(source.name, reason or f"{known}, or its first bytes those of audio")
        else:
            self._ignore(source.file, "not audio" if head else "empty")


def _make_names_unique(found: Found) -> None:
    """Give recordings their printable names; fail all but the first of several with the same name.

    The same name is often one chapter in two formats. Names that differ only in bytes that are not UTF-8 get those
    bytes escaped, as they would be equal once these are replaced.
    """
    stems = [split_suffix(source.name)[0] for source in found.sources]
    shown = Counter(printable(stem) for stem in set(stems))
    first: dict[str, Source] = {}
    for source, stem in zip(found.sources, stems, strict=True):
        name = printable(stem) if shown[printable(stem)] == 1 else escape_bytes(stem)
        named = replace(source, name=name)
        before = first.setdefault(name, named)
        if before is not named:
            cause = f"two files with the same name: {named.file} and {before.file}; rename or remove one"
            found.failures.append((name, cause))
    found.sources = list(first.values())


@contextmanager
def _open_content(source: Source) -> Iterator[IO[bytes]]:
    if source.member is None:
        with source.path.open("rb") as file:
            yield file
        return
    cause = "can't unpack it from the zip: {}"
    try:
        with open_zip(source.path) as archive:
            info = dict(list_members(archive)).get(source.member)
            if info is None:
                raise zipfile.BadZipFile("it is no longer in it")
            with archive.open(info) as member:
                yield member
    except ZIP_ERRORS as error:
        raise BadRecording(cause.format(explain_zip_error(error))) from None
    except OSError as error:
        if error.errno is None:  # from the bz2 decompressor
            raise BadRecording(cause.format(error)) from None
        raise


def hash_source(source: Source) -> str:
    """Return the sha256 of a recording's file.

    Raises:
        BadRecording: the zip's member is damaged or encrypted.
        OSError: it can't be read.
    """
    with _open_content(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


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
    # Workers of several nodes share the folder, and can have the same process id.
    descriptor, name = tempfile.mkstemp(source.suffix, dir=scratch)
    unpacked = Path(name)
    try:
        with open(descriptor, "wb") as copy, _open_content(source) as member:
            shutil.copyfileobj(member, copy, COPY_BYTES)
        yield unpacked
    finally:
        unpacked.unlink(missing_ok=True)
