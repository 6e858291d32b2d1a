"""Drift of clip statistics from minute to minute of a recording.

drift = mean_drift(streams, mode, pause_db)
"""

import math

import numpy as np

from babble.codec.frames import Mode
from babble.evaluation.clips import cut_clips, measure_clip

MIN_DRIFT_SECONDS = 120


def measure_drift(frames: np.ndarray, mode: Mode, pause_db: float | None) -> dict[str, dict[str, float]]:
    """Return how each statistic of `measure_clip` changes over the minutes of a recording (T, F).

    Args:
        frames: at least two minutes.
        mode: the mode of the frames.
        pause_db: see `measure_clip`.

    Returns:
        for each statistic "per_minute", the slope of a line fitted to the minutes, and "last_minus_first".
    """
    minutes = [measure_clip(clip, mode, pause_db) for clip in cut_clips([frames], 60 * mode.frames_per_second)]
    drift = {}
    for name in minutes[0]:
        values = np.array([statistics[name] for statistics in minutes])
        known = np.flatnonzero(~np.isnan(values))
        slope = np.polyfit(known, values[known], 1)[0] if len(known) > 1 else np.nan
        drift[name] = {"per_minute": float(slope), "last_minus_first": float(values[-1] - values[0])}
    return drift


def mean_drift(
    recordings: list[np.ndarray], mode: Mode, pause_db: float | None
) -> dict[str, dict[str, float | None]] | None:
    """Return the mean of `measure_drift` over the recordings of two minutes or more; None without any.

    A value is None if no recording has it, e.g. the pitch of recordings without voice.
    """
    min_frames = MIN_DRIFT_SECONDS * mode.frames_per_second
    drifts = [measure_drift(frames, mode, pause_db) for frames in recordings if len(frames) >= min_frames]
    if not drifts:
        return None
    return {
        name: {key: _mean_known([drift[name][key] for drift in drifts]) for key in drifts[0][name]}
        for name in drifts[0]
    }


def _mean_known(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None
