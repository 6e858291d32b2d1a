"""Drift over the minutes of a recording."""

import pytest
from speech_samples import MODE, RATE, E, random_frames

from babble.evaluation.drift import mean_drift, measure_drift


def test_drift_is_the_slope_over_minutes():
    frames = random_frames(4 * 60 * RATE + 100, 13)
    for minute in range(5):
        frames[minute * 60 * RATE : (minute + 1) * 60 * RATE, E] = 4 + 2 * minute
    drift = measure_drift(frames, MODE, 0.0)
    assert drift["energy_db"]["per_minute"] == pytest.approx(2 * 50 / 32)
    assert drift["energy_db"]["last_minus_first"] == pytest.approx(3 * 2 * 50 / 32)
    assert abs(drift["change_levels"]["per_minute"]) < 0.02
    # Recordings under two minutes do not count; without any other there is no drift.
    mean = mean_drift([frames, frames[: 119 * RATE]], MODE, 0.0)
    assert mean is not None
    assert mean["energy_db"] == drift["energy_db"]
    assert mean["pause_median_s"]["last_minus_first"] is None
    assert mean_drift([frames[: 119 * RATE]], MODE, 0.0) is None
