"""The shard format, both ways: WebDataset tars of segments, and their manifest.

A folder of shards holds

    manifest.json        what the folder contains, from which recordings and settings; written last
    train-000000.tar     entries KEY.c2 (header and packets: unpack it and c2dec plays it) and KEY.json
    validation-000000.tar ...
    shifted-000000.tar   the training recordings, encoded again (preprocessing/encode.py), if there are any

and, of interest only to a later preprocessing of the same sources, report.txt and sources.json.

An entry is a segment: at most `SEGMENT_FRAMES` consecutive frames of one recording, a recording's entries in order.

1. `write_shards` packs recordings into tars, the same bytes for the same recordings, and returns their facts.
2. `read_manifest` reads the manifest; if a folder has none, the error says what the folder is instead.
3. `read_segments` streams entries through WebDataset; `read_recordings` joins them to whole recordings.

    folder, manifest = open_shards(Path("shards/tale"))
    recordings = read_recordings(folder, manifest, "test")
"""

import hashlib
import io
import json
import os
import shlex
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from babble.codec.codec2 import c2_header, parse_c2
from babble.codec.frames import Mode, check_levels, get_mode, pack_packets, unpack_packets
from babble.files import write_bytes, write_json
from preprocessing.kinds import SUFFIXES
from preprocessing.split import Split

FORMAT = 1
MANIFEST = "manifest.json"
# Folder inside the shards, for the work in progress of preprocessing.
STAGING = ".partial"
SPLITS: tuple[str, ...] = get_args(Split)
# Takes the place of a split's name: the training recordings, encoded again. It is for training only.
SHIFTED = "shifted"
# WebDataset reads 7.4 million frames per second in entries of 1,500 frames, and 1.1 million in entries of 200.
SEGMENT_FRAMES = 1500
# The facts of a recording that say where its frames are.
POSITION = ("name", "split", "first_frame", "frames")


@dataclass(frozen=True)
class Segment:
    """Consecutive frames of one recording.

    Attributes:
        recording: name of the recording, unique in a folder of shards.
        first_frame: index of the first frame in the recording.
        frames: levels (T, F).
    """

    recording: str
    first_frame: int
    frames: np.ndarray


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the manifest says about one tar: name, split, sha256 and number of its bytes, of its entries and frames."""

    name: str
    split: str
    sha256: str
    entries: int
    frames: int
    # None in manifests of earlier versions.
    bytes: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards.

    Attributes:
        mode: Codec 2 mode of every frame.
        settings: preprocessing settings that determine the bytes.
        recordings: facts of each recording in order: at least name, split, first_frame and frames.
        shards: facts of each tar in reading order.
        failures: sources that could not be read: name and cause.
        duplicates: recordings left out because they repeat others: at least name, of and seconds.
        shifted: name, split, first_frame and frames of each training recording that was encoded again.
    """

    mode: Mode
    settings: dict[str, Any]
    recordings: list[dict[str, Any]]
    shards: list[ShardFacts]
    failures: list[dict[str, str]]
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    shifted: list[dict[str, Any]] = field(default_factory=list)

    def of_split(self, split: str) -> list[dict[str, Any]]:
        """Return the facts of each recording in a split."""
        return [recording for recording in (*self.recordings, *self.shifted) if recording["split"] == split]

    def split_lengths(self, split: str) -> list[int]:
        """Return the number of frames of each recording in a split."""
        return [recording["frames"] for recording in self.of_split(split)]

    def with_shifted(self) -> "Manifest":
        """Return this manifest with the recordings that were encoded again in the training split."""
        shards = [replace(shard, split="train") if shard.split == SHIFTED else shard for shard in self.shards]
        return replace(self, shards=shards, shifted=[{**recording, "split": "train"} for recording in self.shifted])

    def without_shifted(self) -> "Manifest":
        """Return this manifest without the recordings that were encoded again."""
        return replace(self, shards=[shard for shard in self.shards if shard.split != SHIFTED], shifted=[])

    def split_frames(self, split: str) -> int:
        """Return the number of frames in a split."""
        return sum(shard.frames for shard in self.shards if shard.split == split)

    def split_hours(self, split: str) -> float:
        """Return the hours of speech in a split."""
        return self.split_frames(split) / self.mode.frames_per_second / 3600


def _cut(recording: Segment) -> Iterator[Segment]:
    for start in range(0, len(recording.frames), SEGMENT_FRAMES):
        frames = recording.frames[start : start + SEGMENT_FRAMES]
        yield Segment(recording.recording, recording.first_frame + start, frames)


