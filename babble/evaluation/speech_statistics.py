"""How speech sounds, by measure: babble beside real speech and beside what no network is needed for.

In: sets of clips by name ("real speech", "babble", ...) and the training recordings, all as frames of one mode.
Out: a dictionary that JSON can hold, and a table for a screen.

1. Every recording is cut into clips of equal length. Each clip has its measures (`measure_clip`, phones a second);
   a set shows their mean and spread, and whether its mean lies within the spread of real speech.
2. A set as a whole has its distance from the training recordings, its share of copies from them, and the alarms of
   `babble.codec.failures` over its uncut recordings.
3. Recordings of two minutes and more show by how much their measures drift from minute to minute.

Codec 2's modes differ in what their fields tell: what has no meaning in one is left out there and named, with why.
"""

import textwrap
from typing import Any

import numpy as np

from babble.codec.codec2 import decode_frames
from babble.codec.failures import KINDS, LOOK_SECONDS, Guard
from babble.codec.frames import (
    SAMPLE_RATE_HZ,
    Mode,
    energy_db,
    has_disordered_lsps,
    is_voiced,
    pitch_hz,
)

REAL = "real speech"
# Shorter clips of one narrator differ more from each other: phones a second of 10 s are 3 to 9, of 30 s 6 to 8.
CLIP_SECONDS = 30
SPREAD_PERCENTILES = (10, 90)
# Shorter dips of the energy are stops within words.
MIN_PAUSE_SECONDS = 0.2
# Training clips that a set's distance is measured from: the more, the less chance there is in it.
REFERENCE_CLIPS = 120
# One frame apart is articulation, four (160 ms at 40 ms a frame) about two phones.
DISTANCE_STEPS = (1, 4)
# A passage this long, its spectrum in quarters of each field, does not occur twice in hours of real speech.
COPY_SECONDS = 0.32
PHONE_RATE_HZ = 16000

# Each measure as the table shows it: its label, what it is multiplied by, and decimals.
ROWS = {
    "change_levels": ("change, levels/frame", 1, 2),
    "changed_fields": ("changed fields, %", 100, 1),
    "repeated_frames": ("repeated frames, %", 100, 1),
    "lsp_disorder": ("LSPs out of order, %", 100, 2),
    "energy_db": ("energy, dB", 1, 1),
    "energy_spread_db": ("its deviation, dB", 1, 1),
    "voiced": ("voiced, %", 100, 1),
    "voiced_run_median_s": ("voiced run, median s", 1, 2),
    "voiced_run_longest_s": ("  longest s", 1, 2),
    "pauses": ("pauses, %", 100, 1),
    "pause_median_s": ("  median s", 1, 2),
    "pause_longest_s": ("  longest s", 1, 2),
    "pitch_hz": ("pitch, median Hz", 1, 0),
    "pitch_range_semitones": ("  range, semitones", 1, 1),
    "pitch_step_semitones": ("  steps, semitones", 1, 2),
    "phones_per_second": ("phones a second", 1, 2),
    "distance": ("Frechet distance", 1, 2),
    "copied": ("copied, %", 100, 2),
    "alarms_per_ten_minutes": ("alarms in 10 minutes", 1, 1),
    "failing": ("time in alarm, %", 100, 1),
}
LABEL_WIDTH, CELL_WIDTH = 21, 20


