"""The shard format both ways, in one file: WebDataset tars of segments, and the manifest beside them.

A folder of shards holds

    manifest.json        what is in it, from which recordings, made with which settings; written last
    train-000000.tar     entries KEY.c2 (header and packets: untar it and c2dec plays it) and KEY.json
    validation-000000.tar ...

An entry is a segment: at most `SEGMENT_FRAMES` consecutive frames of one recording, a recording's entries in order.

1. `write_shards` packs recordings into tars, the same bytes for the same recordings, and returns their facts.
2. `read_manifest` reads what a folder claims and refuses what is no folder of shards.
3. `read_segments` streams entries through WebDataset; `read_recordings` joins them to whole recordings.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from babble.codec.codec2 import c2_header, parse_c2
from babble.codec.frames import Mode, check_levels, get_mode, pack_packets, unpack_packets
from babble.files import write_bytes, write_json

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
# WebDataset reads 7.4 million frames a second in entries of 1,500 frames and 1.1 million in entries of 200.
SEGMENT_FRAMES = 1500


@dataclass(frozen=True)
class Segment:
    """A run of consecutive frames of one recording: one entry of a shard.

    Attributes:
        recording: the recording's name, unique in a folder of shards.
        first_frame: where in the recording it starts.
        frames: (T, F) levels.
    """

    recording: str
    first_frame: int
    frames: np.ndarray


@dataclass(frozen=True)
class ShardFacts:
    """What the manifest says of one tar: name, split, sha256 of its bytes, entries and frames in it."""

    name: str
    split: str
    sha256: str
    entries: int
    frames: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards claims to hold.

    Attributes:
        mode: the Codec 2 mode of every frame.
        settings: the preprocessing settings that shape the bytes.
        recordings: facts of each recording in order: at least name, split, first_frame and frames.
        shards: facts of each tar in reading order.
        failures: sources that could not be read: name and cause.
    """

    mode: Mode
    settings: dict[str, Any]
    recordings: list[dict[str, Any]]
    shards: list[ShardFacts]
    failures: list[dict[str, str]]

    def split_frames(self, split: str) -> int:
        """Return how many frames a split has."""
        return sum(shard.frames for shard in self.shards if shard.split == split)

    def split_hours(self, split: str) -> float:
        """Return how many hours of speech a split has."""
        return self.split_frames(split) / self.mode.frames_per_second / 3600


def _cut(segment: Segment) -> Iterator[Segment]:
    for start in range(0, len(segment.frames), SEGMENT_FRAMES):
        frames = segment.frames[start : start + SEGMENT_FRAMES]
        yield Segment(segment.recording, segment.first_frame + start, frames)


def write_shards(
    folder: Path, split: str, recordings: Iterable[Segment], mode: Mode, entries_per_shard: int
) -> list[ShardFacts]:
    """Write one split's recordings as tars and return their facts.

    Args:
        folder: an existing folder.
        split: one of `SPLITS`.
        recordings: whole recordings, or the parts of them that belong to this split, in manifest order.
        mode: the mode of every frame.
        entries_per_shard: how many segments a tar holds; the last holds what is left.

    The bytes depend on nothing but the arguments. A tar is written whole and then renamed.
    """
    # Imported here: webdataset pulls torch in where it is installed, and only the writer needs it.
    import webdataset

    facts: list[ShardFacts] = []
    # Numbered through the split: WebDataset takes a key up to its first dot, so the recording's name stays in the JSON.
    entries = ((f"{split}-{number:08d}", piece) for number, piece in enumerate(p for r in recordings for p in _cut(r)))
    batch = _take(entries, entries_per_shard)
    while batch:
        buffer = io.BytesIO()
        # A fixed time, user and group, or the same frames would not be the same bytes.
        with webdataset.TarWriter(buffer, mtime=0, user="babble", group="babble") as writer:
            for key, piece in batch:
                about = {
                    "recording": piece.recording,
                    "first_frame": piece.first_frame,
                    "frames": len(piece.frames),
                    "mode": mode.name,
                }
                packets = pack_packets(piece.frames, mode)
                writer.write({"__key__": key, "c2": c2_header(mode) + packets, "json": json.dumps(about).encode()})
        name = f"{split}-{len(facts):06d}.tar"
        data = buffer.getvalue()
        write_bytes(folder / name, data)
        num_frames = sum(len(piece.frames) for _, piece in batch)
        facts.append(ShardFacts(name, split, hashlib.sha256(data).hexdigest(), len(batch), num_frames))
        batch = _take(entries, entries_per_shard)
    return facts


