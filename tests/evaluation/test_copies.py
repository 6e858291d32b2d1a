"""Copies of training speech are found, and new speech is not mistaken for one."""

import numpy as np
import pytest
from speech_samples import LSP, MODE, random_frames, read_tale

from babble.evaluation.copies import measure_copies


def test_copies_are_found_by_their_coarse_spectra():
    train = [random_frames(400, seed) for seed in (9, 10)]
    train = [
        frames | (np.arange(16) >= LSP) * 8 * (np.random.default_rng(1).integers(0, 2, frames.shape))
        for frames in train
    ]
    train = [np.minimum(frames, MODE.levels - 1).astype(np.uint8) for frames in train]
    rng = np.random.default_rng(11)
    fresh = rng.integers(0, MODE.levels, (100, MODE.num_fields)).astype(np.uint8)
    half = np.concatenate([fresh[:50], train[1][100:150]])
    # Other levels in the same quarters, another pitch and another energy.
    close = train[0][50:150] ^ np.array([0] * 4 + [1, 1] + [1] * 8 + [0, 0], np.uint8)
    clips = {"copy": [train[0][20:90]], "fresh": [fresh], "half": [half], "close": [close]}
    # Of 93 segments of 8 frames, the last 43 lie within the copy.
    assert measure_copies(clips, train, MODE) == {
        "copy": 1.0,
        "fresh": 0.0,
        "half": pytest.approx(43 / 93),
        "close": pytest.approx(1.0),
    }


def test_two_parts_of_the_tale_share_no_segment():
    assert measure_copies({"13": [read_tale(13)]}, [read_tale(12)], MODE) == {"13": 0.0}