def shuffle_frames(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the same frames (T, F) in random order: everything but the order is right."""
    return frames[rng.permutation(len(frames))]


def babble_markov(
    train_recordings: list[np.ndarray], num_frames: int, mode: Mode, rng: np.random.Generator
) -> np.ndarray:
    """Return frames (num_frames, F) in which each field follows its own first-order Markov chain, blind to the others.

    Args:
        train_recordings: recordings (T, F) that the chances are counted in; the first frame is one of theirs.
        num_frames: how many to draw.
        mode: the mode of all of them.
        rng: draws.
    """
    widest = int(mode.levels.max())
    chances_FVV = np.zeros((mode.num_fields, widest, widest))
    for f in range(mode.num_fields):
        for frames in train_recordings:
            level = frames[:, f].astype(np.int64)
            chances_FVV[f] += np.bincount(level[:-1] * widest + level[1:], minlength=widest**2).reshape(widest, widest)
        # A level that nothing follows, as it only ends a recording, goes on as any other does.
        chances_FVV[f, chances_FVV[f].sum(axis=1) == 0] = chances_FVV[f].sum(axis=0)
    chances_FVV = chances_FVV.cumsum(axis=2)
    every = np.arange(mode.num_fields)
    frames = np.empty((num_frames, mode.num_fields), mode.dtype)
    first = train_recordings[rng.integers(len(train_recordings))]
    now = first[rng.integers(len(first))].astype(np.int64)
    for t in range(num_frames):
        frames[t] = now
        upto_FV = chances_FVV[every, now]
        now = (upto_FV <= (rng.random(mode.num_fields) * upto_FV[:, -1])[:, None]).sum(axis=1)
    return frames


def _run_lengths(is_in: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of True in a bool array, in its order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_in, [False]])))
    return edges[1::2] - edges[::2]


def find_pause_db(train: list[np.ndarray], mode: Mode) -> float | None:
    """Return the energy that tells a voice's pauses from its speech: halfway from its 5th to its 95th percentile.

    None in modes whose labels hold the energy.
    """
    energy = [level for frames in train if (level := energy_db(frames, mode)) is not None]
    return float(np.percentile(np.concatenate(energy), (5, 95)).mean()) if energy else None


def measure_clip(frames: np.ndarray, mode: Mode, pause_db: float | None) -> dict[str, float]:
    """Return the measures of a clip by name, without those that have no meaning in its mode.

    Args:
        frames: (T, F), two or more.
        mode: its mode.
        pause_db: frames of less energy are pauses; None where energy is not known.

    Returns:
        change_levels: mean absolute difference of a frame from the one before, over all fields.
        changed_fields: share of fields that differ from the frame before; repeated_frames: of frames that do not.
        lsp_disorder: share of frames whose LSPs decode out of order.
        energy_db, energy_spread_db: mean and standard deviation.
        voiced: share of sub-frames; voiced_run_median_s, voiced_run_longest_s: lengths of their runs.
        pauses, pause_median_s, pause_longest_s: share and lengths of pauses of `MIN_PAUSE_SECONDS` and more.
        pitch_hz, pitch_range_semitones: median and 5th to 95th percentile over voiced frames.
        pitch_step_semitones: mean absolute difference between neighbouring voiced frames.
        NaN where there is none, such as the pitch of a clip without voice.
    """
    rate = mode.frames_per_second
    difference = np.abs(np.diff(frames.astype(np.int64), axis=0))
    measures = {
        "changed_fields": (difference > 0).mean(),
        "repeated_frames": (difference == 0).all(axis=1).mean(),
    }
    if not mode.has_labels:
        measures["change_levels"] = difference.mean()
    disordered = has_disordered_lsps(frames, mode)
    if disordered is not None:
        measures["lsp_disorder"] = disordered.mean()

    columns = mode.group_indices("voicing")
    voiced = frames[:, columns].reshape(-1) == 1 if columns else is_voiced(frames, mode)
    runs = _run_lengths(voiced) / (len(voiced) / len(frames) * rate)
    measures |= {"voiced": voiced.mean(), **_lengths("voiced_run", runs)}

    energy, pitch = energy_db(frames, mode), pitch_hz(frames, mode)
    if energy is not None and pause_db is not None:
        pauses = _run_lengths(energy < pause_db)
        pauses = pauses[pauses >= MIN_PAUSE_SECONDS * rate]
        measures |= {"energy_db": energy.mean(), "energy_spread_db": energy.std()}
        measures |= {"pauses": pauses.sum() / len(frames), **_lengths("pause", pauses / rate)}
    if pitch is not None:
        semitones = 12 * np.log2(pitch)
        steps = np.abs(np.diff(semitones))
        steps, semitones = steps[~np.isnan(steps)], semitones[~np.isnan(semitones)]
        low, middle, high = np.percentile(semitones, (5, 50, 95)) if len(semitones) else (np.nan,) * 3
        measures |= {
            "pitch_hz": 2 ** (middle / 12),
            "pitch_range_semitones": high - low,
            "pitch_step_semitones": steps.mean() if len(steps) else np.nan,
        }
    return {name: float(measures[name]) for name in ROWS if name in measures}


def _lengths(name: str, seconds: np.ndarray) -> dict[str, float]:
    if len(seconds) == 0:
        return {f"{name}_median_s": np.nan, f"{name}_longest_s": 0.0}
    return {f"{name}_median_s": float(np.median(seconds)), f"{name}_longest_s": float(seconds.max())}


class PhoneCounter:
    """Counts phones with pocketsphinx: its own English phones, which any voice has enough of to be counted.

    Raises:
        ImportError: pocketsphinx or soxr is not installed.
    """

    def __init__(self) -> None:
        import pocketsphinx
        import soxr

        self._resample = soxr.resample
        # Phones instead of words. The weights are those of pocketsphinx's own test (cython/test/phoneme_test.py), the
        # beams far narrower: a third faster, and the same counts to 3 % on real speech. Wider ones hear no more.
        self._decoder = pocketsphinx.Decoder(
            allphone=pocketsphinx.get_model_path("en-us/en-us-phone.lm.bin"),
            lw=2.0,
            pip=0.3,
            beam=1e-20,
            pbeam=1e-10,
            loglevel="FATAL",
        )

    def count_phones(self, pcm: np.ndarray) -> int:
        """Return how many phones are in pcm, int16 at 8 kHz; silence and noises (SIL, +NSN+, ...) are none."""
        self._decoder.start_utt()
        # All at once: so the cepstral mean is that of the clip and not of those before it.
        self._decoder.process_raw(
            self._resample(pcm, SAMPLE_RATE_HZ, PHONE_RATE_HZ).tobytes(), no_search=False, full_utt=True
        )
        self._decoder.end_utt()
        return sum(part.word.isalpha() and part.word != "SIL" for part in self._decoder.seg() or ())


def _distance_features(frames: np.ndarray, fields: list[int]) -> np.ndarray:
    level = frames[:, fields].astype(np.float64)
    longest = max(DISTANCE_STEPS)
    return np.concatenate(
        [level[longest:], *(level[longest:] - level[longest - step : -step] for step in DISTANCE_STEPS)], axis=1
    )


def frechet_distance(clips: list[np.ndarray], reference: list[np.ndarray], mode: Mode) -> float | None:
    """Return the Frechet distance between the frames of two sets of clips; None if no field has levels with distances.

    A frame's features are the levels of its fields, labels left out, and their differences from one and from four
    frames before, each divided by its deviation in the reference. It shrinks with more clips: compare equal counts.

    Source: Heusel et al. 2017 (FID), Kilgour et al. 2019 (FAD), on Codec 2's own fields instead of a network's.
    """
    fields = [f for f, field in enumerate(mode.fields) if field.kind != "label"]
    own, other = (np.concatenate([_distance_features(clip, fields) for clip in s]) for s in (clips, reference))
    scale = np.maximum(other.std(axis=0), 1e-6)
    own, other = own / scale, other / scale
    covariances = np.cov(own, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(covariances[1])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # The trace of the root of a product, by the product's symmetric form: no general matrix root is needed.
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[0] @ root), 0)).sum()
    squared = ((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    return float(squared + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared)


def _passages(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return a number for each passage of n frames, equal where their coarse spectra are, uint64 (T - n + 1,)."""
    columns = mode.group_indices("lsp")
    coarse = [mode.fields[f].levels // 4 if mode.fields[f].kind == "ordered" else 1 for f in columns]
    n = round(COPY_SECONDS * mode.frames_per_second)
    # Random odd weights: numbers of passages that differ are equal once in 2**64.
    weights = np.random.default_rng(0).integers(1, 2**63, (n, len(columns)), dtype=np.uint64) * 2 + 1
    level = frames[:, columns].astype(np.uint64) // np.array(coarse, np.uint64)
    length = max(0, len(frames) - n + 1)
    passages = np.zeros(length, np.uint64)
    for i in range(n):
        passages += (level[i : i + length] * weights[i]).sum(axis=1, dtype=np.uint64)
    return passages


def copied_shares(clips: dict[str, list[np.ndarray]], train: list[np.ndarray], mode: Mode) -> dict[str, float]:
    """Return for each set of clips the share of its passages that occur in the training recordings too.

    A passage is `COPY_SECONDS` of frames; two are the same if every field of their spectra is in the same quarter of
    its levels (labels: is the same). Energy, pitch and voicing may differ. Of the Tale's part 13 none occurs in the
    ten hours before it.
    """
    known = np.unique(np.concatenate([_passages(frames, mode) for frames in train]))
    return {
        name: float(np.isin(np.concatenate([_passages(clip, mode) for clip in own]), known).mean())
        for name, own in clips.items()
    }


def count_alarms(recordings: list[np.ndarray], mode: Mode) -> tuple[dict[str, int], float]:
    """Return how many alarms of each kind recordings (T, F) raise, and the share of their time that they last."""
    alarms = dict.fromkeys(KINDS, 0)
    step, looks, failing = LOOK_SECONDS * mode.frames_per_second, 0, 0
    for frames in recordings:
        guard = Guard(mode)
        for start in range(0, len(frames), step):
            for alarm in guard.update(frames[start : start + step]):
                alarms[alarm.kind] += 1
            looks += 1
            failing += guard.failing is not None
    return alarms, failing / max(1, looks)


def measure_drift(frames: np.ndarray, mode: Mode, pause_db: float | None) -> dict[str, dict[str, float]]:
    """Return by how much each measure drifts over the minutes of a recording (T, F) of two or more.

    Returns:
        for each measure "per_minute", the slope of a line through the minutes, and "last_minus_first".
    """
    minute = 60 * mode.frames_per_second
    minutes = [measure_clip(clip, mode, pause_db) for clip in cut_clips([frames], minute)]
    drift = {}
    for name in minutes[0]:
        values = np.array([measures[name] for measures in minutes])
        at = np.flatnonzero(~np.isnan(values))
        slope = np.polyfit(at, values[at], 1)[0] if len(at) > 1 else np.nan
        drift[name] = {"per_minute": float(slope), "last_minus_first": float(values[-1] - values[0])}
    return drift


def cut_clips(recordings: list[np.ndarray], clip_frames: int) -> list[np.ndarray]:
    """Return the whole clips of so many frames that recordings (T, F) hold, what is left over dropped."""
    return [
        frames[start : start + clip_frames]
        for frames in recordings
        for start in range(0, len(frames) - clip_frames + 1, clip_frames)
    ]


def _choose(clips: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [clips[i] for i in sorted(rng.permutation(len(clips))[:count])]


def _spread(values: list[float]) -> dict[str, float] | None:
    known = np.array(values)[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.percentile(known, SPREAD_PERCENTILES)
    return {"mean": float(known.mean()), "low": float(low), "high": float(high)}


def _left_out(mode: Mode) -> dict[str, str]:
    """Return what has no meaning in a mode, with why."""
    fields, left = {field.name: field.kind for field in mode.fields}, {}
    if mode.has_labels:
        left["change_levels"] = "labels have no distance"
    if has_disordered_lsps(np.zeros((1, mode.num_fields), mode.dtype), mode) is None:
        left["lsp_disorder"] = "differences are always in order" if mode.name == "3200" else "labels hold the spectrum"
    if not mode.group_indices("energy"):
        left |= dict.fromkeys([name for name in ROWS if name.startswith(("energy", "pause"))], "labels hold the energy")
    if any(name.startswith("WoE") for name in fields):
        left |= dict.fromkeys([name for name in ROWS if name.startswith("pitch")], "labels hold the pitch")
    return left


def measure_speech(
    speech: dict[str, list[np.ndarray]],
    train: list[np.ndarray],
    mode: Mode,
    phone_seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Return every measure of every set of speech, as JSON can hold it.

    Args:
        speech: recordings (T, F) of each set by name; "real speech" is what the others are judged by. All are cut into
            clips as long as the shortest recording, at most `CLIP_SECONDS`.
        train: the recordings that the network learned from.
        mode: the mode of all of them.
        phone_seconds: how much of each set pocketsphinx hears, at 15 times real time a core: 300 s make ten clips;
            0 leaves it out.
        seed: chooses which clips it hears, and those that distances are measured on.

    Returns:
        mode, seed, clip_seconds, clips: how many each set has.
        measures: by name and set the mean over clips and its spread, "low" and "high" (10th to 90th percentile).
        within: by name and set, real speech apart, whether the mean lies within real speech's spread.
        sets: by name and set the measures that a set has as a whole; alarms: by set and kind how many there were.
        drift: by set and measure the mean of `measure_drift` over its recordings of two minutes and more.
        left_out: what has no meaning in this mode, missing: what could not be measured; both with why.

    Raises:
        ValueError: no real speech, or a recording that is too short to measure.
    """
    if REAL not in speech:
        raise ValueError(f"the statistics judges by {REAL!r}, but was given {', '.join(speech) or 'nothing'}.")
    rate, rng = mode.frames_per_second, np.random.default_rng(seed)
    shortest = min(len(frames) for recordings in speech.values() for frames in recordings)
    clip_frames = min(CLIP_SECONDS * rate, shortest)
    if clip_frames < rate:
        raise ValueError(f"a recording of {shortest} frames is too short to measure: {rate} or more are needed.")
    pause_db = find_pause_db(train, mode)
    clips = {name: cut_clips(recordings, clip_frames) for name, recordings in speech.items()}
    of_clips = {name: [measure_clip(clip, mode, pause_db) for clip in own] for name, own in clips.items()}
    measures = {
        row: {name: _spread([m[row] for m in own]) for name, own in of_clips.items()} for row in of_clips[REAL][0]
    }

    missing = {}
    if phone_seconds > 0:
        try:
            measures["phones_per_second"] = _measure_phones(clips, mode, phone_seconds, rng)
        except ImportError as error:
            missing["phones_per_second"] = f"{error.name} is not installed: pip install -e '.[listen]' in the clone"
    else:
        missing["phones_per_second"] = "not asked for"

    count = min(len(own) for own in clips.values())
    reference = _choose(cut_clips(train, clip_frames), REFERENCE_CLIPS, rng)
    alarms = {name: count_alarms(recordings, mode) for name, recordings in speech.items()}
    ten_minutes = {name: sum(map(len, recordings)) / (600 * rate) for name, recordings in speech.items()}
    return {
        "mode": mode.name,
        "seed": seed,
        "clip_seconds": clip_frames / rate,
        "clips": {name: len(own) for name, own in clips.items()},
        "measures": measures,
        "within": {row: _judge(of_sets) for row, of_sets in measures.items()},
        "sets": {
            "distance": {n: frechet_distance(_choose(own, count, rng), reference, mode) for n, own in clips.items()},
            "copied": copied_shares(clips, train, mode),
            "alarms_per_ten_minutes": {n: sum(a.values()) / ten_minutes[n] for n, (a, _) in alarms.items()},
            "failing": {name: failing for name, (_, failing) in alarms.items()},
        },
        "alarms": {name: of_kind for name, (of_kind, _) in alarms.items()},
        "drift": {name: drift for name, own in speech.items() if (drift := _mean_drift(own, mode, pause_db))},
        "left_out": _left_out(mode),
        "missing": missing,
    }


def _measure_phones(
    clips: dict[str, list[np.ndarray]], mode: Mode, phone_seconds: float, rng: np.random.Generator
) -> dict[str, dict[str, float] | None]:
    counter = PhoneCounter()
    found = {}
    for name, own in clips.items():
        seconds = len(own[0]) / mode.frames_per_second
        heard = _choose(own, max(1, int(phone_seconds / seconds)), rng)
        found[name] = _spread([counter.count_phones(decode_frames(clip, mode)) / seconds for clip in heard])
    return found


def _judge(of_sets: dict[str, dict[str, float] | None]) -> dict[str, bool]:
    """Return for each set but real speech whether its mean lies within the spread of real clips."""
    real = of_sets[REAL]
    found = {}
    for name, own in of_sets.items():
        if name != REAL and real is not None:
            # The mean of what is rare lies outside its own spread.
            low, high = min(real["low"], real["mean"]), max(real["high"], real["mean"])
            found[name] = own is not None and low <= own["mean"] <= high
    return found


def _mean_drift(
    recordings: list[np.ndarray], mode: Mode, pause_db: float | None
) -> dict[str, dict[str, float | None]] | None:
    drifts = [measure_drift(r, mode, pause_db) for r in recordings if len(r) >= 120 * mode.frames_per_second]
    if not drifts:
        return None
    found: dict[str, dict[str, float | None]] = {}
    for row in drifts[0]:
        spreads = {key: _spread([drift[row][key] for drift in drifts]) for key in drifts[0][row]}
        found[row] = {key: spread["mean"] if spread else None for key, spread in spreads.items()}
    return found


def format_statistics(result: dict[str, Any]) -> str:
    """Return the result of `measure_speech` as lines for a screen: a row a measure, a column a set."""
    names = list(result["clips"])
    heads = [textwrap.wrap(name, CELL_WIDTH - 2) for name in names]
    lines = [
        f"How it sounds: means over clips of {result['clip_seconds']:g} s, and 10th..90th percentile; "
        f"! is outside that of {REAL}."
    ]
    for i in range(max(map(len, heads))):
        lines.append(_line("", [head[i] if i < len(head) else "" for head in heads]))
    lines.append(_line("clips", [str(count) for count in result["clips"].values()]))
    for row, (label, scale, decimals) in ROWS.items():
        if row in result["measures"]:
            of_sets, within = result["measures"][row], result["within"][row]
            cells = [_format_spread(of_sets[name], within.get(name, True), scale, decimals) for name in names]
            lines.append(_line(label, cells))
        elif row in result["sets"]:
            values = [result["sets"][row][name] for name in names]
            lines.append(_line(label, ["-" if value is None else f"{scale * value:.{decimals}f}" for value in values]))
    if result["drift"]:
        lines.append("drift a minute (last minute less the first)")
        for row in next(iter(result["drift"].values())):
            drifts = [result["drift"].get(name, {}).get(row) for name in names]
            lines.append(_line(ROWS[row][0], [_format_drift(drift, *ROWS[row][1:]) for drift in drifts]))
    for title, why in (("no meaning in this mode", result["left_out"]), ("not measured", result["missing"])):
        for reason in dict.fromkeys(why.values()):
            lines.append(f"{title}: {', '.join(row for row in why if why[row] == reason)} ({reason})")
    return "\n".join(lines)


def _line(label: str, cells: list[str]) -> str:
    return (f"{label:{LABEL_WIDTH}}" + "".join(f"{cell:{CELL_WIDTH}}" for cell in cells)).rstrip()


def _format_spread(spread: dict[str, float] | None, is_within: bool, scale: int, decimals: int) -> str:
    if spread is None:
        return "-"
    mean, low, high = (f"{scale * spread[key]:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean}{'' if is_within else '!'} {low}..{high}"


def _format_drift(drift: dict[str, float | None] | None, scale: int, decimals: int) -> str:
    if drift is None or drift["per_minute"] is None or drift["last_minus_first"] is None:
        return "-"
    return f"{scale * drift['per_minute']:+.{decimals}f} ({scale * drift['last_minus_first']:+.{decimals}f})"
