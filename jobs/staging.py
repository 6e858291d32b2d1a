"""What preprocessing has done so far, in OUT/.partial, so that a run that was killed goes on where it was.

    .partial/lock                            held by the one process that works here, or by all shares together
    .partial/shares/I-of-N                   what jobs of an array have done of their shares
    .partial/settings.json                   what the run was begun with; no other settings are mixed in
    .partial/unpacked/                       a zip's member while it is read
    .partial/RECORDING/SHA256/000000.packets the chunks of a recording made from a file with that hash, any may lack
    .partial/RECORDING/SHA256/facts.json     its facts, written when the last chunk is there

Every file is written to a temporary name and renamed: one that is there is whole.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from babble.cli import CommandError, flatten
from babble.data.shards import STAGING
from babble.files import write_bytes, write_json


class FolderInUse(CommandError):
    """Another process works in the folder."""


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Raise if two runs' settings differ.

    Raises:
        ValueError: they do; each key is named with both values.
    """
    old, new = flatten(before), flatten(now)
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing:
        told = "; ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in differing)
        raise ValueError(f"{out} was made with other settings: {told}. Give the same settings, or another --out.")


class Staging:
    """What is done so far, in OUT/.partial: for each recording a folder, in it one for the bytes it was made from.

    Args:
        out: the folder for the shards.
        settings: those that shape their bytes.
        share: (which, of how many), counted from 0: this process does a share beside others that do theirs.
    """

    def __init__(self, out: Path, settings: dict[str, Any], share: tuple[int, int] | None = None) -> None:
        self.folder = out / STAGING
        self.scratch = self.folder / ("unpacked" if share is None else f"unpacked-{share[0]}")
        self._settings = settings
        self._share = share

    def __enter__(self) -> "Staging":
        """Take the folder for this process, or for shares alone, and refuse it if it was begun with other settings."""
        self._lock = _lock(self.folder, is_shared=self._share is not None)
        try:
            self._prepare()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _prepare(self) -> None:
        path = self.folder / "settings.json"
        if path.is_file():
            refuse_other_settings(json.loads(path.read_text()), self._settings, self.folder.parent)
        else:
            write_json(path, self._settings)
        # What a killed process was unpacking or writing is of no use any more.
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        if self._share is None:
            for left in self.folder.rglob(".*.tmp"):
                left.unlink()

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def end_share(self) -> None:
        """Note that this share is done."""
        assert self._share is not None
        which, shares = self._share
        (self.folder / "shares").mkdir(exist_ok=True)
        write_bytes(self.folder / "shares" / f"{which}-of-{shares}", b"")

    def missing_shares(self, shares: int) -> list[int]:
        """Return which of so many shares are not done."""
        return [n for n in range(shares) if not (self.folder / "shares" / f"{n}-of-{shares}").is_file()]

    def forget_shares(self) -> None:
        """Have all shares done again, as some of what they did failed."""
        shutil.rmtree(self.folder / "shares", ignore_errors=True)

    def recording(self, name: str, sha256: str) -> Path:
        """Return the folder of a recording made from a file with that hash."""
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:32] / sha256

    def list_staged(self, name: str) -> dict[str, Any]:
        """Return what is staged of a recording, as `decode_recording` reads it."""
        return {
            folder.name: {
                "chunks": sorted(int(path.stem) for path in folder.glob("*.packets")),
                "is_whole": (folder / "facts.json").is_file(),
            }
            for folder in self.recording(name, "").glob("*")
        }

    def write_chunk(self, name: str, sha256: str, chunk: int, packets: bytes) -> None:
        """Stage one chunk."""
        folder = self.recording(name, sha256)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{chunk:06d}.packets", packets)

    def write_facts(self, name: str, sha256: str, facts: dict[str, Any]) -> None:
        """Stage a recording's facts: it is whole then."""
        write_json(self.recording(name, sha256) / "facts.json", facts)

    def read_facts(self, name: str, sha256: str) -> dict[str, Any]:
        """Return the facts of a whole recording."""
        facts: dict[str, Any] = json.loads((self.recording(name, sha256) / "facts.json").read_text())
        return facts

    def count_bytes(self, name: str, sha256: str) -> int:
        """Return how many bytes of packets are staged of a recording."""
        return sum(path.stat().st_size for path in self.recording(name, sha256).glob("*.packets"))

    def read_packets(self, name: str, sha256: str) -> bytes:
        """Return the packets of a whole recording."""
        return b"".join(path.read_bytes() for path in sorted(self.recording(name, sha256).glob("*.packets")))


def _lock(folder: Path, is_shared: bool) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FolderInUse(
                f"{folder.parent}: another preprocess is at work there; wait for it or stop it."
            ) from None
        except OSError as error:
            # Some cluster file systems have no locks; then nobody is kept out, but the work can be done.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        # Whoever held it may have finished and removed it in between; then it protects nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
        os.close(lock)
