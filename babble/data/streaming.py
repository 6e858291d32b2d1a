"""Frames straight from the shards, for training splits larger than memory.

1. `find_segments` computes from the manifest alone which consecutive entries of each shard belong to one recording.
   These segments take the place of whole recordings: neither windows nor streams cross two of them.
2. `ShardFrames` reads any frames of these segments, entry by entry, and keeps the entries that it used last.
3. `sample_recordings` reads a sample of a split, for the baselines.
"""

import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from babble.codec.frames import Mode
from babble.data.shards import SEGMENT_FRAMES, Manifest, Segment, damaged_shard, parse_entry, read_segments

# Frames of a split that the baselines are measured on if it is not held: 55 hours in the 40 ms modes.
SAMPLE_FRAMES = 5_000_000


@dataclass(frozen=True, eq=False)
class ShardSegments:
    """Segments of a split in reading order: consecutive entries of one shard that belong to one recording.

    Arrays, as a corpus of 60,000 hours has 170,000 of them.

    Attributes:
        shards: index of the shard of each among those of its split, int64 (N,), never decreasing.
        first_entries: index of its first entry in the shard, int64 (N,).
        frames: number of frames in all its entries together, int64 (N,); each entry but the last holds
            `SEGMENT_FRAMES`.
    """

    shards: np.ndarray
    first_entries: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.shards)


