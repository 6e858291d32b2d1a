"""Statistics of sets of speech: real speech, babble and references, as frames of one mode.

    result = measure_speech({"real speech": held_out, "babble": streams}, train, mode, phone_seconds=300, seed=0)
    print(format_statistics(result))

In: recordings (T, F) of each set by name, and the training recordings. Out: a dict ready for JSON.

1. All recordings are cut into clips of equal length. Each clip has its statistics (clips.py) and phones per second
   (phones.py); a set has their mean and spread, and whether its mean lies within the spread of real speech.
2. Each set as a whole has its distance from the training recordings (distance.py), its share of copies from them
   (copies.py) and the failure alarms of its uncut recordings (alarms.py).
3. Recordings of two minutes or more have the drift of their statistics (drift.py).
"""

from typing import Any

import numpy as np

from babble.codec.codec2 import decode_frames
from babble.codec.frames import Mode
from babble.evaluation.alarms import count_alarms
from babble.evaluation.clips import cut_clips, explain_omitted, find_pause_db, measure_clip
from babble.evaluation.copies import measure_copies
from babble.evaluation.distance import frechet_distance
from babble.evaluation.drift import mean_drift
from babble.evaluation.phones import PhoneCounter

REAL = "real speech"
# Shorter clips of one narrator differ more from each other: phones per second are 3 to 9 in 10 s, 6 to 8 in 30 s.
CLIP_SECONDS = 30
SPREAD_PERCENTILES = (10, 90)
# Training clips that distances are measured from: more clips, less chance.
REFERENCE_CLIPS = 120

Recordings = list[np.ndarray]
Spread = dict[str, float]


def measure_speech(
    speech: dict[str, Recordings], train: Recordings, mode: Mode, phone_seconds: float, seed: int
) -> dict[str, Any]:
    """Return the statistics of each set of speech, ready for JSON.

    Args:
        speech: recordings (T, F) of each set by name; "real speech" is what the others are compared with. All are cut
            into clips as long as the shortest recording, at most `CLIP_SECONDS`.
        train: training recordings of the network.
        mode: the mode of all frames.
        phone_seconds: how much of each set is searched for phones, at 15 times real time per core; 300 s are ten
            clips, 0 omits them.
        seed: random seed of the choice of clips for phones and distances.

    Returns:
        mode, seed, clip_seconds; clips: number of clips of each set.
        measures: by statistic and set, the mean over clips and its spread, "low" and "high" (10th, 90th percentile).
        within: by statistic and set, except real speech, whether the mean lies within the spread of real speech.
        sets: by statistic and set, the statistics of a set as a whole; alarms: by set and kind, the number of alarms.
        drift: by set and statistic, the mean of `measure_drift` over its recordings of two minutes or more.
        omitted: statistics without meaning in this mode; missing: those that could not be measured; both with why.

    Raises:
        ValueError: no real speech, or a recording too short to measure.
    """
    clip_frames = _choose_clip_frames(speech, mode)
    rng = np.random.default_rng(seed)
    pause_db = find_pause_db(train, mode)
    clips = {name: cut_clips(recordings, clip_frames) for name, recordings in speech.items()}
    measures = _measure_clips(clips, mode, pause_db)
    missing = {}
    if phone_seconds > 0:
        try:
            measures["phones_per_second"] = _measure_phones(clips, mode, phone_seconds, rng)
        except ImportError as error:
            missing["phones_per_second"] = f"{error.name} is not installed: pip install -e '.[listen]' in the clone"
    else:
        missing["phones_per_second"] = "not requested"
    alarms = {name: count_alarms(recordings, mode) for name, recordings in speech.items()}
    ten_minutes = {name: sum(map(len, own)) / (600 * mode.frames_per_second) for name, own in speech.items()}
    return {
        "mode": mode.name,
        "seed": seed,
        "clip_seconds": clip_frames / mode.frames_per_second,
        "clips": {name: len(own) for name, own in clips.items()},
        "measures": measures,
        "within": {statistic: _is_within_real(by_set) for statistic, by_set in measures.items()},
        "sets": {
            "distance": _measure_distances(clips, cut_clips(train, clip_frames), mode, rng),
            "copied": measure_copies(clips, train, mode),
            "alarms_per_ten_minutes": {n: sum(a.values()) / ten_minutes[n] for n, (a, _) in alarms.items()},
            "time_in_alarm": {name: share for name, (_, share) in alarms.items()},
        },
        "alarms": {name: by_kind for name, (by_kind, _) in alarms.items()},
        "drift": {name: drift for name, own in speech.items() if (drift := mean_drift(own, mode, pause_db))},
        "omitted": explain_omitted(mode),
        "missing": missing,
    }


def _choose_clip_frames(speech: dict[str, Recordings], mode: Mode) -> int:
    if REAL not in speech:
        raise ValueError(f"speech has {', '.join(speech) or 'no sets'}, but {REAL!r} is needed to compare them with.")
    rate = mode.frames_per_second
    shortest = min(len(frames) for recordings in speech.values() for frames in recordings)
    if shortest < rate:
        raise ValueError(f"a recording of {shortest} frames is too short to measure: at least {rate} are needed.")
    return min(CLIP_SECONDS * rate, shortest)


def _measure_clips(
    clips: dict[str, Recordings], mode: Mode, pause_db: float | None
) -> dict[str, dict[str, Spread | None]]:
    statistics = {name: [measure_clip(clip, mode, pause_db) for clip in own] for name, own in clips.items()}
    return {
        statistic: {name: _summarize([clip[statistic] for clip in own]) for name, own in statistics.items()}
        for statistic in statistics[REAL][0]
    }


def _measure_phones(
    clips: dict[str, Recordings], mode: Mode, phone_seconds: float, rng: np.random.Generator
) -> dict[str, Spread | None]:
    counter = PhoneCounter()
    rates = {}
    for name, own in clips.items():
        seconds = len(own[0]) / mode.frames_per_second
        chosen = _choose(own, max(1, int(phone_seconds / seconds)), rng)
        rates[name] = _summarize([counter.count_phones(decode_frames(clip, mode)) / seconds for clip in chosen])
    return rates


def _measure_distances(
    clips: dict[str, Recordings], train_clips: Recordings, mode: Mode, rng: np.random.Generator
) -> dict[str, float | None]:
    count = min(len(own) for own in clips.values())
    reference = _choose(train_clips, REFERENCE_CLIPS, rng)
    return {name: frechet_distance(_choose(own, count, rng), reference, mode) for name, own in clips.items()}


def _choose(clips: Recordings, count: int, rng: np.random.Generator) -> Recordings:
    return [clips[i] for i in sorted(rng.permutation(len(clips))[:count])]


def _summarize(values: list[float]) -> Spread | None:
    known = np.array(values)[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.percentile(known, SPREAD_PERCENTILES)
    return {"mean": float(known.mean()), "low": float(low), "high": float(high)}


def _is_within_real(by_set: dict[str, Spread | None]) -> dict[str, bool]:
    """Return for each set, except real speech, whether its mean lies within the spread of real clips."""
    real = by_set[REAL]
    if real is None:
        return {}
    # The mean of something rare lies outside its own spread.
    low, high = min(real["low"], real["mean"]), max(real["high"], real["mean"])
    return {
        name: spread is not None and low <= spread["mean"] <= high for name, spread in by_set.items() if name != REAL
    }
