"""Which frames each training batch reads: windows or stream chunks in an order fixed by a seed, split over ranks.

1. `WindowPlan`: shuffled windows of the whole training split, as in the 2017 study.
2. `ShardWindowPlan`: shuffled windows of a few shards at a time, for splits larger than memory.
3. `StreamPlan`: consecutive chunks of speech; every row of a batch continues its row of the previous batch.

A plan is immutable. The batch of a given number depends on the plan and that number alone, so training resumes at any
batch. Start frames are counted through all segments of the split, placed end to end; no window or chunk crosses the
border of a segment. A window or chunk of n frames is read with one frame more, the target of its last step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np


class Rows(NamedTuple):
    """The rows of one batch.

    Attributes:
        starts: first frame of each row, int64 (B,).
        is_fresh: whether each row starts from a fresh recurrent state, bool (B,); if not, it continues the same row of
            the previous batch.
    """

    starts: np.ndarray
    is_fresh: np.ndarray


@dataclass(frozen=True)
class Share:
    """The share of every step that one process takes.

    Attributes:
        batch_size: rows per step of each process.
        seed: fixes the order, together with the number of the pass.
        rank: number of this process.
        world_size: number of processes.
    """

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def step_size(self) -> int:
        """Rows per step of all processes together."""
        return self.batch_size * self.world_size


class Plan(Protocol):
    """An order of batches without end."""

    @property
    def share(self) -> Share:
        """The process that the batches are for."""
        ...

    @property
    def num_windows(self) -> int:
        """Windows or chunks in one pass over the split, of all processes together."""
        ...

    def batches(self, first: int) -> Iterator[Rows]:
        """Yield the batches of this process from number `first` on, pass after pass."""
        ...


def window_starts(lengths: Sequence[int] | np.ndarray, window_frames: int, hop_frames: int) -> np.ndarray:
    """Return where windows start in segments placed end to end, int64 (N,).

    Args:
        lengths: frames of each segment.
        window_frames: steps per window; it needs one frame more, the last target.
        hop_frames: distance between the starts of two windows.
    """
    starts, offset = [np.empty(0, np.int64)], 0
    for length in np.asarray(lengths).tolist():
        starts.append(offset + np.arange(0, length - window_frames, hop_frames))
        offset += length
    return np.concatenate(starts)


def count_windows(lengths: np.ndarray, window_frames: int, hop_frames: int) -> np.ndarray:
    """Return how many windows `window_starts` finds in each segment, int64 (N,)."""
    return np.maximum(0, -((window_frames - lengths) // hop_frames))


def count_chunks(lengths: Sequence[int] | np.ndarray, chunk_frames: int) -> np.ndarray:
    """Return how many chunks a stream takes from each segment, int64 (N,), wherever in its first chunk it starts.

    A segment long enough for only one chunk gives that one; a shorter one gives none.
    """
    frames = np.array(lengths, np.int64)
    return np.maximum((frames - chunk_frames) // chunk_frames, np.minimum(1, (frames - 1) // chunk_frames))


@dataclass(frozen=True)
class WindowPlan:
    """Windows of the whole split, shuffled anew in each pass; each starts from a fresh state.

    A pass that is not a whole number of steps ends in the middle of one; the next pass continues there.

    Attributes:
        lengths: frames of each segment.
        window_frames: steps per window.
        hop_frames: distance between the starts of two windows.
        share: the process that the batches are for.
    """

    lengths: Sequence[int] | np.ndarray
    window_frames: int
    hop_frames: int
    share: Share

    @cached_property
    def _starts(self) -> np.ndarray:
        return window_starts(self.lengths, self.window_frames, self.hop_frames)

    @property
    def num_windows(self) -> int:
        """Windows in one pass."""
        return len(self._starts)

    def batches(self, first: int) -> Iterator[Rows]:
        """Yield the batches of this process from number `first` on, pass after pass."""
        size, seed = self.share.batch_size, self.share.seed

        @lru_cache(maxsize=1)
        def order_of(pass_number: int) -> np.ndarray:
            return np.random.default_rng([seed, pass_number]).permutation(self.num_windows)

        for number in count(first):
            begin = number * self.share.step_size + self.share.rank * size
            passes, positions = np.divmod(np.arange(begin, begin + size), self.num_windows)
            windows = [order_of(int(p))[positions[passes == p]] for p in np.unique(passes)]
            yield Rows(self._starts[np.concatenate(windows)], np.ones(size, bool))


@dataclass(frozen=True)
class ShardWindowPlan:
    """Windows of a few shards at a time; each starts from a fresh state.

    A pass shuffles the shards, gives each process a consecutive part of that order with the same number of windows,
    and shuffles the windows of `shuffle_shards` shards at a time. What does not fill a step of all processes is left
    out of that pass. The order depends on the number of processes.

    Attributes:
        lengths: frames of each segment, int64 (N,).
        shards: index of the shard of each segment, int64 (N,), from 0 on, never decreasing.
        window_frames: steps per window.
        hop_frames: distance between the starts of two windows.
        shuffle_shards: number of shards whose windows are shuffled together.
        share: the process that the batches are for.
    """

    lengths: np.ndarray
    shards: np.ndarray
    window_frames: int
    hop_frames: int
    shuffle_shards: int
    share: Share

    @cached_property
    def _ends(self) -> np.ndarray:
        """One past the last frame of each segment."""
        return np.cumsum(self.lengths)

    @cached_property
    def _windows_by_shard(self) -> np.ndarray:
        counts = count_windows(self.lengths, self.window_frames, self.hop_frames)
        return np.bincount(self.shards, counts).astype(np.int64)

    def _starts_in(self, shard: int) -> np.ndarray:
        first, last = np.searchsorted(self.shards, [shard, shard + 1])
        offset = self._ends[first] - self.lengths[first]
        return offset + window_starts(self.lengths[first:last], self.window_frames, self.hop_frames)

    @property
    def num_windows(self) -> int:
        """Windows in one pass of all processes, with those that are left out of it."""
        return int(self._windows_by_shard.sum())

    def batches(self, first: int) -> Iterator[Rows]:
        """Yield the batches of this process from number `first` on, pass after pass."""
        size = self.share.batch_size
        first_pass, step = divmod(first, self.num_windows // self.share.step_size)
        for pass_number in count(first_pass):
            waiting = np.empty(0, np.int64)
            for starts in self._groups(pass_number, step * size):
                waiting = np.concatenate([waiting, starts])
                while len(waiting) >= size:
                    yield Rows(waiting[:size], np.ones(size, bool))
                    waiting = waiting[size:]
            step = 0

    def _groups(self, pass_number: int, skipped: int) -> Iterator[np.ndarray]:
        """Yield the starts of this process in one pass, group of shards by group, without the first `skipped`."""
        parts = self._parts(pass_number)
        for number, begin in enumerate(range(0, len(parts), self.shuffle_shards)):
            group = parts[begin : begin + self.shuffle_shards]
            size = sum(last - first for _, first, last in group)
            if skipped < size:
                starts = np.concatenate([self._starts_in(shard)[first:last] for shard, first, last in group])
                rng = np.random.default_rng([self.share.seed, pass_number, self.share.rank, number])
                yield rng.permutation(starts)[skipped:]
            skipped = max(0, skipped - size)

    def _parts(self, pass_number: int) -> list[tuple[int, int, int]]:
        """Return what this process reads in one pass: (shard, its first window, one past its last)."""
        order = np.random.default_rng([self.share.seed, pass_number]).permutation(len(self._windows_by_shard))
        share = self.num_windows // self.share.step_size * self.share.batch_size
        begin, end = self.share.rank * share, (self.share.rank + 1) * share
        windows = self._windows_by_shard[order]
        begins = np.cumsum(windows) - windows
        firsts, lasts = np.maximum(begin - begins, 0), np.minimum(end - begins, windows)
        mine = firsts < lasts
        return list(zip(order[mine].tolist(), firsts[mine].tolist(), lasts[mine].tolist(), strict=True))


@dataclass(frozen=True)
class StreamPlan:
    """Chunks of contiguous speech: each row of a batch continues the same row of the previous batch.

    A pass cuts every segment into chunks from a random first frame on, shuffles the segments, and gives the chunks, in
    that order and from a random one on, to the rows of all processes: equal shares, each contiguous except where a
    segment ends. What does not fill a step of all processes is left out of that pass.

    Attributes:
        lengths: frames of each segment.
        chunk_frames: steps per chunk.
        share: the process that the batches are for.
    """

    lengths: Sequence[int] | np.ndarray
    chunk_frames: int
    share: Share

    @cached_property
    def _chunks(self) -> np.ndarray:
        """Chunks of each segment."""
        return count_chunks(self.lengths, self.chunk_frames)

    @property
    def num_windows(self) -> int:
        """Chunks in one pass of all processes, with those that are left out of it."""
        return int(self._chunks.sum())

    def batches(self, first: int) -> Iterator[Rows]:
        """Yield the batches of this process from number `first` on, pass after pass."""
        size, rank = self.share.batch_size, self.share.rank
        steps_per_pass = self.num_windows // self.share.step_size
        positions = (rank * size + np.arange(size)) * steps_per_pass
        first_pass, step = divmod(first, steps_per_pass)
        for pass_number in count(first_pass):
            order = self._order(pass_number)
            while step < steps_per_pass:
                starts = order.starts_of(positions + step)
                # Fresh: the first chunk of a row in a pass, and a chunk that does not follow the one before it.
                follows = starts == order.starts_of(positions + step - 1) + self.chunk_frames
                yield Rows(starts, ~follows if step else np.ones(size, bool))
                step += 1
            step = 0

    def _order(self, pass_number: int) -> "_StreamOrder":
        rng = np.random.default_rng([self.share.seed, pass_number])
        lengths = np.asarray(self.lengths)
        # How late the first chunk of a segment may start.
        spare = np.minimum(self.chunk_frames - 1, lengths - 1 - self._chunks * self.chunk_frames).clip(min=0)
        firsts = np.cumsum(lengths) - lengths + rng.integers(0, spare + 1)
        segments = rng.permutation(len(lengths))
        first_chunk = int(rng.integers(self.num_windows))
        return _StreamOrder(firsts[segments], self._chunks[segments], first_chunk, self.chunk_frames)


@dataclass(frozen=True)
class _StreamOrder:
    """The chunks of one pass: a few numbers per segment, however many chunks it has.

    Attributes:
        firsts: first frame of the first chunk of each segment, in the order of the pass.
        chunks: chunks of each segment, in the same order.
        first_chunk: the chunk that the pass starts with.
        chunk_frames: steps per chunk.
    """

    firsts: np.ndarray
    chunks: np.ndarray
    first_chunk: int
    chunk_frames: int

    @cached_property
    def _ends(self) -> np.ndarray:
        return self.chunks.cumsum()

    def starts_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the first frames of the chunks at these positions of the pass."""
        chunks = (positions + self.first_chunk) % self._ends[-1]
        nth = np.searchsorted(self._ends, chunks, side="right")
        return self.firsts[nth] + self.chunk_frames * (chunks - self._ends[nth] + self.chunks[nth])
