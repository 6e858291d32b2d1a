"""From a folder of shards to batches: what is read, what is rejected, and that all ways of holding it are equal."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from babble.data.config import DataConfig
from babble.data.datamodule import SpeechData
from babble.data.loaders import Batch, HeldFrames, Loader
from babble.data.plans import Share, WindowPlan
from babble.data.shards import (
    SHIFTED,
    Manifest,
    Segment,
    read_manifest,
    read_recordings,
    write_manifest,
    write_shards,
)
from babble.data.training_split import map_training


def make_loader(per_epoch: int | None = None, batch: int = 4) -> Loader:
    """An epoch over 24 windows of two frames; the level of each frame is its index."""
    plan = WindowPlan([25], 1, 1, Share(batch, seed=7))
    return Loader(plan, HeldFrames(np.arange(25)[:, None]), 2, per_epoch)


def first_levels(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.frames[:, 0, 0] for batch in batches]).tolist()


def make_data(shards: Path, **settings: Any) -> SpeechData:
    data = SpeechData(DataConfig(shards, **settings), seed=0)
    data.setup()
    return data


def test_small_epochs_go_through_the_same_order_as_a_large_one() -> None:
    whole, parts = make_loader(), make_loader(per_epoch=8)
    assert (len(whole), len(parts)) == (6, 2)
    assert first_levels([batch for _ in range(3) for batch in parts]) == first_levels(list(whole))


def test_a_loader_resumes_in_the_middle_of_an_epoch() -> None:
    whole = [batch for loader in [make_loader()] for _ in range(2) for batch in loader]
    stopped, resumed = make_loader(), make_loader()
    before = [batch for _, batch in zip(range(4), stopped, strict=False)]
    resumed.load_state_dict(stopped.state_dict())
    rest_of_epoch, next_epoch = list(resumed), list(resumed)
    assert (len(rest_of_epoch), len(next_epoch)) == (2, 6)
    assert first_levels(before + rest_of_epoch + next_epoch) == first_levels(whole)


def test_an_epoch_smaller_than_a_step_is_rejected_before_anything_is_read(speech_shards: Path) -> None:
    with pytest.raises(ValueError, match=r"an epoch has 3 windows of 24, but one step takes 4"):
        make_loader(per_epoch=3)
    with pytest.raises(ValueError, match=r"an epoch has 68 windows of 68, but one step takes 128"):
        SpeechData(DataConfig(speech_shards), seed=0).count_batches(world_size=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reading": "streams", "hop_frames": 3}, r"data\.hop_frames has no effect with data\.reading=streams"),
        ({"shuffle_shards": 3}, r"data\.shuffle_shards only has an effect with"),
        ({"window_frames": 0}, r"data\.window_frames=0: must be at least 1\."),
    ],
)
def test_settings_without_effect_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_windows_are_the_content_of_the_shards(speech_shards: Path) -> None:
    recordings = read_recordings(speech_shards, read_manifest(speech_shards), "train")
    real = {r.frames[start : start + 51].tobytes() for r in recordings for start in range(0, len(r.frames) - 50, 10)}
    batches = list(make_data(speech_shards, window_frames=50, hop_frames=10, batch_size=8).train_dataloader())
    assert {window.numpy().astype(np.uint8).tobytes() for batch in batches for window in batch.frames} <= real
    assert len(real) == 8 * len(batches) + len(real) % 8


def test_the_description_counts_windows_and_unused_hours(speech_shards: Path) -> None:
    assert SpeechData(DataConfig(speech_shards, window_frames=900), seed=0).describe() == (
        "0.02 h of training speech (2 recordings), 2 windows of 900 frames (36 s), 0.008 h unused because shorter; "
        "0.01 h of validation speech"
    )


@pytest.fixture(scope="module")
def shifted_shards(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards, with both training recordings once more."""
    folder = shutil.copytree(speech_shards, tmp_path_factory.mktemp("shifted") / "shards")
    manifest = read_manifest(folder)
    again = [
        Segment(f"{recording.recording} (shift 1)", 0, recording.frames[1:])
        for recording in read_recordings(folder, manifest, "train")
    ]
    shards = [*manifest.shards, *write_shards(folder, SHIFTED, again, manifest.mode, 16)]
    rows = [{"name": r.recording, "split": SHIFTED, "first_frame": 0, "frames": len(r.frames)} for r in again]
    write_manifest(folder, replace(manifest, shards=shards, shifted=rows))
    return folder


