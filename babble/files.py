"""Files that are whole or absent, JSON, and locks: the one way in which babble writes what must survive a kill.

    write_json(run.baselines, baselines)
    with lock(folder / ".lock", f"{folder} is in use by another training"): ...

A file is written to a temporary name in the same folder, flushed to the disk, and renamed. A kill at any moment leaves
the old file or the new one, never a part.
"""

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babble.cli import CommandError

# What `flock` reports on file systems without locks (NFS, Lustre mounted without flock).
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FileInUse(CommandError):
    """Another process holds the lock."""


def temporary_path(path: Path) -> Path:
    """Return the name under which this process writes a file before it is renamed: `.NAME.PID.tmp` beside it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in the error of a failed write, e.g. to a full disk, which does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; afterwards flush it to the disk and rename it to `path`.

    The folder is created if needed. If the block raises, `path` stays as it was and the temporary file is removed.
    """
    temporary = temporary_path(path)
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all."""
    # The bytes of a name that are not UTF-8 are surrogates; JSON escapes them as Python does.
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, not JSON ({error}): restore it, or move it away.") from None


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Append one object to a file of JSON lines; NaN and infinities are written as Python's json does."""
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; none without the file. A last line still being written is left out.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    if not path.is_file():
        return []
    rows = []
    # A kill may have left half a line, and a reader may come while one is written: only whole lines count.
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is damaged, a JSON object was expected: remove it.")
        rows.append(row)
    return rows


def check_writable(path: Path, flag: str) -> None:
    """Raise if a file can't be written, before the work whose result it is to hold.

    Args:
        path: the file. Its folders need not exist.
        flag: the flag that names it, for the message.

    Raises:
        OSError: no permission, a read-only or full file system, or a folder in its place.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        # Permissions alone would not show a read-only file system.
        tempfile.TemporaryFile(dir=folder).close()
        if path.is_dir() or path.is_file():
            path.open("ab").close()
    except OSError as error:
        raise OSError(f"{path} can't be written ({error.strerror}): name another place with {flag}.") from None


@contextlib.contextmanager
def lock(path: Path, message: str, *, is_shared: bool = False) -> Iterator[None]:
    """Hold a lock file for this process; its folder is created if needed.

    On file systems without locks the block runs unlocked: nobody is kept out, but the work can be done.

    Args:
        path: the lock file. It may be removed, with its folder, by whoever holds it.
        message: what the error says if another process holds it.
        is_shared: hold it together with other shared holders, but never with an exclusive one.

    Raises:
        FileInUse: another process holds it.
    """
    descriptor = _acquire(path, message, is_shared)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, message: str, is_shared: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FileInUse(message) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        # The last holder may have removed the file in between; then this lock protects nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)
