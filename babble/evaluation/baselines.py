"""What held-out speech costs a predictor, by name: by field, by group, in total, and for predictors without a network.

1. `find_unvoiced_pitch` says which pitch values nobody hears.
2. `name_bits` and `name_errors` turn costs by field into the figures that evaluate and the run folder show.
3. `measure_baselines`: copy baseline, the median given the same field's last level, each field's own
   frequencies, and those given its last level.
4. `bootstrap_interval`: how far a mean over speech may be off.
"""

from typing import Any

import numpy as np

from babble.codec.frames import Mode

# Added to every count of the frequency baselines, so that a level never heard in training costs bits and not infinity.
PSEUDO_COUNT = 0.1
# Frames near each other are alike in what they cost, minutes hardly: what is resampled has to be longer than that.
BLOCK_SECONDS = 60
# A handful of minutes does not say how far minutes differ.
MIN_BLOCKS = 8
NUM_RESAMPLES = 2000
# Each baseline, and what its line in a chart is called.
UNIGRAM, BIGRAM = "unigram baseline", "bigram baseline"
COPY, MEDIAN = "copy baseline", "median baseline"
LINES = {UNIGRAM: "unigram", BIGRAM: "bigram", COPY: "copy", MEDIAN: "median"}


def find_unvoiced_pitch(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return which values are the pitch of an unvoiced sub-frame, bool (T, F): the encoder's noise, never heard.

    A pitch field is that of one sub-frame, so its voicing bit is that sub-frame's (1600 has two of each). None in the
    modes where no such values can be told: a joint label (2400, 1400, 1200) holds the energy too, and 700C has no pitch
    where it is unvoiced.
    """
    pitch = [mode.fields[f] for f in mode.group_indices("pitch")]
    bits = {mode.fields[f].sub_frame: f for f in mode.group_indices("voicing")}
    if not bits or any(field.kind == "label" for field in pitch):
        return None
    found = np.zeros(frames.shape, bool)
    for f, field in zip(mode.group_indices("pitch"), pitch, strict=True):
        found[:, f] = frames[:, bits[field.sub_frame]] == 0
    return found


def name_bits(bits_F: np.ndarray, unvoiced_pitch_bits: float | None, mode: Mode) -> dict[str, Any]:
    """Return the named figures of bits a frame: in total, without unvoiced pitch, by group and by field.

    Args:
        bits_F: mean bits of each field.
        unvoiced_pitch_bits: how many of them, a mean over all frames, go to the pitch of unvoiced sub-frames; None
            where a mode has none that could be told.
        mode: the mode.
    """
    figures: dict[str, Any] = {"bits_per_frame": float(bits_F.sum())}
    if unvoiced_pitch_bits is not None:
        figures["bits_per_frame_without_unvoiced_pitch"] = float(bits_F.sum() - unvoiced_pitch_bits)
    figures |= {f"bits/{group}": float(bits_F[mode.group_indices(group)].sum()) for group in mode.groups}
    return figures | {"bits_by_field": _by_field(bits_F, mode)}


def name_errors(error_F: np.ndarray, mode: Mode) -> dict[str, Any]:
    """Return the named figures of absolute error in levels, means over fields; none in modes with label fields."""
    if mode.has_labels:
        return {}
    figures: dict[str, Any] = {"error_levels": float(error_F.mean())}
    figures |= {f"error/{group}": float(error_F[mode.group_indices(group)].mean()) for group in mode.groups}
    return figures | {"error_by_field": _by_field(error_F, mode)}


def _by_field(values_F: np.ndarray, mode: Mode) -> dict[str, float]:
    return {field.name: float(value) for field, value in zip(mode.fields, values_F, strict=True)}


def _count_transitions(
    recordings: list[np.ndarray], column: int, levels: int, counted: list[np.ndarray] | None = None
) -> np.ndarray:
    """Return how often each level of a field follows each, float64 (last, next), where `counted` (T, F) if given."""
    counts = np.zeros(levels * levels)
    for n, frames in enumerate(recordings):
        level = frames[:, column].astype(np.int64)
        steps = level[:-1] * levels + level[1:]
        counts += np.bincount(steps if counted is None else steps[counted[n][1:, column]], minlength=levels * levels)
    return counts.reshape(levels, levels)


def measure_baselines(train: list[np.ndarray], held_out: list[np.ndarray], mode: Mode) -> dict[str, dict[str, Any]]:
    """Return what predictors without a network reach on held-out recordings, by name.

    Args:
        train: recordings (T, F) that frequencies and medians are learned from.
        held_out: recordings (T, F) that are predicted, every frame but each one's first.
        mode: their mode; in modes with label fields no error is given.

    Returns:
        for each baseline the figures of `name_bits` or those of `name_errors`.
    """
    alone_F, given_last_F, copied_F, median_F = np.zeros((4, mode.num_fields))
    masks = [find_unvoiced_pitch(frames, mode) for frames in held_out]
    unvoiced = [mask for mask in masks if mask is not None]
    unvoiced_bits = np.zeros(2)
    for column, levels in enumerate(mode.levels.tolist()):
        learned = _count_transitions(train, column, levels) + PSEUDO_COUNT
        heard = _count_transitions(held_out, column, levels)
        frames = heard.sum()
        given_last = learned / learned.sum(axis=1, keepdims=True)
        alone = np.broadcast_to(learned.sum(axis=0) / learned.sum(), heard.shape)
        bits = np.stack([-np.log2(alone), -np.log2(given_last)])
        alone_F[column], given_last_F[column] = (heard * bits).sum(axis=(1, 2)) / frames
        if unvoiced and mode.fields[column].group == "pitch":
            unvoiced_bits += (_count_transitions(held_out, column, levels, unvoiced) * bits).sum(axis=(1, 2)) / frames
        last, after = np.indices(heard.shape)
        median = (given_last.cumsum(axis=1) < 0.5).sum(axis=1)
        copied_F[column] = (heard * abs(after - last)).sum() / frames
        median_F[column] = (heard * abs(after - median[:, None])).sum() / frames
    alone_bits, given_last_bits = unvoiced_bits.tolist() if unvoiced else (None, None)
    figures = {
        UNIGRAM: name_bits(alone_F, alone_bits, mode),
        BIGRAM: name_bits(given_last_F, given_last_bits, mode),
        COPY: name_errors(copied_F, mode),
        MEDIAN: name_errors(median_F, mode),
    }
    return {name: values for name, values in figures.items() if values}


def baseline_lines(baselines: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the figures of `measure_baselines` by the name of a line, such as "baseline/error/pitch/copied"."""
    return {
        f"baseline/{figure}/{LINES[name]}": value
        for name, figures in baselines.items()
        for figure, value in figures.items()
        if not isinstance(value, dict)
    }


def bootstrap_interval(costs: list[np.ndarray], block_frames: int, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean cost of a frame, from blocks of frames drawn anew; None if they are few.

    Args:
        costs: each recording's costs of its frames (T,).
        block_frames: length of the blocks that recordings fall into; the last one of a recording is shorter.
        seed: of the draws.
    """
    blocks = [cost[start : start + block_frames] for cost in costs for start in range(0, len(cost), block_frames)]
    if len(blocks) < MIN_BLOCKS:
        return None
    sums, lengths = np.array([[block.sum(dtype=np.float64), len(block)] for block in blocks]).T
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (NUM_RESAMPLES, len(blocks)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / lengths[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