@pytest.mark.parametrize("holding", ["memory", "mapped", "shards"])
@pytest.mark.parametrize("reading", ["windows", "streams"])
def test_training_reads_shifted_recordings_too(reading: str, holding: str, shifted_shards: Path, tmp_path: Path):
    shards = shutil.copytree(shifted_shards, tmp_path / "shards")
    manifest = read_manifest(shards)
    if holding == "mapped":  # As a sweep does before its trials.
        map_training(shards, manifest)
    data = make_data(shards, reading=reading, window_frames=50, batch_size=4, holding=holding)
    assert [r.recording for r in data.train_recordings] == ["allison-01", "allison-02"]
    recordings = read_recordings(shards, manifest.with_shifted(), "train")
    assert [len(r.frames) for r in recordings] == [1000, 750, 999, 749]
    real = {r.frames[start : start + 51].tobytes() for r in recordings for start in range(len(r.frames) - 50)}
    windows = [window for batch in data.train_dataloader() for window in batch.frames.numpy().astype(np.uint8)]
    assert {window.tobytes() for window in windows} <= real
    # Nothing but the training reads them.
    assert manifest.split_lengths("train") == [1000, 750]
    assert "0.02 h of training speech and, shifted, 0.02 h (4 " in data.describe()
    without = make_data(shards, reading=reading, window_frames=50, batch_size=4, holding=holding, shifted=False)
    own = [r.frames for r in recordings[:2]]
    real = {frames[start : start + 51].tobytes() for frames in own for start in range(len(frames) - 50)}
    windows = [window for batch in without.train_dataloader() for window in batch.frames.numpy().astype(np.uint8)]
    assert {window.tobytes() for window in windows} <= real
    assert "0.02 h of training speech (2 " in without.describe()


def keep_split(shards: Path, folder: Path, split: str) -> Path:
    """Copy shards with the recordings of one split only."""
    shutil.copytree(shards, folder)
    manifest = read_manifest(shards)
    recordings = [recording for recording in manifest.recordings if recording["split"] == split]
    kept = [shard for shard in manifest.shards if shard.split == split]
    write_manifest(folder, Manifest(manifest.mode, {}, recordings, kept, []))
    return folder


def test_what_cannot_be_trained_on_is_rejected_from_the_manifest_alone(speech_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.shards is not set"):
        SpeechData(DataConfig(), 0)
    with pytest.raises(
        FileNotFoundError, match=r"data\.tokens .*gone has no manifest\.json.* that babble tokens wrote"
    ):
        SpeechData(DataConfig(speech_shards, tokens=tmp_path / "gone"), 0)
    with pytest.raises(ValueError, match=r"no recording is longer than data\.window_frames=1000"):
        SpeechData(DataConfig(speech_shards, window_frames=1000), 0)
    test_only = keep_split(speech_shards, tmp_path / "test-only", "test")
    no_validation = keep_split(speech_shards, tmp_path / "no-validation", "train")
    for holding in ("memory", "shards"):
        with pytest.raises(ValueError, match=r"test-only has no training recordings: .* for evaluation only"):
            SpeechData(DataConfig(test_only, holding=holding), 0)
        with pytest.raises(ValueError, match="no-validation has no validation recordings"):
            SpeechData(DataConfig(no_validation, holding=holding), 0)


@pytest.mark.parametrize("reading", ["windows", "streams"])
def test_memory_and_mapped_file_give_the_same_batches(reading: str, speech_shards: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(speech_shards, tmp_path / "shards")
    memory, *mapped = [
        make_data(shards, reading=reading, window_frames=20, batch_size=8, holding=holding)
        for holding in ("memory", "mapped", "mapped")
    ]
    expected = list(memory.train_dataloader())
    assert len(expected) > 3
    for data in mapped:
        assert [recording.recording for recording in data.train_recordings] == ["allison-01", "allison-02"]
        for ours, theirs in zip(data.train_recordings, memory.train_recordings, strict=True):
            assert np.array_equal(ours.frames, theirs.frames)
            assert isinstance(ours.frames, np.memmap)
        for batch, same in zip(data.train_dataloader(), expected, strict=True):
            assert torch.equal(batch.frames, same.frames)
            assert torch.equal(batch.starts, same.starts)
    # Both readers map one file.
    assert len(list(shards.glob(".train-*.npy"))) == 1


@pytest.mark.parametrize("holding", ["memory", "mapped", "shards"])
def test_an_absolute_path_works_from_another_folder(
    holding: str, speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shutil.copytree(speech_shards, tmp_path / "shards")
    data = SpeechData(DataConfig(shards, window_frames=50, batch_size=8, holding=holding), seed=0)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    data.setup()
    assert len(list(data.train_dataloader())) == len(data.train_dataloader())
    assert os.listdir(other) == []


def test_ranks_validate_on_every_recording_once(speech_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(speech_shards)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(data, "_find_rank", lambda rank=rank: (rank, 2))
        seen.append([batch.shape for batch in data.val_dataloader()])
    # The same number of batches on each rank: a single frame, in which nothing is predicted, fills up.
    assert seen == [[(1, 500, 16)], [(1, 1, 16)]]


def test_without_permission_to_write_a_mapped_split_is_held_in_memory(
    speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(speech_shards, tmp_path / "shards")

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("babble.data.training_split.replacing", refuse)
    held, mapped = make_data(folder), make_data(folder, holding="mapped")
    for one, other in zip(held.train_recordings, mapped.train_recordings, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line
    assert "Copy the shards to a writable folder" in line
