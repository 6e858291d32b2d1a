"""Windows and streams straight from the shards, for corpora that memory does not hold.

1. `find_spans` computes from the manifest alone which consecutive entries of each shard are of one recording: a span.
   Spans take the place of recordings; neither windows nor streams go across two of them.
2. `ShardWindowLoader` draws the order of the shards for each pass, gives every rank a segment of that order, and
   shuffles the windows of a few shards at a time: those few are all that is in memory.
3. `ShardStreams` is a `StreamLoader`'s source: every row reads its span entry by entry and holds one at a time.

Both start anywhere without reading what lies before, so a resumed run goes on at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from babble.codec.frames import Mode
from babble.data.loaders import SHUFFLE_SHARDS, Batch, DataConfig, Loader, window_starts
from babble.data.shards import SEGMENT_FRAMES, Manifest, Segment, index_entries, read_entries, read_segments

# A training split that is not held is known to the baselines by so many frames, 55 hours in the 40 ms modes.
SAMPLE_FRAMES = 5_000_000


@dataclass(frozen=True)
class Span:
    """Consecutive entries of one shard that are of one recording.

    Attributes:
        shard: the shard's place among those of its split.
        first_entry: the first one's place in the shard.
        frames: how many they hold together; all entries but the last hold `SEGMENT_FRAMES`.
    """

    shard: int
    first_entry: int
    frames: int


def find_spans(manifest: Manifest, split: str) -> list[Span]:
    """Return the spans of a split in reading order, from what the manifest says alone.

    Raises:
        ValueError: its recordings and its shards contradict each other.
    """
    parts = [recording["frames"] for recording in manifest.recordings if recording["split"] == split]
    shards = [shard for shard in manifest.shards if shard.split == split]
    spans: list[Span] = []
    shard, entry = 0, 0
    for frames in parts:
        while frames:
            if shard == len(shards):
                raise ValueError(f"the manifest's {split} recordings are longer than its shards: preprocess again.")
            taken = min(frames, (shards[shard].entries - entry) * SEGMENT_FRAMES)
            spans.append(Span(shard, entry, taken))
            frames -= taken
            entry += -(-taken // SEGMENT_FRAMES)
            if entry == shards[shard].entries:
                shard, entry = shard + 1, 0
    counted = np.bincount([span.shard for span in spans], [span.frames for span in spans], len(shards))
    if not np.array_equal(counted, [facts.frames for facts in shards]):
        raise ValueError(f"the manifest's {split} recordings are not what its shards hold: preprocess again.")
    return spans


def sample_recordings(folder: Path, manifest: Manifest, split: str) -> list[Segment]:
    """Return segments of shards spread evenly over a split, `SAMPLE_FRAMES` frames of them or all."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    mean_frames = sum(shard.frames for shard in shards) / len(shards)
    wanted = min(len(shards), max(1, round(SAMPLE_FRAMES / mean_frames)))
    chosen = np.linspace(0, len(shards) - 1, wanted).round().astype(int)
    return list(read_segments([folder / shards[n].name for n in chosen], manifest.mode))


