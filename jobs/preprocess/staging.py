"""The folder OUT/.partial: what preprocessing has done so far, so that a killed run continues where it stopped.

    .partial/lock                            held by the one running process, or by all running shares together
    .partial/settings.json                   settings of the first run; others are rejected
    .partial/shares/I-of-N                   marks the finished shares of a job array
    .partial/unpacked/                       the member of a zip while it is read
    .partial/NAME/SHA256/000000.packets      chunks of recording NAME (hashed), from a file with this sha256
    .partial/NAME/SHA256/encoding-1/...      the same chunks, shifted or at another speed
    .partial/NAME/SHA256/facts.json          facts of the recording, written when its last chunk is there

Every file is written to a temporary name and renamed, so a file that exists is complete.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from babble.cli import describe_changes, flatten
from babble.data.shards import STAGING
from babble.files import lock, read_json, write_bytes, write_json


@dataclass(frozen=True)
class Staged:
    """What is staged of a recording: the indices of its chunks, and whether they are all of it."""

    chunks: frozenset[int] = frozenset()
    is_whole: bool = False


@dataclass
class Encoded:
    """The result of encoding.

    Attributes:
        sha256: of each whole recording, by name.
        failures: name and cause of each recording that can't be used.
        seconds: of speech encoded by this run.
        staged_seconds: of speech staged by earlier runs.
        wall_seconds: time taken, without Ray's start and stop.
        ray_start_seconds: time that Ray took to start.
        ray_stop_seconds: time that Ray took to stop.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    staged_seconds: float = 0.0
    wall_seconds: float = 0.0
    ray_start_seconds: float = 0.0
    ray_stop_seconds: float = 0.0


def disk_full_message(what: str) -> str:
    """Return the error message for a full disk."""
    return f"disk full: {what}. Finished chunks are kept: free some space and run the same command again."


def check_same_settings(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Raise if a folder was made with other settings.

    Raises:
        ValueError: names each differing key with both values.
    """
    old, new = flatten(before).keys(), flatten(now).keys()
    if old != new:
        unknown = ", ".join(sorted(old ^ new))
        raise ValueError(f"{out} was made by another version of babble ({unknown} differ): use another --out.")
    if changes := describe_changes(before, now):
        raise ValueError(
            f"{out} was made with other settings: {'; '.join(changes)}. Use the same settings, or another --out."
        )


class Staging:
    """Reads and writes OUT/.partial. Make it with `open_staging`, which locks it.

    Attributes:
        folder: OUT/.partial.
        scratch: folder for unpacking a zip's member.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch

    def _recording(self, name: str, sha256: str = "", encoding: int = 0) -> Path:
        # Names have slashes and any length.
        folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:32] / sha256
        return folder / f"encoding-{encoding}" if encoding else folder

    def list_staged(self, name: str) -> dict[str, Staged]:
        """Return what is staged of a recording, by the sha256 of the file that it was read from."""
        return {
            folder.name: Staged(
                frozenset(int(path.stem) for path in folder.glob("*.packets")), (folder / "facts.json").is_file()
            )
            for folder in self._recording(name).glob("*")
        }

    def write_chunk(self, name: str, sha256: str, index: int, packets: Sequence[bytes]) -> None:
        """Stage one chunk of a recording, `packets` once per encoding."""
        # Encoding 0 last: its file says that the chunk is staged.
        for encoding in reversed(range(len(packets))):
            folder = self._recording(name, sha256, encoding)
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / f"{index:06d}.packets", packets[encoding])

    def write_facts(self, name: str, sha256: str, facts: dict[str, Any]) -> None:
        """Stage a recording's facts, which marks it as whole."""
        write_json(self._recording(name, sha256) / "facts.json", facts)

    def read_facts(self, name: str, sha256: str) -> dict[str, Any]:
        """Return the facts of a whole recording."""
        facts: dict[str, Any] = read_json(self._recording(name, sha256) / "facts.json")
        return facts

    def count_bytes(self, name: str, sha256: str) -> int:
        """Return the number of bytes of packets staged for a recording."""
        return sum(path.stat().st_size for path in self._recording(name, sha256).glob("*.packets"))

    def read_packets(self, name: str, sha256: str, encoding: int = 0) -> bytes:
        """Return the packets of a whole recording."""
        folder = self._recording(name, sha256, encoding)
        return b"".join(path.read_bytes() for path in sorted(folder.glob("*.packets")))

    def mark_share(self, index: int, shares: int) -> None:
        """Note that a share is finished."""
        folder = self.folder / "shares"
        folder.mkdir(exist_ok=True)
        write_bytes(folder / f"{index}-of-{shares}", b"")

    def missing_shares(self, shares: int) -> list[int]:
        """Return the indices of the shares that are not finished."""
        return [index for index in range(shares) if not (self.folder / "shares" / f"{index}-of-{shares}").is_file()]

    def reset_shares(self) -> None:
        """Have all shares repeated, because recordings in them failed."""
        shutil.rmtree(self.folder / "shares", ignore_errors=True)


@contextlib.contextmanager
def open_staging(out: Path, settings: dict[str, Any], share: tuple[int, int] | None = None) -> Iterator[Staging]:
    """Give the locked staging of an output folder; it is created if needed.

    Args:
        out: the folder for the shards.
        settings: those that change the bytes of the shards.
        share: (index, number of shares): lock it together with other shares instead of alone.

    Raises:
        FileInUse: another process works in the folder.
        ValueError: it was started with other settings.
    """
    folder = out / STAGING
    scratch = folder / ("unpacked" if share is None else f"unpacked-{share[0]}")
    message = f"{out} is in use by another preprocessing: wait for it or stop it."
    with lock(folder / "lock", message, is_shared=share is not None):
        path = folder / "settings.json"
        if path.is_file():
            check_same_settings(read_json(path), settings, out)
        else:
            write_json(path, settings)
        # Remove what a killed process was unpacking or writing.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        if share is None:
            for left in folder.rglob(".*.tmp"):
                left.unlink()
        yield Staging(folder, scratch)
