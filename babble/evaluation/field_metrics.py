"""Metrics of predictions by field, by group of fields and in total: bits per frame and absolute error in levels.

metrics = name_errors(error_F, mode) | name_bits(bits_F, unvoiced_pitch_bits, mode)
"""

from typing import Any

import numpy as np

from babble.codec.frames import Mode


def find_unvoiced_pitch(frames: np.ndarray, mode: Mode) -> np.ndarray | None:
    """Return which values are the pitch of an unvoiced sub-frame, bool (T, F): encoder noise without audible effect.

    A pitch field belongs to one sub-frame, so that sub-frame's voicing bit applies (1600 has two of each). None in
    modes without such values: a joint label (2400, 1400, 1200) contains the energy too, and 700C has no pitch in
    unvoiced frames.
    """
    pitch = [mode.fields[f] for f in mode.group_indices("pitch")]
    voicing = {mode.fields[f].sub_frame: f for f in mode.group_indices("voicing")}
    if not voicing or any(field.kind == "label" for field in pitch):
        return None
    is_unvoiced_pitch = np.zeros(frames.shape, bool)
    for f, field in zip(mode.group_indices("pitch"), pitch, strict=True):
        is_unvoiced_pitch[:, f] = frames[:, voicing[field.sub_frame]] == 0
    return is_unvoiced_pitch


def name_bits(bits_F: np.ndarray, unvoiced_pitch_bits: float | None, mode: Mode) -> dict[str, Any]:
    """Return bits per frame in total, without the pitch of unvoiced frames, by group and by field.

    Args:
        bits_F: mean bits of each field.
        unvoiced_pitch_bits: the part of them, as a mean over all frames, that is the pitch of unvoiced sub-frames; None
            if `find_unvoiced_pitch` returns None for the mode.
        mode: the mode of the frames.
    """
    metrics: dict[str, Any] = {"bits_per_frame": float(bits_F.sum())}
    if unvoiced_pitch_bits is not None:
        metrics["bits_per_frame_without_unvoiced_pitch"] = float(bits_F.sum() - unvoiced_pitch_bits)
    metrics |= {f"bits/{group}": float(bits_F[mode.group_indices(group)].sum()) for group in mode.groups}
    return metrics | {"bits_by_field": _name_fields(bits_F, mode)}


def name_errors(error_F: np.ndarray, mode: Mode) -> dict[str, Any]:
    """Return absolute error in levels in total, by group and by field, as means over fields.

    Empty in modes with label fields, whose levels have no distance.
    """
    if mode.has_labels:
        return {}
    metrics: dict[str, Any] = {"error_levels": float(error_F.mean())}
    metrics |= {f"error/{group}": float(error_F[mode.group_indices(group)].mean()) for group in mode.groups}
    return metrics | {"error_by_field": _name_fields(error_F, mode)}


def _name_fields(values_F: np.ndarray, mode: Mode) -> dict[str, float]:
    return {field.name: float(value) for field, value in zip(mode.fields, values_F, strict=True)}
