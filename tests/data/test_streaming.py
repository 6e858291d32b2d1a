"""Frames straight from shards: the same as from memory, with few entries held at a time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from babble.codec.frames import MODES, Mode
from babble.data import streaming
from babble.data.config import DataConfig
from babble.data.datamodule import SpeechData
from babble.data.loaders import HeldFrames, Loader
from babble.data.shards import (
    SEGMENT_FRAMES,
    Manifest,
    Segment,
    ShardFacts,
    read_manifest,
    read_recordings,
    write_manifest,
    write_shards,
)
from babble.data.streaming import ShardFrames, ShardSegments, find_segments

MODE = MODES["1300"]
LENGTHS = [4000, 700, 3100, 1500, 6001, 20]
NUM_FRAMES = sum(LENGTHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of random levels in shards of two entries."""
    folder = tmp_path_factory.mktemp("shards")
    frames = np.random.default_rng(0).integers(0, MODE.levels, (NUM_FRAMES, MODE.num_fields)).astype(MODE.dtype)
    parts = np.split(frames, np.cumsum(LENGTHS)[:-1])
    splits = {
        "train": [Segment(f"recording-{n}", 0, part) for n, part in enumerate(parts)],
        "validation": [Segment("held-out", 0, frames[:200])],
    }
    shards = [shard for split, segments in splits.items() for shard in write_shards(folder, split, segments, MODE, 2)]
    recordings = [
        {"name": r.recording, "split": split, "first_frame": 0, "frames": len(r.frames)}
        for split, segments in splits.items()
        for r in segments
    ]
    write_manifest(folder, Manifest(MODE, {}, recordings, shards, []))
    return folder


def open_loader(folder: Path, reading: str, rank: int = 0, world_size: int = 1) -> Loader:
    windows = {"hop_frames": 50, "shuffle_shards": 2} if reading == "windows" else {}
    config = DataConfig(folder, reading, 50, batch_size=4, holding="shards", **windows)  # type: ignore[arg-type]
    data = SpeechData(config, seed=3)
    data.setup()
    return data._make_loader(rank, world_size)


def read_train_frames(folder: Path) -> np.ndarray:
    return np.concatenate([r.frames for r in read_recordings(folder, read_manifest(folder), "train")])


def list_segments(segments: ShardSegments) -> list[tuple[int, ...]]:
    return list(zip(*(a.tolist() for a in (segments.shards, segments.first_entries, segments.frames)), strict=True))


def find_segments_slowly(lengths: list[int], shards: list[ShardFacts]) -> list[tuple[int, ...]]:
    """Fill the shards with recordings, one after another."""
    segments, shard, entry = [], 0, 0
    for frames in lengths:
        while frames:
            taken = min(frames, (shards[shard].entries - entry) * SEGMENT_FRAMES)
            segments.append((shard, entry, taken))
            frames, entry = frames - taken, entry - (-taken // SEGMENT_FRAMES)
            if entry == shards[shard].entries:
                shard, entry = shard + 1, 0
    return segments


def test_segments_equal_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        lengths = (rng.integers(0, 5, rng.integers(1, 12)) * rng.choice([1, 749, 1500, 1501])).tolist()
        cuts = [min(SEGMENT_FRAMES, frames - at) for frames in lengths for at in range(0, frames, SEGMENT_FRAMES)]
        size = int(rng.integers(1, 5))
        groups = [cuts[at : at + size] for at in range(0, len(cuts), size)]
        shards = [ShardFacts(f"{n}.tar", "train", "", len(group), sum(group)) for n, group in enumerate(groups)]
        recordings = [{"name": str(n), "split": "train", "frames": frames} for n, frames in enumerate(lengths)]
        segments = find_segments(Manifest(MODE, {}, recordings, shards, []), "train")
        assert list_segments(segments) == find_segments_slowly(lengths, shards)


def test_segments_match_the_shards(folder: Path) -> None:
    manifest = read_manifest(folder)
    segments = find_segments(manifest, "train")
    # 4,000 frames are three entries; the third is in the second shard.
    assert list_segments(segments)[:3] == [(0, 0, 3000), (1, 0, 1000), (1, 1, 700)]
    assert segments.frames.sum() == NUM_FRAMES
    shorter = [{**recording, "frames": recording["frames"] - 1} for recording in manifest.recordings]
    for recordings in (shorter, manifest.recordings * 2):
        with pytest.raises(ValueError, match="preprocess to a new folder"):
            find_segments(dataclasses.replace(manifest, recordings=recordings), "train")


@pytest.mark.parametrize("reading", ["windows", "streams"])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_batches_from_shards_are_those_from_memory(folder: Path, reading: str, rank: int, world_size: int) -> None:
    loader = open_loader(folder, reading, rank, world_size)
    held = Loader(loader.plan, HeldFrames(read_train_frames(folder)), loader.num_frames)
    for _ in range(2):
        for ours, theirs in zip(loader, held, strict=True):
            assert torch.equal(ours.frames, theirs.frames)
            assert torch.equal(ours.starts, theirs.starts)


@pytest.mark.parametrize("reading", ["windows", "streams"])
def test_a_loader_from_shards_resumes_anywhere(reading: str, folder: Path) -> None:
    loader = open_loader(folder, reading)
    whole = [batch for _ in range(3) for batch in loader]
    for stop in (1, 17, len(whole) // 3, 2 * len(whole) // 3 + 5):
        resumed = open_loader(folder, reading)
        resumed.load_state_dict({"batches_given": stop})
        for ours, theirs in zip(resumed, whole[stop:], strict=False):
            assert torch.equal(ours.frames, theirs.frames)
            assert torch.equal(ours.starts, theirs.starts)


@pytest.mark.parametrize(("reading", "max_entries"), [("windows", 2 * 2), ("streams", 4 * 2)])
def test_few_entries_are_held(reading: str, max_entries: int, folder: Path) -> None:
    loader = open_loader(folder, reading)
    assert isinstance(loader.source, ShardFrames)
    for _ in loader:
        assert len(loader.source.entries) <= max_entries
        assert len(loader.source.index) <= max_entries


def test_entries_are_seldom_read_twice_in_a_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], streaming.read_entry

    def read_entry(path: Path, location: np.ndarray, mode: Mode) -> Segment:
        read.append((path, *location.tolist()))
        return real(path, location, mode)

    monkeypatch.setattr(streaming, "read_entry", read_entry)
    # Two streams may read parts of one entry at different times.
    for reading, most in (("windows", 1.0), ("streams", 1.5)):
        read.clear()
        assert list(open_loader(folder, reading))
        assert len(set(read)) > 10
        assert len(read) <= most * len(set(read))


def test_an_entry_that_the_manifest_contradicts_is_named(folder: Path) -> None:
    shards = sorted(path.name for path in folder.glob("train-*.tar"))
    for segment in ((1, 0, 1200), (1, 2, 100)):
        segments = ShardSegments(*(np.array([value]) for value in segment))
        with pytest.raises(ValueError, match=r"000001\.tar: entry \d has \d+ frames, which its manifest contradicts"):
            ShardFrames(folder, shards, segments, MODE, 9).read(np.array([0]), 50)


def test_the_description_names_segments(folder: Path) -> None:
    config = DataConfig(folder, window_frames=50, batch_size=4, holding="shards")
    assert "0.17 h of training speech (10 segments, read from the shards)" in SpeechData(config, seed=0).describe()
