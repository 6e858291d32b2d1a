"""Orders of windows and streams: what a pass contains, how ranks share it, and that it resumes anywhere."""

from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import pytest

from babble.data.plans import Plan, Rows, ShardWindowPlan, Share, StreamPlan, WindowPlan, window_starts

LENGTHS = [50, 4, 37, 12, 5]
CHUNK = 4
# Frames of the segments in each of five shards.
BY_SHARD = [[40, 21], [3], [64], [33, 8, 30], [25]]


def make_windows(num_windows: int, batch: int, rank: int = 0, world_size: int = 1) -> WindowPlan:
    """Windows of two frames, numbered by their first frame."""
    return WindowPlan([num_windows + 1], 1, 1, Share(batch, 7, rank, world_size))


def make_shard_windows(batch: int, rank: int = 0, world_size: int = 1) -> ShardWindowPlan:
    shards = np.repeat(np.arange(len(BY_SHARD)), [len(lengths) for lengths in BY_SHARD])
    return ShardWindowPlan(np.concatenate(BY_SHARD), shards, 4, 2, 2, Share(batch, 7, rank, world_size))


def make_streams(batch: int, rank: int = 0, world_size: int = 1) -> StreamPlan:
    return StreamPlan(LENGTHS, CHUNK, Share(batch, 7, rank, world_size))


def take(plan: Plan, num_batches: int, first: int = 0) -> list[Rows]:
    return list(islice(plan.batches(first), num_batches))


def list_starts(rows: list[Rows]) -> list[int]:
    return np.concatenate([row.starts for row in rows]).tolist()


def test_windows_start_every_hop_and_never_cross_recordings() -> None:
    starts = window_starts([10, 3, 9], window_frames=4, hop_frames=2)
    assert starts.tolist() == [0, 2, 4, 13, 15, 17]
    lengths = [10, 3, 9]
    ends = np.repeat(np.cumsum(lengths), lengths)
    assert all(ends[start] == ends[start + 4] for start in starts)


def test_the_same_seed_gives_the_same_order_as_ever() -> None:
    # Resumed runs and comparisons between runs depend on these orders.
    assert list_starts(take(make_windows(10, 4), 4)) == [8, 0, 7, 1, 3, 6, 2, 4, 5, 9, 9, 0, 8, 6, 7, 1]
    shard_windows = list_starts(take(make_shard_windows(4, rank=1, world_size=2), 4))
    assert shard_windows == [54, 44, 48, 209, 42, 205, 213, 219, 201, 217, 203, 199, 46, 40, 215, 56]
    streams = take(make_streams(3), 4)
    assert list_starts(streams) == [7, 35, 60, 11, 39, 64, 15, 43, 68, 19, 103, 72]
    assert [(~rows.is_fresh).tolist() for rows in streams] == [3 * [False], 3 * [True], 3 * [True], [True, False, True]]


def test_a_pass_contains_every_window_once_in_its_own_order() -> None:
    rows = take(make_windows(24, 4), 12)
    first, second = list_starts(rows[:6]), list_starts(rows[6:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert all(row.is_fresh.all() for row in rows)
    # 26 windows are not a whole number of batches: the rest opens the next pass.
    assert sorted(list_starts(take(make_windows(26, 4), 13))) == sorted(2 * list(range(26)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_order(world_size: int) -> None:
    def read(make_plan: Callable[[int, int, int], Plan], rank: int, world_size: int) -> list[Rows]:
        return take(make_plan(6 // world_size, rank, world_size), 8)

    for make_plan in (partial(make_windows, 24), make_streams):
        shares = [read(make_plan, rank, world_size) for rank in range(world_size)]
        for alone, *together in zip(read(make_plan, 0, 1), *shares, strict=True):
            assert np.concatenate([rows.starts for rows in together]).tolist() == alone.starts.tolist()
            assert np.concatenate([rows.is_fresh for rows in together]).tolist() == alone.is_fresh.tolist()


def test_no_two_ranks_read_the_same_windows_of_shards() -> None:
    def read_pass(world_size: int) -> list[int]:
        plans = [make_shard_windows(4, rank, world_size) for rank in range(world_size)]
        num_batches = plans[0].num_windows // (4 * world_size)
        return [start for plan in plans for start in list_starts(take(plan, num_batches))]

    alone, together = read_pass(1), read_pass(3)
    assert len(set(alone)) == len(alone)
    assert len(set(together)) == len(together)
    # All but what does not fill a step of the ranks together.
    assert len(set(alone) ^ set(together)) < 12
    lengths = [length for lengths in BY_SHARD for length in lengths]
    assert set(alone) <= set(window_starts(lengths, 4, 2).tolist())
    assert alone != sorted(alone)


@pytest.mark.parametrize("plan", [make_windows(26, 4, 1, 2), make_shard_windows(3, 1, 2), make_streams(3)])
def test_a_plan_resumes_at_any_batch(plan: Plan) -> None:
    whole = take(plan, 40)
    for first in (1, 3, 7, 8, 9, 23):
        for ours, theirs in zip(take(plan, 40 - first, first), whole[first:], strict=True):
            assert ours.starts.tolist() == theirs.starts.tolist()
            assert ours.is_fresh.tolist() == theirs.is_fresh.tolist()


def test_a_chunk_continues_its_row_or_starts_from_a_fresh_state() -> None:
    last, fresh, plan = None, 0, make_streams(3)
    passes = 6
    for rows in take(plan, passes * (plan.num_windows // 3)):
        if last is not None:
            assert (rows.starts == last + CHUNK)[~rows.is_fresh].all()
        last, fresh = rows.starts, fresh + int(rows.is_fresh.sum())
    # Three rows open a pass, and each of the four segments that have chunks begins somewhere.
    assert 3 * passes < fresh <= passes * (3 + 4)


def test_streams_never_cross_recordings_and_are_cut_differently_in_each_pass() -> None:
    recording = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    plan, passes = make_streams(2), []
    steps = plan.num_windows // 2
    for number in range(8):
        starts = np.array(list_starts(take(plan, steps, number * steps)))
        assert (recording[starts] == recording[starts + CHUNK]).all()
        # No frame is a target twice in a pass.
        assert (np.diff(np.sort(starts)) >= CHUNK).all()
        passes.append(frozenset(starts.tolist()))
    assert len(set(passes)) == 8
    # Recording 1 has four frames: too short for a chunk of four and the target of its last step.
    read = set().union(*passes)
    assert not read & set(range(50, 54))
    assert read & set(range(103, 108))
