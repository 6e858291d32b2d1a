"""Frechet distance between the frames of two sets of clips.

distance = frechet_distance(babble_clips, training_clips, mode)
"""

from collections.abc import Sequence

import numpy as np

from babble.codec.frames import Mode

# One frame apart is articulation; four (160 ms at 40 ms per frame) span about two phones.
STEPS = (1, 4)


def frechet_distance(clips: list[np.ndarray], reference: list[np.ndarray], mode: Mode) -> float | None:
    """Return the Frechet distance between two sets of clips (T, F); None if all fields of the mode are labels.

    The features of a frame are the levels of its fields, labels excluded, and their differences from the frames one
    and four before, each divided by its standard deviation in the reference. The distance shrinks with more clips:
    compare equal counts.

    Source: Heusel et al. 2017 (FID) and Kilgour et al. 2019 (FAD), on Codec 2's fields instead of a network's outputs.
    """
    fields = [f for f, field in enumerate(mode.fields) if field.kind != "label"]
    own, other = (np.concatenate([add_differences(clip[:, fields], STEPS) for clip in s]) for s in (clips, reference))
    return frechet_distance_of_features(own, other)


def frechet_distance_of_features(own: np.ndarray, other: np.ndarray) -> float:
    """Return the Frechet distance between two sets of features (N, D), each divided by its deviation in `other`."""
    scale = np.maximum(other.std(axis=0), 1e-6)
    own, other = own / scale, other / scale
    covariances = np.cov(own, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(covariances[1])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # The trace of the root of a product, from the product's symmetric form: no general matrix root is needed.
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[0] @ root), 0)).sum()
    squared = ((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    return float(squared + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def add_differences(values: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Return values (T, D) and their changes over each number of steps, side by side, without the first rows."""
    values, longest = values.astype(np.float64), max(steps)
    return np.concatenate(
        [values[longest:], *(values[longest:] - values[longest - step : -step] for step in steps)], axis=1
    )