def find_segments(manifest: Manifest, split: str) -> ShardSegments:
    """Return the segments of a split in reading order, from the manifest alone.

    Raises:
        ValueError: its recordings and its shards contradict each other.
    """
    lengths = np.array(manifest.split_lengths(split), np.int64)
    shards = [shard for shard in manifest.shards if shard.split == split]
    # Entries are counted through the split. A segment begins where a recording or a shard does.
    recording_ends = np.cumsum(-(-lengths // SEGMENT_FRAMES))
    recording_begins = recording_ends + lengths // -SEGMENT_FRAMES
    shard_entries = np.array([shard.entries for shard in shards], np.int64)
    shard_ends = np.cumsum(shard_entries)
    shard_begins = shard_ends - shard_entries
    num_entries = int(recording_ends[-1]) if len(lengths) else 0
    if num_entries > shard_entries.sum():
        raise ValueError(f"the manifest's {split} recordings are longer than its shards: preprocess to a new folder.")
    is_begin = np.zeros(num_entries, bool)
    for places in (recording_begins, shard_begins):
        is_begin[places[places < num_entries]] = True
    begins = np.flatnonzero(is_begin)
    ends = np.append(begins[1:], num_entries)[: len(begins)]
    recording = np.searchsorted(recording_ends, begins, side="right")
    shard = np.searchsorted(shard_ends, begins, side="right")
    before = (begins - recording_begins[recording]) * SEGMENT_FRAMES
    frames = np.minimum(lengths[recording] - before, (ends - begins) * SEGMENT_FRAMES)
    if not np.array_equal(np.bincount(shard, frames, len(shards)), [facts.frames for facts in shards]):
        raise ValueError(f"the manifest's {split} recordings do not match its shards: preprocess to a new folder.")
    return ShardSegments(shard, begins - shard_begins[shard], frames)


def sample_recordings(folder: Path, manifest: Manifest, split: str) -> Iterator[Segment]:
    """Yield the entries of shards spread evenly over a split, about `SAMPLE_FRAMES` frames or all of them."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    mean_frames = sum(shard.frames for shard in shards) / len(shards)
    wanted = min(len(shards), max(1, round(SAMPLE_FRAMES / mean_frames)))
    chosen = np.linspace(0, len(shards) - 1, wanted).round().astype(int)
    return read_segments([folder / shards[n].name for n in chosen], manifest.mode)


def index_entries(path: Path) -> np.ndarray:
    """Return where the entries of a tar lie, int64 (entries, 4): offset and length of the .c2, then of the .json.

    With it `read_entry` reads any entry; WebDataset reads a tar from its first byte on.

    Raises:
        ValueError: the tar is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    except tarfile.TarError as error:
        raise damaged_shard(path, error) from None
    keys = dict.fromkeys(name.partition(".")[0] for name in members)
    try:
        locations = [(*members[f"{key}.c2"], *members[f"{key}.json"]) for key in keys]
    except KeyError as missing:
        raise ValueError(f"{path} lacks {missing}: the shard is damaged.") from None
    return np.array(locations, np.int64).reshape(-1, 4)


def read_entry(path: Path, location: np.ndarray, mode: Mode) -> Segment:
    """Return the entry of a tar at one row of `index_entries`; raises as `read_segments`."""
    offset, length, json_offset, json_length = location.tolist()
    with path.open("rb") as file:
        file.seek(offset)
        packets = file.read(length)
        file.seek(json_offset)
        return parse_entry({"c2": packets, "json": file.read(json_length)}, mode, f"{path}, byte {offset}")


class ShardFrames:
    """Frames of segments placed end to end, read from shards as they are needed.

    Args:
        folder: the folder of shards.
        names: the shards of the split.
        segments: where recordings lie in them.
        mode: the mode of all frames.
        max_entries: how many entries to keep in memory; at least those that one batch reads.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], segments: ShardSegments, mode: Mode, max_entries: int
    ) -> None:
        self.folder, self.names, self.segments, self.mode, self.max_entries = folder, names, segments, mode, max_entries
        self.ends = np.cumsum(segments.frames)
        # Least recently used first: frames by (shard, entry), and where the entries of a shard lie.
        self.entries: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.index: OrderedDict[int, np.ndarray] = OrderedDict()

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return `num_frames` frames from each start on, int16 (B, num_frames, F).

        Raises:
            ValueError: a shard is damaged or holds less than its manifest says.
        """
        frames_BTF = np.empty((len(starts_B), num_frames, self.mode.num_fields), np.int16)
        numbers_B = np.searchsorted(self.ends, starts_B, side="right")
        for frames_TF, number, start in zip(frames_BTF, numbers_B.tolist(), starts_B.tolist(), strict=True):
            entry, first = divmod(start - int(self.ends[number] - self.segments.frames[number]), SEGMENT_FRAMES)
            done = 0
            while done < num_frames:
                found = self._entry(number, entry)[first : first + num_frames - done]
                frames_TF[done : done + len(found)] = found
                done, entry, first = done + len(found), entry + 1, 0
        return frames_BTF

    def _entry(self, segment: int, number: int) -> np.ndarray:
        """Return the frames of one entry of a segment, from memory if it was used lately."""
        shard = int(self.segments.shards[segment])
        key = (shard, int(self.segments.first_entries[segment]) + number)
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        path = self.folder / self.names[shard]
        locations = self._locations(shard, path)
        frames = read_entry(path, locations[key[1]], self.mode).frames if key[1] < len(locations) else np.empty(0)
        if len(frames) != min(SEGMENT_FRAMES, int(self.segments.frames[segment]) - number * SEGMENT_FRAMES):
            raise ValueError(
                f"{path}: entry {key[1]} has {len(frames)} frames, which its manifest contradicts: copy the shards "
                "again, or preprocess to a new folder."
            )
        self.entries[key] = frames
        if len(self.entries) > self.max_entries:
            self.entries.popitem(last=False)
        return frames

    def _locations(self, shard: int, path: Path) -> np.ndarray:
        """Return where the entries of a shard lie, from memory if it was used lately."""
        if shard not in self.index:
            self.index[shard] = index_entries(path)
            # One per entry held is enough; those of all 70,000 shards of a large corpus would be 130 MB.
            if len(self.index) > self.max_entries:
                self.index.popitem(last=False)
        self.index.move_to_end(shard)
        return self.index[shard]
