"""Baselines: predictors of the next frame without a network, for held-out metrics to be compared with.

    baselines = measure_baselines(train, held_out, mode)
    baselines["bigram baseline"]["bits_per_frame"]

unigram: frequencies of a field's levels. bigram: the same, given the field's previous level. copy: the previous frame
repeated. median: the median level, given the field's previous level.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from babble.codec.frames import Mode
from babble.evaluation.field_metrics import find_unvoiced_pitch, name_bits, name_errors

# Added to every count of levels, so that a level that never occurs in training has finite bits.
PSEUDO_COUNT = 0.1
UNIGRAM, BIGRAM = "unigram baseline", "bigram baseline"
COPY, MEDIAN = "copy baseline", "median baseline"
# The name of each baseline's line in a chart.
LINES = {UNIGRAM: "unigram", BIGRAM: "bigram", COPY: "copy", MEDIAN: "median"}


def measure_baselines(train: Iterable[np.ndarray], held_out: list[np.ndarray], mode: Mode) -> dict[str, dict[str, Any]]:
    """Return the metrics of the baselines on held-out recordings, by name.

    Args:
        train: recordings (T, F) that frequencies and medians are counted in, one after another.
        held_out: recordings (T, F) that are predicted, every frame but the first of each.
        mode: the mode of all frames; modes with label fields have no copy and median baseline.

    Returns:
        for the unigram and bigram baseline the metrics of `name_bits`, for the others those of `name_errors`.
    """
    bits_2F, error_2F = np.zeros((2, mode.num_fields)), np.zeros((2, mode.num_fields))
    masks = [find_unvoiced_pitch(frames, mode) for frames in held_out]
    is_unvoiced_pitch = [mask for mask in masks if mask is not None]
    unvoiced_bits_2 = np.zeros(2)
    train_counts, held_out_counts = _count_transitions(train, mode), _count_transitions(held_out, mode)
    unvoiced_counts = _count_transitions(held_out, mode, is_unvoiced_pitch) if is_unvoiced_pitch else []
    for f in range(mode.num_fields):
        counts, steps = train_counts[f] + PSEUDO_COUNT, held_out_counts[f]
        bigram = counts / counts.sum(axis=1, keepdims=True)
        unigram = np.broadcast_to(counts.sum(axis=0) / counts.sum(), steps.shape)
        bits = np.stack([-np.log2(unigram), -np.log2(bigram)])
        bits_2F[:, f] = (steps * bits).sum(axis=(1, 2)) / steps.sum()
        if is_unvoiced_pitch and mode.fields[f].group == "pitch":
            unvoiced_bits_2 += (unvoiced_counts[f] * bits).sum(axis=(1, 2)) / steps.sum()
        last, following = np.indices(steps.shape)
        median = (bigram.cumsum(axis=1) < 0.5).sum(axis=1)
        error_2F[0, f] = (steps * abs(following - last)).sum() / steps.sum()
        error_2F[1, f] = (steps * abs(following - median[:, None])).sum() / steps.sum()
    unigram_bits, bigram_bits = unvoiced_bits_2.tolist() if is_unvoiced_pitch else (None, None)
    metrics = {
        UNIGRAM: name_bits(bits_2F[0], unigram_bits, mode),
        BIGRAM: name_bits(bits_2F[1], bigram_bits, mode),
        COPY: name_errors(error_2F[0], mode),
        MEDIAN: name_errors(error_2F[1], mode),
    }
    return {name: values for name, values in metrics.items() if values}


def _count_transitions(
    recordings: Iterable[np.ndarray], mode: Mode, masks: list[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Return how often each level of each field follows each, float64 (previous, next), where `masks` (T, F) if given.

    The recordings are gone through once, so that a sample of a large corpus need not be held.
    """
    counts = [np.zeros(levels * levels) for levels in mode.levels.tolist()]
    for n, frames in enumerate(recordings):
        for f, levels in enumerate(mode.levels.tolist()):
            level = frames[:, f].astype(np.int64)
            steps = level[:-1] * levels + level[1:]
            counts[f] += np.bincount(steps if masks is None else steps[masks[n][1:, f]], minlength=levels * levels)
    return [of.reshape(levels, levels) for of, levels in zip(counts, mode.levels.tolist(), strict=True)]


def baseline_lines(baselines: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the metrics of `measure_baselines` by the name of their line in a chart: "baseline/error/pitch/copy"."""
    return {
        f"baseline/{metric}/{LINES[name]}": value
        for name, metrics in baselines.items()
        for metric, value in metrics.items()
        if not isinstance(value, dict)
    }
