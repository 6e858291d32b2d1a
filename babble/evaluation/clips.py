"""Clips of speech and their statistics: change, repetition, LSP order, energy, voicing, pauses, pitch.

    pause_db = find_pause_db(train, mode)
    statistics = [measure_clip(clip, mode, pause_db) for clip in cut_clips(recordings, clip_frames)]

In: frames (T, F) of any mode. Out: a dict of numbers per clip. A statistic without meaning in a mode is omitted;
`explain_omitted` names it and says why.
"""

import numpy as np

from babble.codec.frames import Mode, energy_db, has_disordered_lsps, is_voiced, pitch_hz

# Shorter dips of the energy are stops within words.
MIN_PAUSE_SECONDS = 0.2
ENERGY_STATISTICS = ("energy_db", "energy_spread_db", "pauses", "pause_median_s", "pause_longest_s")
PITCH_STATISTICS = ("pitch_hz", "pitch_range_semitones", "pitch_step_semitones")


def cut_clips(recordings: list[np.ndarray], clip_frames: int) -> list[np.ndarray]:
    """Return the clips of `clip_frames` frames in recordings (T, F), end to end; the rest of a recording is dropped."""
    return [
        frames[start : start + clip_frames]
        for frames in recordings
        for start in range(0, len(frames) - clip_frames + 1, clip_frames)
    ]


def pick_segments(
    recordings: list[np.ndarray], segment_frames: int, total_frames: int, min_frames: int, seed: int
) -> list[np.ndarray]:
    """Return random segments of recordings, in the order of the recordings, `total_frames` together.

    Args:
        recordings: (T, F) each. If they have fewer frames than `total_frames`, all their segments are returned.
        segment_frames: length of a segment; the last one of a recording is shorter.
        total_frames: the segments together have at least this many frames, and at most one segment more.
        min_frames: shorter segments are dropped, unless more than half of all segments are shorter.
        seed: random seed of the choice.
    """
    segments = [frames[t : t + segment_frames] for frames in recordings for t in range(0, len(frames), segment_frames)]
    shortest = min(min_frames, np.median([len(segment) for segment in segments]))
    segments = [segment for segment in segments if len(segment) >= shortest]
    order = np.random.default_rng(seed).permutation(len(segments))
    frames_before = np.cumsum([0, *(len(segments[n]) for n in order)])[:-1]
    return [segments[n] for n in sorted(order[frames_before < total_frames])]


def find_pause_db(recordings: list[np.ndarray], mode: Mode) -> float | None:
    """Return the energy in dB below which frames of a voice are pauses: midway between its 5th and 95th percentile.

    None in modes whose labels contain the energy.
    """
    energy = [level for frames in recordings if (level := energy_db(frames, mode)) is not None]
    return float(np.percentile(np.concatenate(energy), (5, 95)).mean()) if energy else None


def measure_clip(frames: np.ndarray, mode: Mode, pause_db: float | None) -> dict[str, float]:
    """Return the statistics of a clip by name, without those that have no meaning in its mode.

    Args:
        frames: (T, F), T at least 2.
        mode: the mode of the frames.
        pause_db: frames with less energy are pauses; None if the energy is not known.

    Returns:
        change_levels: mean absolute difference between a frame and the one before, over all fields.
        changed_fields: share of fields that differ from the frame before.
        repeated_frames: share of frames that equal the frame before.
        lsp_disorder: share of frames whose LSPs decode out of order.
        energy_db, energy_spread_db: mean and standard deviation.
        voiced: share of sub-frames; voiced_run_median_s, voiced_run_longest_s: duration of voiced runs.
        pauses, pause_median_s, pause_longest_s: share and duration of pauses of at least `MIN_PAUSE_SECONDS`.
        pitch_hz, pitch_range_semitones: median, and 5th to 95th percentile, over voiced frames.
        pitch_step_semitones: mean absolute difference between consecutive voiced frames.
        NaN where a clip has none, e.g. the pitch of a clip without voice.
    """
    energy = energy_db(frames, mode) if pause_db is not None else None
    statistics = _measure_change(frames, mode)
    if energy is not None:
        statistics |= {"energy_db": energy.mean(), "energy_spread_db": energy.std()}
    statistics |= _measure_voicing(frames, mode)
    if energy is not None:
        statistics |= _measure_pauses(energy < pause_db, mode)
    pitch = pitch_hz(frames, mode)
    if pitch is not None:
        statistics |= _measure_pitch(pitch)
    return {name: float(value) for name, value in statistics.items()}


