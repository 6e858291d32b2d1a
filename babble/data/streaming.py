"""Frames straight from the shards, for training splits larger than memory.

1. `find_segments` computes from the manifest alone which consecutive entries of each shard belong to one recording.
   These segments take the place of whole recordings: neither windows nor streams cross two of them.
2. `ShardFrames` reads any frames of these segments, entry by entry, and keeps the entries that it used last.
3. `sample_recordings` reads a sample of a split, for the baselines.
"""

import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from babble.codec.frames import Mode
from babble.data.shards import SEGMENT_FRAMES, Manifest, Segment, damaged_shard, parse_entry, read_segments

# Frames of a split that the baselines are measured on if it is not held: 55 hours in the 40 ms modes.
SAMPLE_FRAMES = 5_000_000


@dataclass(frozen=True)
class ShardSegment:
    """Consecutive entries of one shard that belong to one recording.

    Attributes:
        shard: index of the shard among those of its split.
        first_entry: index of the first entry in the shard.
        frames: number of frames in all entries together; each entry but the last holds `SEGMENT_FRAMES`.
    """

    shard: int
    first_entry: int
    frames: int


def find_segments(manifest: Manifest, split: str) -> list[ShardSegment]:
    """Return the segments of a split in reading order, from the manifest alone.

    Raises:
        ValueError: its recordings and its shards contradict each other.
    """
    shards = [shard for shard in manifest.shards if shard.split == split]
    segments: list[ShardSegment] = []
    shard, entry = 0, 0
    for frames in manifest.split_lengths(split):
        while frames:
            if shard == len(shards):
                raise ValueError(
                    f"the manifest's {split} recordings are longer than its shards: preprocess to a new folder."
                )
            taken = min(frames, (shards[shard].entries - entry) * SEGMENT_FRAMES)
            segments.append(ShardSegment(shard, entry, taken))
            frames -= taken
            entry += -(-taken // SEGMENT_FRAMES)
            if entry == shards[shard].entries:
                shard, entry = shard + 1, 0
    counted = np.bincount([s.shard for s in segments], [s.frames for s in segments], len(shards))
    if not np.array_equal(counted, [facts.frames for facts in shards]):
        raise ValueError(f"the manifest's {split} recordings do not match its shards: preprocess to a new folder.")
    return segments


def sample_recordings(folder: Path, manifest: Manifest, split: str) -> list[Segment]:
    """Return the entries of shards spread evenly over a split, about `SAMPLE_FRAMES` frames or all of them."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    mean_frames = sum(shard.frames for shard in shards) / len(shards)
    wanted = min(len(shards), max(1, round(SAMPLE_FRAMES / mean_frames)))
    chosen = np.linspace(0, len(shards) - 1, wanted).round().astype(int)
    return list(read_segments([folder / shards[n].name for n in chosen], manifest.mode))


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
        paths: the shards of the split.
        segments: where recordings lie in them.
        mode: the mode of all frames.
        max_entries: how many entries to keep in memory; at least those that one batch reads.
    """

    def __init__(self, paths: list[Path], segments: list[ShardSegment], mode: Mode, max_entries: int) -> None:
        self.paths, self.segments, self.mode, self.max_entries = paths, segments, mode, max_entries
        self.ends = np.cumsum([segment.frames for segment in segments])
        # Frames by (shard, entry), least recently used first; and where the entries of each opened shard lie.
        self.entries: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.index: dict[int, np.ndarray] = {}

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return `num_frames` frames from each start on, int16 (B, num_frames, F).

        Raises:
            ValueError: a shard is damaged or holds less than its manifest says.
        """
        frames_BTF = np.empty((len(starts_B), num_frames, self.mode.num_fields), np.int16)
        numbers_B = np.searchsorted(self.ends, starts_B, side="right")
        for frames_TF, number, start in zip(frames_BTF, numbers_B.tolist(), starts_B.tolist(), strict=True):
            segment = self.segments[number]
            entry, first = divmod(start - int(self.ends[number]) + segment.frames, SEGMENT_FRAMES)
            done = 0
            while done < num_frames:
                found = self._entry(segment, entry)[first : first + num_frames - done]
                frames_TF[done : done + len(found)] = found
                done, entry, first = done + len(found), entry + 1, 0
        return frames_BTF

    def _entry(self, segment: ShardSegment, number: int) -> np.ndarray:
        """Return the frames of one entry of a segment, from memory if it was used lately."""
        key = (segment.shard, segment.first_entry + number)
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        path = self.paths[segment.shard]
        if segment.shard not in self.index:
            self.index[segment.shard] = index_entries(path)
        locations = self.index[segment.shard]
        frames = read_entry(path, locations[key[1]], self.mode).frames if key[1] < len(locations) else np.empty(0)
        if len(frames) != min(SEGMENT_FRAMES, segment.frames - number * SEGMENT_FRAMES):
            raise ValueError(
                f"{path}: entry {key[1]} has {len(frames)} frames, which its manifest contradicts: copy the shards "
                "again, or preprocess to a new folder."
            )
        self.entries[key] = frames
        if len(self.entries) > self.max_entries:
            self.entries.popitem(last=False)
        return frames
