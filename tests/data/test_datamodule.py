"""Windows: where they start, in which order, who reads them, and going on in the middle."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from babble.data.datamodule import SpeechData, map_split
from babble.data.loaders import DataConfig, Held, StreamLoader, WindowLoader, window_starts
from babble.data.shards import read_manifest, read_recordings


def _loader(windows: int, batch: int, per_epoch: int | None = None, rank: int = 0, ranks: int = 1) -> WindowLoader:
    """Windows of two frames whose first value is the number of the window."""
    frames = np.arange(windows + 1)[:, None]
    config = DataConfig(window_frames=1, hop_frames=1, batch_size=batch, windows_per_epoch=per_epoch)
    return WindowLoader(frames, [windows + 1], config, seed=7, rank=rank, ranks=ranks)


def _numbers(loader: WindowLoader, epochs: int = 1) -> list[int]:
    return [int(n) for _ in range(epochs) for batch in loader for n in batch.frames[:, 0, 0]]


def test_windows_start_every_hop_and_never_cross_recordings():
    starts = window_starts([10, 3, 9], window_frames=4, hop_frames=2)
    assert starts.tolist() == [0, 2, 4, 13, 15, 17]
    lengths = [10, 3, 9]
    ends = np.repeat(np.cumsum(lengths), lengths)
    assert all(ends[start] == ends[start + 4] for start in starts)


def test_a_pass_holds_every_window_once_in_an_order_of_its_own():
    loader = _loader(windows=24, batch=4)
    first, second = _numbers(loader), _numbers(loader)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first == _numbers(_loader(windows=24, batch=4))


def test_small_epochs_go_through_the_same_order_and_leave_nothing_out():
    assert _numbers(_loader(24, 4, per_epoch=8), epochs=3) == _numbers(_loader(24, 4))
    # 26 windows are no whole number of batches: what is left over opens the next pass.
    assert sorted(_numbers(_loader(26, 4, per_epoch=4), epochs=13)) == sorted(2 * list(range(26)))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_global_order(ranks: int):
    shares = [list(_loader(24, 12 // ranks, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for alone, *together in zip(_loader(24, 12), *shares, strict=True):
        assert torch.equal(torch.cat([batch.frames for batch in together]), alone.frames)
        assert alone.starts.all()


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    whole = _numbers(_loader(24, 4), epochs=2)
    stopped = _loader(24, 4)
    heard = [int(n) for _, batch in zip(range(4), stopped, strict=False) for n in batch.frames[:, 0, 0]]
    goes_on = _loader(24, 4)
    goes_on.load_state_dict(stopped.state_dict())
    assert heard + _numbers(goes_on, epochs=2)[: 48 - 16] == whole


def test_an_epoch_smaller_than_a_step_is_refused():
    with pytest.raises(ValueError, match=r"an epoch has 3 windows of 24, but one step takes 4"):
        _loader(24, 4, per_epoch=3)


LENGTHS = [50, 4, 37, 12, 5]
PIECE = 4


def _streams(batch: int, rank: int = 0, ranks: int = 1, seed: int = 7) -> StreamLoader:
    """Recordings whose frames are numbered from 0 to 107, cut into pieces of four frames."""
    config = DataConfig(reading="streams", window_frames=PIECE, batch_size=batch)
    return StreamLoader(Held(np.arange(sum(LENGTHS))[:, None]), LENGTHS, config, seed, rank, ranks)


def test_a_piece_goes_on_where_its_stream_stopped_or_says_that_it_starts_afresh():
    last, fresh = None, 0
    for batch in [batch for _ in range(6) for batch in _streams(3)]:
        first, behind = batch.frames[:, 0, 0], batch.frames[:, -1, 0]
        if last is not None:
            assert (first[~batch.starts] == last[~batch.starts]).all()
        last, fresh = behind, fresh + int(batch.starts.sum())
    # Three streams open a pass, and each of the recordings that have pieces begins somewhere.
    assert 3 * 6 < fresh <= 6 * (3 + 4)


def test_streams_never_cross_recordings_and_cut_elsewhere_in_each_pass():
    recording = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    loader, firsts = _streams(2), []
    for _ in range(8):
        pieces = torch.cat([batch.frames for batch in loader])[:, :, 0].numpy()
        assert (np.diff(pieces) == 1).all()
        assert (recording[pieces[:, 0]] == recording[pieces[:, -1]]).all()
        # No frame is learned twice in a pass.
        learned = pieces[:, 1:].ravel()
        assert len(set(learned)) == len(learned)
        firsts.append(frozenset(pieces[:, 0].tolist()))
    assert len(set(firsts)) == 8
    # Too short for a piece of four frames and the one that follows: recording 1, of four frames.
    heard = set().union(*firsts)
    assert not heard & set(range(50, 54))
    assert heard & set(range(103, 108))


def test_streams_are_dealt_to_ranks_whole():
    alone = list(_streams(4))
    together = zip(*[list(_streams(2, rank, 2)) for rank in range(2)], strict=True)
    for one, shares in zip(alone, together, strict=True):
        assert torch.equal(one.frames, torch.cat([share.frames for share in shares]))
        assert torch.equal(one.starts, torch.cat([share.starts for share in shares]))


def test_streams_go_on_in_the_middle_of_a_pass():
    loader = _streams(3)
    whole = [batch.frames for _ in range(3) for batch in loader]
    goes_on = _streams(3)
    goes_on.load_state_dict({"batches_given": 10})
    rest = [batch.frames for _ in range(3) for batch in goes_on]
    assert all(torch.equal(a, b) for a, b in zip(whole[10:], rest, strict=False))


def test_a_hop_of_streams_is_refused():
    with pytest.raises(ValueError, match=r"data\.hop_frames has no effect while data\.reading=streams"):
        DataConfig(reading="streams", hop_frames=3)


def test_a_window_is_what_the_shards_hold(speech_shards: Path):
    config = DataConfig(shards=speech_shards, window_frames=50, hop_frames=10, batch_size=8)
    data = SpeechData(config, seed=0)
    data.setup()
    recordings = read_recordings(speech_shards, read_manifest(speech_shards), "train")
    real = {r.frames[start : start + 51].tobytes() for r in recordings for start in range(0, len(r.frames) - 50, 10)}
    batches = list(data.train_dataloader())
    assert {window.numpy().astype(np.uint8).tobytes() for batch in batches for window in batch.frames} <= real
    assert len(real) == 8 * len(batches) + len(real) % 8


def test_hours_too_short_for_a_window_are_told(speech_shards: Path):
    data = SpeechData(DataConfig(shards=speech_shards, window_frames=900), seed=0)
    data.setup()
    assert f"{30 / 3600:.3f} hours unused, in 1 recordings shorter than that" in data.describe()
    too_long = SpeechData(DataConfig(shards=speech_shards, window_frames=1000), seed=0)
    with pytest.raises(ValueError, match=r"no recording is longer than data\.window_frames=1000"):
        too_long.setup()


def test_missing_and_foreign_shards_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*jobs\.preprocess"):
        SpeechData(DataConfig(shards=tmp_path / "no"), 0)
    with pytest.raises(FileNotFoundError, match="no finished folder of shards"):
        SpeechData(DataConfig(shards=tmp_path), 0)
    with pytest.raises(ValueError, match=r"data\.shards is not set"):
        SpeechData(DataConfig(), 0)
    (tmp_path / "manifest.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(ValueError, match="not a manifest of babble"):
        SpeechData(DataConfig(shards=tmp_path), 0)


def test_mapped_and_held_in_memory_are_the_same(speech_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(speech_shards, shards)
    made = {}
    for holding in ("memory", "mapped", "mapped"):
        data = SpeechData(DataConfig(shards, window_frames=50, holding=holding), seed=0)
        data.setup()
        frames = [recording.frames for recording in data.train_recordings]
        made[holding] = (data, frames, [batch.frames for batch in data.train_dataloader()])
        assert [recording.recording for recording in data.train_recordings] == ["allison-01", "allison-02"]
    (_, memory, batches), (data, mapped, others) = made["memory"], made["mapped"]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(memory, mapped, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, others, strict=True))
    # One file, which both of the readings that map it share.
    assert len(list(shards.glob(".train-*.npy"))) == 1
    assert isinstance(data._frames, np.memmap)


def test_a_mapped_file_belongs_to_one_manifest(speech_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(speech_shards, shards)
    manifest = read_manifest(shards)
    map_split(shards, manifest, "train")
    (shards / "manifest.json").write_text((shards / "manifest.json").read_text() + "\n")
    map_split(shards, manifest, "train")
    assert len(list(shards.glob(".train-*.npy"))) == 2
