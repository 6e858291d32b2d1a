"""Reference speech that needs no network: shuffled frames and a Markov chain.

Babble has to be closer to real speech than these.
"""

import numpy as np

from babble.codec.frames import Mode


def shuffle_frames(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the same frames (T, F) in random order: each frame is real, their order is not."""
    return frames[rng.permutation(len(frames))]


def sample_markov_chain(
    recordings: list[np.ndarray], num_frames: int, mode: Mode, rng: np.random.Generator
) -> np.ndarray:
    """Return frames (num_frames, F) in which each field follows a first-order Markov chain of its own.

    Args:
        recordings: recordings (T, F) that transitions are counted in; the first frame is one of their frames.
        num_frames: how many frames to sample.
        mode: the mode of all frames.
        rng: source of randomness.
    """
    widest = int(mode.levels.max())
    counts_FVV = np.zeros((mode.num_fields, widest, widest))
    for f in range(mode.num_fields):
        for frames in recordings:
            level = frames[:, f].astype(np.int64)
            counts_FVV[f] += np.bincount(level[:-1] * widest + level[1:], minlength=widest**2).reshape(widest, widest)
        # A level without a successor, as it only ends a recording, is followed like any other level.
        counts_FVV[f, counts_FVV[f].sum(axis=1) == 0] = counts_FVV[f].sum(axis=0)
    cumulative_FVV = counts_FVV.cumsum(axis=2)
    all_fields = np.arange(mode.num_fields)
    frames = np.empty((num_frames, mode.num_fields), mode.dtype)
    first = recordings[rng.integers(len(recordings))]
    now = first[rng.integers(len(first))].astype(np.int64)
    for t in range(num_frames):
        frames[t] = now
        cumulative_FV = cumulative_FVV[all_fields, now]
        now = (cumulative_FV <= (rng.random(mode.num_fields) * cumulative_FV[:, -1])[:, None]).sum(axis=1)
    return frames