def write_shards(
    folder: Path, split: str, recordings: Iterable[Segment], mode: Mode, entries_per_shard: int
) -> list[ShardFacts]:
    """Write the recordings of one split as tars and return their facts.

    The bytes depend on nothing but the arguments. A tar is written to a temporary name and renamed when whole.

    Args:
        folder: an existing folder.
        split: one of `SPLITS`, or `SHIFTED`.
        recordings: whole recordings, or the segments of them that belong to this split, in manifest order.
        mode: the mode of every frame.
        entries_per_shard: entries per tar; the last tar holds the rest.
    """
    facts: list[ShardFacts] = []
    # Numbered through the split: WebDataset cuts a key at its first dot, so the recording's name is in the JSON only.
    entries = ((f"{split}-{n:08d}", cut) for n, cut in enumerate(cut for r in recordings for cut in _cut(r)))
    while batch := list(islice(entries, entries_per_shard)):
        data = _pack_tar(batch, mode)
        name = f"{split}-{len(facts):06d}.tar"
        write_bytes(folder / name, data)
        num_frames = sum(len(segment.frames) for _, segment in batch)
        facts.append(ShardFacts(name, split, hashlib.sha256(data).hexdigest(), len(batch), num_frames, len(data)))
    return facts


def _pack_tar(entries: list[tuple[str, Segment]], mode: Mode) -> bytes:
    """Return a tar with the bytes of webdataset's TarWriter; its package imports torch, which takes seconds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|") as tar:
        for key, segment in entries:
            about = {
                "recording": segment.recording,
                "first_frame": segment.first_frame,
                "frames": len(segment.frames),
                "mode": mode.name,
            }
            parts = {"c2": c2_header(mode) + pack_packets(segment.frames, mode), "json": json.dumps(about).encode()}
            for extension, data in parts.items():
                # No time, and fixed names of user and group: the same frames give the same bytes.
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode, member.uname, member.gname = len(data), 0o444, "babble", "babble"
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest. Call it last: a folder with a manifest is complete."""
    write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "mode": manifest.mode.name,
            "settings": manifest.settings,
            "hours": {split: round(manifest.split_hours(split), 4) for split in SPLITS},
            "recordings": manifest.recordings,
            "shards": [asdict(shard) for shard in manifest.shards],
            "failures": manifest.failures,
            "duplicates": manifest.duplicates,
            "shifted": manifest.shifted,
        },
    )


def open_shards(folder: Path | None) -> tuple[Path, Manifest]:
    """Return the folder that data.shards names, and its manifest, of each recording only the position.

    Raises as `read_manifest`, or if data.shards names none.
    """
    if folder is None:
        raise ValueError("data.shards is not set: give --data.shards, the folder written by babble preprocess.")
    return folder, read_manifest(folder, only_positions=True)


def read_manifest(folder: Path, *, only_positions: bool = False) -> Manifest:
    """Return the manifest of a folder of shards.

    Args:
        folder: the folder.
        only_positions: keep of each recording only `POSITION`, a quarter of the memory: 100,000 recordings and 70,000
            shards then take 60 MB.

    Raises:
        FileNotFoundError: no such folder, no manifest, or a tar that the manifest names is missing.
        ValueError: a manifest that babble did not write, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(_explain_missing_manifest(folder))
    try:
        value = json.loads(path.read_bytes().decode(), object_hook=_keep_position if only_positions else None)
        found = value["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a manifest of babble. Was the folder made by another program?") from None
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, this version of babble reads format {FORMAT}: preprocess to a new folder."
        )
    shards = [ShardFacts(**shard) for shard in value["shards"]]
    # One listing: a look at each of 70,000 names takes ten times as long, and more on a network's file system.
    with os.scandir(folder) as files:
        present = {file.name for file in files if file.is_file()}
    missing = [shard.name for shard in shards if shard.name not in present]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(shards)} shards in its manifest are missing, the first is {missing[0]}. "
            "Copy it again, or preprocess to a new folder."
        )
    return Manifest(
        get_mode(value["mode"]),
        value["settings"],
        value["recordings"],
        shards,
        value["failures"],
        # Not in manifests of earlier versions.
        value.get("duplicates", []),
        value.get("shifted", []),
    )


def _keep_position(value: dict[str, Any]) -> dict[str, Any]:
    """Return one object of a manifest; of a recording only its position, and a split's name as one object in memory."""
    if "first_frame" in value:
        value = {key: value[key] for key in POSITION}
    if isinstance(split := value.get("split"), str):
        value["split"] = sys.intern(split)
    return value


