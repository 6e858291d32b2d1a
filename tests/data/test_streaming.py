"""Windows and streams straight from shards: the same speech as from memory, little of it held, anywhere to go on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from babble.codec.frames import MODES
from babble.data.datamodule import SpeechData
from babble.data.loaders import DataConfig, Loader, StreamLoader
from babble.data.shards import Manifest, Segment, read_manifest, read_recordings, write_manifest, write_shards
from babble.data.streaming import Span, find_spans

MODE = MODES["1300"]
LENGTHS = [4000, 700, 3100, 1500, 6001, 20]
NUM_FRAMES = sum(LENGTHS)


def _number(frames: np.ndarray) -> np.ndarray:
    """Return the number that each frame (..., F) carries in its first LSP fields."""
    return (frames[..., 6:10].astype(int) * 16 ** np.arange(4)).sum(axis=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings in shards of two entries; each frame carries its number, counted through all of them."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = np.arange(NUM_FRAMES)
    frames = np.zeros((NUM_FRAMES, MODE.num_fields), np.uint8)
    frames[:, 6:10] = numbers[:, None] // 16 ** np.arange(4) % 16
    parts = np.split(frames, np.cumsum(LENGTHS)[:-1])
    train = [Segment(f"recording-{n}", 0, part) for n, part in enumerate(parts)]
    held_out = [Segment("held-out", 0, frames[:200])]
    shards = [
        *write_shards(folder, "train", train, MODE, entries_per_shard=2),
        *write_shards(folder, "validation", held_out, MODE, entries_per_shard=2),
    ]
    recordings = [
        {"name": r.recording, "split": split, "first_frame": 0, "frames": len(r.frames)}
        for split, recordings in (("train", train), ("validation", held_out))
        for r in recordings
    ]
    write_manifest(folder, Manifest(MODE, {}, recordings, shards, []))
    return folder


def _loader(folder: Path, reading: str, rank: int = 0, ranks: int = 1, batch: int = 4) -> Loader:
    data = SpeechData(_config(folder, reading, batch), seed=3)
    data.setup()
    return data._make_loader(rank, ranks)


def _config(folder: Path, reading: str, batch: int) -> DataConfig:
    windows = {"hop_frames": 50, "shuffle_shards": 2} if reading == "windows" else {}
    return DataConfig(shards=folder, reading=reading, window_frames=50, batch_size=batch, holding="shards", **windows)


def test_spans_are_what_the_shards_hold(folder: Path):
    manifest = read_manifest(folder)
    spans = find_spans(manifest, "train")
    # 4,000 frames are three entries, of which one is in the second shard.
    assert spans[:3] == [Span(0, 0, 3000), Span(1, 0, 1000), Span(1, 1, 700)]
    assert sum(span.frames for span in spans) == NUM_FRAMES
    shorter = [{**recording, "frames": recording["frames"] - 1} for recording in manifest.recordings]
    for recordings in (shorter, manifest.recordings * 2):
        with pytest.raises(ValueError, match="preprocess again"):
            find_spans(dataclasses.replace(manifest, recordings=recordings), "train")


def test_ranks_read_every_window_once(folder: Path):
    one = [int(n) for batch in _loader(folder, "windows") for n in _number(batch.frames.numpy())[:, 0]]
    assert len(set(one)) == len(one)
    shares = [
        [int(n) for batch in _loader(folder, "windows", rank, 3) for n in _number(batch.frames.numpy())[:, 0]]
        for rank in range(3)
    ]
    together = [number for share in shares for number in share]
    assert len(set(together)) == len(together)
    # All but what does not fill a step of the ranks together.
    assert len(set(one) ^ set(together)) < 12
    assert one != sorted(one)


@pytest.mark.parametrize("reading", ["windows", "streams"])
def test_windows_and_pieces_are_contiguous_speech_of_one_recording(reading: str, folder: Path):
    recording = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    batches = [batch for loader in [_loader(folder, reading)] for _ in range(2) for batch in loader]
    numbers = np.concatenate([_number(batch.frames.numpy()) for batch in batches])
    assert (np.diff(numbers, axis=1) == 1).all()
    assert (recording[numbers[:, 0]] == recording[numbers[:, -1]]).all()


def test_streams_go_on_where_they_stopped(folder: Path):
    last, kept = None, 0
    for batch in _loader(folder, "streams"):
        numbers = _number(batch.frames.numpy())
        for row in range(len(numbers)):
            if not batch.starts[row]:
                assert last is not None
                assert numbers[row, 0] == last[row, -1]
                kept += 1
        last = numbers
    assert kept > 200


def test_streams_from_shards_are_those_of_recordings_cut_at_the_shards(folder: Path):
    manifest = read_manifest(folder)
    frames = np.concatenate([recording.frames for recording in read_recordings(folder, manifest, "train")])
    lengths = [span.frames for span in find_spans(manifest, "train")]

    class Memory:
        def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
            return frames[starts_B[:, None] + np.arange(num_frames)].astype(np.int16)

    held = StreamLoader(Memory(), lengths, _config(folder, "streams", 4), 3)
    for ours, theirs in zip(_loader(folder, "streams"), held, strict=True):
        assert torch.equal(ours.frames, theirs.frames)
        assert torch.equal(ours.starts, theirs.starts)


@pytest.mark.parametrize("reading", ["windows", "streams"])
def test_a_loader_from_shards_goes_on_anywhere(reading: str, folder: Path):
    loader = _loader(folder, reading)
    whole = [batch for _ in range(3) for batch in loader]
    for stop in (1, 17, len(whole) // 3, 2 * len(whole) // 3 + 5):
        goes_on = _loader(folder, reading)
        goes_on.load_state_dict({"batches_given": stop})
        for ours, theirs in zip(goes_on, whole[stop:], strict=False):
            assert torch.equal(ours.frames, theirs.frames)
            assert torch.equal(ours.starts, theirs.starts)


def test_no_more_than_a_few_shards_are_held(folder: Path):
    windows = _loader(folder, "windows")
    streams = _loader(folder, "streams")
    for _ in windows:
        assert len(windows._frames) <= 2 * 2 * 1500  # type: ignore[attr-defined]
    for _ in streams:
        held = [len(row.frames) for row in streams.source.rows.values()]  # type: ignore[attr-defined]
        assert max(held) <= 1500 + 51


def test_what_is_told_of_a_split_that_is_not_held(folder: Path):
    data = SpeechData(_config(folder, "windows", 4), seed=0)
    data.setup()
    assert "recordings and parts of them, read as they are needed" in data.describe()
    with pytest.raises(ValueError, match=r"data.shuffle_shards is only for"):
        DataConfig(shuffle_shards=3)
    with pytest.raises(ValueError, match=r"data.holding='disk' is none of memory, mapped, shards"):
        DataConfig(holding="disk")
