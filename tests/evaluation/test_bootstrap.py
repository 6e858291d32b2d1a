"""Bootstrap intervals against the true mean."""

import numpy as np
import pytest

from babble.evaluation.bootstrap import bootstrap_interval


def _slow_losses(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Return losses around 5 that are correlated over some 20 frames."""
    kernel = np.exp(-np.arange(100) / 20)
    return 5 + np.convolve(rng.normal(size=num_frames + 99), kernel, mode="valid")


def test_the_interval_contains_the_mean_in_95_percent_of_cases_and_narrows_with_more_speech():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval([_slow_losses(rng, 8000), _slow_losses(rng, 4000)], 300) for _ in range(200)]
    contains = sum(low <= 5 <= high for low, high in filter(None, intervals))
    assert 0.90 * 200 <= contains <= 0.99 * 200
    # Resampling single frames, as if they were independent, gives intervals that are far too narrow.
    single = [bootstrap_interval([_slow_losses(rng, 1000)], 1) for _ in range(40)]
    assert sum(low <= 5 <= high for low, high in filter(None, single)) < 0.6 * 40
    widths = [
        np.subtract(*reversed(bootstrap_interval([_slow_losses(rng, num_frames)], 300) or (0, 0)))
        for num_frames in (12_000, 192_000)
    ]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_too_little_speech_has_no_interval():
    losses = np.random.default_rng(0).normal(size=700)
    assert bootstrap_interval([losses], 100) is None
    assert bootstrap_interval([losses, losses[:50]], 100) is not None
