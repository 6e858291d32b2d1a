"""Confidence intervals of means over speech, by resampling blocks of frames.

low, high = bootstrap_interval([bits_T for each recording], block_frames=1500)
"""

import numpy as np

# Neighbouring frames have similar losses, minutes hardly do: the resampled blocks have to be longer than that.
BLOCK_SECONDS = 60
# Fewer blocks say too little about how much blocks differ.
MIN_BLOCKS = 8
NUM_RESAMPLES = 2000


def bootstrap_interval(losses: list[np.ndarray], block_frames: int, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean loss per frame, or None with fewer than `MIN_BLOCKS` blocks.

    Args:
        losses: the loss of each frame (T,), one array per recording.
        block_frames: length of the resampled blocks; the last one of a recording is shorter.
        seed: random seed of the resampling.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 8 (blocks).
    """
    blocks = [loss[start : start + block_frames] for loss in losses for start in range(0, len(loss), block_frames)]
    if len(blocks) < MIN_BLOCKS:
        return None
    sums, lengths = np.array([[block.sum(dtype=np.float64), len(block)] for block in blocks]).T
    resampled = np.random.default_rng(seed).integers(0, len(blocks), (NUM_RESAMPLES, len(blocks)))
    low, high = np.quantile(sums[resampled].sum(axis=1) / lengths[resampled].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