class ShardStreams:
    """Frames of spans, thought of as laid end to end, for rows that each read on where they stopped.

    Args:
        paths: the shards of the split.
        spans: where recordings lie in them.
        mode: the mode of all.
    """

    def __init__(self, paths: list[Path], spans: list[Span], mode: Mode) -> None:
        self.paths, self.spans, self.mode = paths, spans, mode
        self.firsts = np.cumsum([0] + [span.frames for span in spans[:-1]])
        self.rows: dict[int, _Row] = {}
        # Where a shard's entries lie, once it was looked at: a shard has many recordings, each opened by itself.
        self.entries: dict[int, np.ndarray] = {}

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return num_frames frames from each start on, int16 (B, num_frames, F)."""
        numbers_B = np.searchsorted(self.firsts, starts_B, side="right") - 1
        places = zip(numbers_B.tolist(), (starts_B - self.firsts[numbers_B]).tolist(), strict=True)
        frames_BTF = np.empty((len(starts_B), num_frames, self.mode.num_fields), np.int16)
        for row, (number, first) in enumerate(places):
            reader = self.rows.get(row)
            if reader is None or reader.number != number or not reader.reaches(first):
                reader = self.rows[row] = self._open(number, first)
            frames_BTF[row] = reader.read(first, num_frames)
        return frames_BTF

    def _open(self, number: int, first: int) -> "_Row":
        span = self.spans[number]
        skipped = first // SEGMENT_FRAMES
        path = self.paths[span.shard]
        if span.shard not in self.entries:
            self.entries[span.shard] = index_entries(path)
        segments = read_entries(path, self.entries[span.shard][span.first_entry + skipped :], self.mode)
        return _Row(number, skipped * SEGMENT_FRAMES, segments, self.mode)


class _Row:
    """One row of a batch: reads one span from an entry on, and holds what it needs of it."""

    def __init__(self, number: int, first: int, segments: Iterator[Segment], mode: Mode) -> None:
        self.number, self.first, self.segments = number, first, segments
        self.frames = np.empty((0, mode.num_fields), mode.dtype)

    def reaches(self, first: int) -> bool:
        return self.first <= first <= self.first + len(self.frames)

    def read(self, first: int, num_frames: int) -> np.ndarray:
        while self.first + len(self.frames) < first + num_frames:
            following = next(self.segments, None)
            if following is None:
                raise ValueError("a shard ends before its manifest says: copy it again or preprocess again.")
            kept = self.frames[first - self.first :]
            self.first += len(self.frames) - len(kept)
            self.frames = np.concatenate([kept, following.frames])
        start = first - self.first
        return self.frames[start : start + num_frames]


class ShardWindowLoader(Loader):
    """Batches of windows from a few shards at a time, each heard from a fresh state; see `Loader` for the rest.

    Every rank reads its own segment of the shards' order, so the order depends on how many ranks there are. What does
    not fill a step of all ranks is left out of that pass.

    Args:
        paths: the shards of the split.
        spans: where recordings lie in them.
        mode: the mode of all.
        config, seed, rank, ranks: as `Loader`.
    """

    def __init__(
        self, paths: list[Path], spans: list[Span], mode: Mode, config: DataConfig, *args: Any, **kwargs: Any
    ) -> None:
        self.paths, self.mode, self.config = paths, mode, config
        self.lengths: list[list[int]] = [[] for _ in paths]
        for span in spans:
            self.lengths[span.shard].append(span.frames)
        super().__init__([span.frames for span in spans], config, *args, **kwargs)
        self._pass_number, self._place = -1, (-1, -1)
        self._groups: list[list[tuple[int, int, int]]] = []
        self._ends = self._frames = self._starts = np.empty(0, np.int64)

    def _cut(self, lengths: list[int], config: DataConfig) -> int:
        self.windows = np.array([len(self._starts_in(shard)) for shard in range(len(self.paths))])
        num_windows = int(self.windows.sum())
        self.batches_per_pass = num_windows // (self.batch_size * self.ranks)
        return num_windows

    def _starts_in(self, shard: int) -> np.ndarray:
        return window_starts(self.lengths[shard], self.window_frames, self.config.frames_between_windows)

    def _read_batch(self, number: int) -> Batch:
        pass_number, step = divmod(number, self.batches_per_pass)
        if pass_number != self._pass_number:
            self._pass_number, (self._groups, self._ends) = pass_number, self._plan(pass_number)
        places = step * self.batch_size + np.arange(self.batch_size)
        nth = np.searchsorted(self._ends, places, side="right")
        frames = []
        for group in np.unique(nth):
            self._open(pass_number, int(group))
            before = self._ends[group - 1] if group else 0
            starts = self._starts[places[nth == group] - before]
            frames.append(self._frames[starts[:, None] + np.arange(self.window_frames + 1)])
        return Batch(torch.from_numpy(np.concatenate(frames)), torch.ones(self.batch_size, dtype=torch.bool))

    def _plan(self, pass_number: int) -> tuple[list[list[tuple[int, int, int]]], np.ndarray]:
        """Return this rank's groups of (shard, first window, behind the last), and how many windows end with each."""
        order = np.random.default_rng([self.seed, pass_number]).permutation(len(self.paths))
        share = self.batches_per_pass * self.batch_size
        ends = self.windows[order].cumsum()
        parts = []
        for shard, end in zip(order, ends, strict=True):
            begin = end - self.windows[shard]
            first, last = max(begin, self.rank * share) - begin, min(end, (self.rank + 1) * share) - begin
            if first < last:
                parts.append((int(shard), int(first), int(last)))
        size = self.config.shuffle_shards or SHUFFLE_SHARDS
        groups = [parts[n : n + size] for n in range(0, len(parts), size)]
        return groups, np.cumsum([sum(last - first for _, first, last in group) for group in groups])

    def _open(self, pass_number: int, number: int) -> None:
        """Read a group of shards, unless it is the open one, and shuffle its windows."""
        if self._place == (pass_number, number):
            return
        self._frames = np.empty(0, np.int64)  # The last group goes before the next one comes.
        frames, starts, offset = [], [], 0
        for shard, first, last in self._groups[number]:
            segments = list(read_segments([self.paths[shard]], self.mode))
            frames += [segment.frames for segment in segments]
            starts.append(offset + self._starts_in(shard)[first:last])
            offset += sum(len(segment.frames) for segment in segments)
        rng = np.random.default_rng([self.seed, pass_number, self.rank, number])
        self._frames, self._starts = np.concatenate(frames, dtype=np.int16), rng.permutation(np.concatenate(starts))
        self._place = (pass_number, number)