def hash_manifest(folder: Path) -> str:
    """Return the sha256 of a folder's manifest, which has the sha256 of every shard: two equal ones hold the same."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def verify_shards(folder: Path, manifest: Manifest, *, with_hashes: bool) -> None:
    """Compare the size of every shard with the manifest, and its hash if asked for.

    Raises:
        ValueError: names the first shard that differs.
    """
    for shard in manifest.shards:
        # Not a Path, which takes longer than the rest of this.
        path = os.path.join(folder, shard.name)
        advice = "copy it again, or preprocess to a new folder."
        if shard.bytes not in (None, found := os.stat(path).st_size):
            raise ValueError(f"{path} has {found:,} bytes, {shard.bytes:,} in its manifest: {advice}")
        if with_hashes:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise ValueError(f"{path} has changed since its manifest was written: {advice}")


def _explain_missing_manifest(path: Path) -> str:
    """Return the error for a path that is not a folder of shards. Its advice never writes into the path itself."""

    def is_recording(path: Path) -> bool:
        return path.suffix.lower() in (*SUFFIXES, ".zip")

    advice = "Make shards with: babble preprocess --sources {} --out shards/NAME"
    named = advice.format(shlex.quote(str(path)))
    if path.is_file():
        if is_recording(path):
            return f"{path} is a recording, not a folder of shards. {named}"
        return f"{path} is a file, not a folder of shards. Give the folder that contains {MANIFEST}."
    if not path.is_dir():
        return f"{path} does not exist. {advice.format('RECORDINGS')}"
    if (path / STAGING).is_dir():
        return f"{path} is incomplete: its preprocessing did not finish. Run the same jobs.preprocess command again."
    if (path / "config.yaml").is_file():
        return f"{path} is a run folder, not a folder of shards; data.shards in its config.yaml names them."
    if any(is_recording(file) for file in (*path.glob("*"), *path.glob("*/*"))):
        return f"{path} contains recordings, not shards. {named}"
    return f"{path} is not a folder of shards: it has no {MANIFEST}. {advice.format('RECORDINGS')}"


def read_segments(paths: list[Path], mode: Mode) -> Iterator[Segment]:
    """Yield the segments of tars in their order.

    Raises:
        ValueError: an entry of another mode, damaged, or with another number of frames than its JSON says.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    # WebDataset's own way from a path to a tar never closes the file.
    for path in paths:
        with path.open("rb") as file:
            try:
                for entry in group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])):
                    yield parse_entry(entry, mode, f"{path}: {entry['__key__']}")
            except tarfile.TarError as error:
                raise damaged_shard(path, error) from None


def damaged_shard(path: Path, error: tarfile.TarError) -> ValueError:
    """Return the error for a tar that can't be read."""
    return ValueError(f"{path} is damaged: {error.args[0]}. Copy it again, or preprocess to a new folder.")


def parse_entry(entry: dict[str, Any], mode: Mode, where: str) -> Segment:
    """Return the segment of an entry, its .c2 and .json; raises as `read_segments`."""
    if not {"c2", "json"} <= entry.keys():
        raise ValueError(f"{where} lacks its .c2 or its .json: the shard is damaged.")
    packets, found = parse_c2(entry["c2"], where)
    if found != mode:
        raise ValueError(
            f"{where} has mode {found.name}, but the manifest says {mode.name}: preprocess to a new folder."
        )
    about = json.loads(entry["json"])
    frames = unpack_packets(packets, mode)
    if len(frames) != about["frames"]:
        raise ValueError(f"{where} has {len(frames)} frames, but its JSON says {about['frames']}: it is damaged.")
    check_levels(frames, mode, where)
    return Segment(about["recording"], about["first_frame"], frames)


def read_recordings(folder: Path, manifest: Manifest, split: str) -> list[Segment]:
    """Return the recordings of a split or `SHIFTED`, or the segments that are in it, whole and in manifest order.

    Raises:
        ValueError: as `read_segments`, an unknown split, or frames missing between two entries.
    """
    if split not in (*SPLITS, SHIFTED):
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}.")
    paths = [folder / shard.name for shard in manifest.shards if shard.split == split]
    joined: list[list[Segment]] = []
    for segment in read_segments(paths, manifest.mode) if paths else ():
        before = joined[-1][-1] if joined else None
        if before and before.recording == segment.recording:
            expected = before.first_frame + len(before.frames)
            if segment.first_frame != expected:
                raise ValueError(
                    f"{folder}: recording {segment.recording} jumps from frame {expected} to {segment.first_frame}: "
                    "a shard is missing or out of order."
                )
            joined[-1].append(segment)
        else:
            joined.append([segment])
    return [replace(parts[0], frames=np.concatenate([part.frames for part in parts])) for parts in joined]
