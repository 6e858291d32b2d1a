"""Frechet distance against its formula for Gaussians."""

import numpy as np
import pytest

from babble.codec.frames import MODES
from babble.evaluation.distance import frechet_distance


def test_the_distance_of_gaussians_is_the_known_one():
    mode = MODES["700C"]
    rng = np.random.default_rng(8)

    def sample(mean: float, deviation: float) -> list[np.ndarray]:
        frames = np.zeros((200_000, mode.num_fields))
        frames[:, 2] = frames[:, 3] = 30 + rng.normal(0, 1, 200_000)
        frames[:, 2] = mean + deviation * rng.normal(0, 1, 200_000)
        return [frames]

    # Only the energy differs. In units of the reference's deviation (its differences have root 2 times that) the mean
    # differs by 1.5, and the deviations of level and of differences are twice those of the reference. Source: the
    # Frechet distance of Gaussians that commute is the sum of the squared differences of means and deviations along
    # their axes; white noise and its differences have a correlation matrix of trace 3.
    distance = frechet_distance(sample(45, 20), sample(30, 10), mode)
    assert distance == pytest.approx(1.5**2 + 3 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(sample(30, 10), sample(30, 10), mode) == pytest.approx(0, abs=1e-3)
