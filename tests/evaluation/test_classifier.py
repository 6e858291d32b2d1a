"""The two-sample classifier on sets of speech whose difference is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from speech_samples import MODE, RATE

from babble.data.shards import read_manifest, read_recordings
from babble.evaluation import classifier
from babble.evaluation.classifier import NUM_FOLDS, ClipSet, measure_accuracy, score_logits


@pytest.fixture(scope="module")
def speech(speech_shards: Path) -> np.ndarray:
    """All 70 s of the training split, (T, 16)."""
    return np.concatenate([r.frames for r in read_recordings(speech_shards, read_manifest(speech_shards), "train")])


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "FRAMES_PER_FOLD", 80_000)
    monkeypatch.setattr(classifier, "FRAMES_PER_CHECK", 10_000)


def _halves(speech: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return every other second of speech, and the seconds between."""
    seconds = list(speech[: len(speech) // RATE * RATE].reshape(-1, RATE, speech.shape[1]))
    return seconds[::2], seconds[1::2]


def test_shuffled_frames_are_separated_from_speech(speech: np.ndarray):
    even, odd = _halves(speech)
    shuffled = list(np.random.default_rng(0).permutation(np.concatenate(even)).reshape(-1, RATE, 16))
    found = measure_accuracy(shuffled, odd, MODE, RATE)
    assert found is not None
    assert found.accuracy > 0.85
    assert found.auc > 0.92
    assert found.low > 0.5
    assert found.clips == 35


def test_a_recording_is_not_separated_from_itself(speech: np.ndarray):
    even, odd = _halves(speech)
    found = measure_accuracy(even, odd, MODE, RATE)
    assert found is not None
    assert found.low < 0.5 < found.high
    assert 0.3 < found.accuracy < 0.7
    assert 0.3 < found.auc < 0.7


def test_a_held_tone_is_always_separated_from_speech(speech: np.ndarray):
    drone = np.repeat(speech[200:201], len(speech), axis=0)
    found = measure_accuracy([drone], [speech], MODE, 2 * RATE)
    assert found is not None
    assert (found.accuracy, found.low, found.high, found.auc) == (1, 1, 1, 1)


def test_the_same_seed_gives_the_same_accuracy_and_leaves_the_state_of_torch_unchanged(
    speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(classifier, "FRAMES_PER_FOLD", 5_000)
    monkeypatch.setattr(classifier, "FRAMES_PER_CHECK", 5_000)
    even, odd = _halves(speech)
    before = torch.random.get_rng_state()
    first, again, other = (measure_accuracy(even, odd, MODE, RATE, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_too_few_clips_have_no_accuracy(speech: np.ndarray):
    assert measure_accuracy([speech], [speech[: 9 * RATE]], MODE, RATE) is None


def test_clips_lie_within_one_recording_and_training_clips_are_not_tested():
    # Frame t of recording r is (100 r + t, ...): a clip shows its origin.
    recordings = [np.arange(100 * r, 100 * r + length)[:, None] for r, length in enumerate((35, 9, 40, 90))]
    clip_set = ClipSet(recordings, 10)
    assert [c[0, 0].item() for c in clip_set.clips(clip_set.starts)] == [
        *(0, 10, 20),
        *(200, 210, 220, 230),
        *range(300, 390, 10),
    ]
    clip_set.keep(15)
    assert np.bincount(clip_set.folds).tolist() == [3] * NUM_FOLDS
    sampled = clip_set.sample(3, 3000, np.random.default_rng(0))[:, :, 0]
    for fold in (3, 4):
        held_out = {t for clip in clip_set.clips(clip_set.starts[clip_set.folds == fold]) for t in clip[:, 0].tolist()}
        assert held_out.isdisjoint(sampled.flatten().tolist())
    assert (sampled.diff(dim=1) == 1).all()
    assert set((sampled[:, 0] // 100).tolist()) == {0, 2, 3}
    # Six of the nine training clips may be shifted into the one that follows, by 0 to 9 frames.
    assert len(set(sampled[:, 0].tolist())) == 6 * 10 + 3


def test_accuracy_and_auc_are_counted_by_hand():
    ours, theirs = torch.tensor([5.0, 6.0, 9.0, 1.0]), torch.tensor([4.0, 3.0, 2.0, 7.0])
    # The threshold is 4.5; of 16 pairs, ours is above in 3 + 3 + 4 + 0.
    assert score_logits(ours, theirs) == (0.75, 10 / 16)
    assert score_logits(ours - 100, theirs - 100) == (0.75, 10 / 16)
    assert score_logits(torch.zeros(4), torch.zeros(4)) == (0.5, 0.5)
