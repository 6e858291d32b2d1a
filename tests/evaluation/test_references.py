"""Reference speech: shuffled frames keep their frequencies, a Markov chain its transitions."""

import numpy as np
import pytest
from speech_samples import random_frames

from babble.codec.frames import MODES, Mode
from babble.evaluation.references import sample_markov_chain, shuffle_frames

NUM_FRAMES = 10_000


def test_shuffled_frames_are_the_same_frames():
    frames = random_frames(200, 4)
    shuffled = shuffle_frames(frames, np.random.default_rng(0))
    assert not np.array_equal(shuffled, frames)
    assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, frames.tolist()))


@pytest.mark.parametrize("mode", [MODES["1300"], MODES["1200"]], ids=lambda mode: mode.name)
def test_a_markov_chain_has_the_transition_frequencies_of_its_recordings(mode: Mode):
    rng = np.random.default_rng(5)
    train = [np.minimum(random_frames(400, seed, mode), 2) for seed in (6, 7)]
    # A field that repeats itself, and a level without successor.
    train[0][:, -1] = train[1][:, -1] = np.repeat(rng.integers(0, 3, 100), 4)
    train[1][-1, -2] = 3
    frames = sample_markov_chain(train, NUM_FRAMES, mode, rng)
    assert frames.shape == (NUM_FRAMES, mode.num_fields)
    assert frames.dtype == mode.dtype

    def frequencies(recordings: list[np.ndarray], f: int) -> np.ndarray:
        counts = np.zeros((4, 4))
        for recording in recordings:
            np.add.at(counts, (recording[:-1, f], recording[1:, f]), 1)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    for f in range(mode.num_fields):
        # Four standard errors of a frequency of a half over a fifth of the frames.
        found, expected = frequencies([frames], f)[:3, :3], frequencies(train, f)[:3, :3]
        np.testing.assert_allclose(found, expected, atol=4 * 0.5 / (NUM_FRAMES / 5) ** 0.5)