def explain_omitted(mode: Mode) -> dict[str, str]:
    """Return which statistics of `measure_clip` have no meaning in a mode, and why."""
    omitted = {}
    if mode.has_labels:
        omitted["change_levels"] = "labels have no distance"
    if has_disordered_lsps(np.zeros((1, mode.num_fields), mode.dtype), mode) is None:
        is_always_ordered = mode.name == "3200"
        omitted["lsp_disorder"] = (
            "differences are always in order" if is_always_ordered else "labels contain the spectrum"
        )
    if not mode.group_indices("energy"):
        omitted |= dict.fromkeys(ENERGY_STATISTICS, "labels contain the energy")
    if any(field.name.startswith("WoE") for field in mode.fields):
        omitted |= dict.fromkeys(PITCH_STATISTICS, "labels contain the pitch")
    return omitted


def _measure_change(frames: np.ndarray, mode: Mode) -> dict[str, float]:
    difference = np.abs(np.diff(frames.astype(np.int64), axis=0))
    statistics = {} if mode.has_labels else {"change_levels": difference.mean()}
    statistics["changed_fields"] = (difference > 0).mean()
    statistics["repeated_frames"] = (difference == 0).all(axis=1).mean()
    is_disordered = has_disordered_lsps(frames, mode)
    if is_disordered is not None:
        statistics["lsp_disorder"] = is_disordered.mean()
    return statistics


def _measure_voicing(frames: np.ndarray, mode: Mode) -> dict[str, float]:
    columns = mode.group_indices("voicing")
    voiced = frames[:, columns].reshape(-1) == 1 if columns else is_voiced(frames, mode)
    values_per_second = len(voiced) / len(frames) * mode.frames_per_second
    return {"voiced": voiced.mean(), **_name_durations("voiced_run", _run_lengths(voiced) / values_per_second)}


def _measure_pauses(is_quiet: np.ndarray, mode: Mode) -> dict[str, float]:
    rate = mode.frames_per_second
    pauses = _run_lengths(is_quiet)
    pauses = pauses[pauses >= MIN_PAUSE_SECONDS * rate]
    return {"pauses": pauses.sum() / len(is_quiet), **_name_durations("pause", pauses / rate)}


def _measure_pitch(pitch: np.ndarray) -> dict[str, float]:
    semitones = 12 * np.log2(pitch)
    steps = np.abs(np.diff(semitones))
    steps, semitones = steps[~np.isnan(steps)], semitones[~np.isnan(semitones)]
    low, middle, high = np.percentile(semitones, (5, 50, 95)) if len(semitones) else (np.nan,) * 3
    return {
        "pitch_hz": 2 ** (middle / 12),
        "pitch_range_semitones": high - low,
        "pitch_step_semitones": steps.mean() if len(steps) else np.nan,
    }


def _run_lengths(is_in: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of True in a bool array, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in, [False]])))
    return edges[1::2] - edges[::2]


def _name_durations(name: str, seconds: np.ndarray) -> dict[str, float]:
    if len(seconds) == 0:
        return {f"{name}_median_s": np.nan, f"{name}_longest_s": 0.0}
    return {f"{name}_median_s": float(np.median(seconds)), f"{name}_longest_s": float(seconds.max())}