def _take(entries: Iterator[tuple[str, Segment]], count: int) -> list[tuple[str, Segment]]:
    return [entry for _, entry in zip(range(count), entries, strict=False)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: last of all, as a folder with one is a finished folder."""
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
        },
    )


def read_manifest(folder: Path) -> Manifest:
    """Return what a folder of shards claims to hold.

    Raises:
        FileNotFoundError: no such folder, no manifest, or a tar that the manifest names is missing.
        ValueError: a manifest that is not babble's or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "has no manifest.json, so it is no finished folder of shards" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}. Make it with: python -m jobs.preprocess --sources ... --out {folder}"
        )
    try:
        value = json.loads(path.read_text())
        found = value["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a manifest of babble. Was the folder made by something else?") from None
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found}, this babble reads format {FORMAT}: preprocess again.")
    shards = [ShardFacts(**shard) for shard in value["shards"]]
    missing = [shard.name for shard in shards if not (folder / shard.name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(shards)} shards that its manifest names are missing, the first is "
            f"{missing[0]}. Copy it again or preprocess again."
        )
    return Manifest(get_mode(value["mode"]), value["settings"], value["recordings"], shards, value["failures"])


def read_segments(paths: list[Path], mode: Mode) -> Iterator[Segment]:
    """Yield the segments of tars in their order.

    Raises:
        ValueError: an entry of another mode, damaged, or whose frames are not those its JSON tells of.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    # WebDataset's own way from path to tar never closes a file. Which rank and worker reads which shard is the
    # caller's matter.
    for path in paths:
        with path.open("rb") as file:
            try:
                for entry in group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])):
                    yield _read_entry(entry, mode, f"{path}: {entry['__key__']}")
            except tarfile.TarError as error:
                raise _damaged(path, error) from None


def index_entries(path: Path) -> np.ndarray:
    """Return where a tar's entries lie, int64 (entries, 4): first byte and length of the .c2, then of the .json.

    With it `read_entries` begins anywhere; WebDataset reads a tar from its first byte on.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    except tarfile.TarError as error:
        raise _damaged(path, error) from None
    keys = dict.fromkeys(name.partition(".")[0] for name in members)
    try:
        places = [(*members[f"{key}.c2"], *members[f"{key}.json"]) for key in keys]
    except KeyError as missing:
        raise ValueError(f"{path} lacks {missing}: the shard is damaged.") from None
    return np.array(places, np.int64).reshape(-1, 4)


def read_entries(path: Path, places: np.ndarray, mode: Mode) -> Iterator[Segment]:
    """Yield a tar's entries that lie at these places, a part of what `index_entries` returned; raises as it."""
    with path.open("rb") as file:
        for first, length, json_first, json_length in places.tolist():
            file.seek(first)
            entry = {"c2": file.read(length)}
            file.seek(json_first)
            yield _read_entry({**entry, "json": file.read(json_length)}, mode, f"{path}, byte {first}")


def _damaged(path: Path, error: tarfile.TarError) -> ValueError:
    return ValueError(f"{path} is damaged: {error.args[0]}. Copy it again or preprocess again.")


def _read_entry(entry: dict[str, Any], mode: Mode, where: str) -> Segment:
    if not {"c2", "json"} <= entry.keys():
        raise ValueError(f"{where} lacks its .c2 or its .json: the shard is damaged.")
    packets, found = parse_c2(entry["c2"], where)
    if found != mode:
        raise ValueError(f"{where} is of mode {found.name}, the manifest says {mode.name}: preprocess again.")
    about = json.loads(entry["json"])
    frames = unpack_packets(packets, mode)
    if len(frames) != about["frames"]:
        raise ValueError(f"{where} has {len(frames)} frames, its JSON says {about['frames']}: it is damaged.")
    check_levels(frames, mode, where)
    return Segment(about["recording"], about["first_frame"], frames)


def read_recordings(folder: Path, manifest: Manifest, split: str) -> list[Segment]:
    """Return the recordings of a split, or the parts of them that are in it, whole and in manifest order.

    Raises:
        ValueError: as `read_segments`, a split that is none of `SPLITS`, or frames missing between two segments.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}.")
    paths = [folder / shard.name for shard in manifest.shards if shard.split == split]
    joined: list[list[Segment]] = []
    for segment in read_segments(paths, manifest.mode) if paths else ():
        before = joined[-1][-1] if joined else None
        if before and before.recording == segment.recording:
            if segment.first_frame != before.first_frame + len(before.frames):
                raise ValueError(
                    f"{folder}: recording {segment.recording} goes from frame "
                    f"{before.first_frame + len(before.frames)} to {segment.first_frame}: a shard is missing or out "
                    "of order."
                )
            joined[-1].append(segment)
        else:
            joined.append([segment])
    return [
        Segment(parts[0].recording, parts[0].first_frame, np.concatenate([part.frames for part in parts]))
        for parts in joined
    ]
