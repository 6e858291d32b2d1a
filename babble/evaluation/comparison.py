"""Babble compared with real speech and with references that need no network.

    comparison = compare_speech(babble, held_out, train, mode, seed=0)

1. Sets of equal size are made: babble, held-out speech ("real speech"), training speech ("other real speech"), the
   frames of the held-out speech shuffled, and a Markov chain per field.
2. `measure_speech` gives the statistics of each set.
3. A classifier is trained to separate each set from the held-out speech (classifier.py), on clips of several lengths.
"""

import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from babble.codec.frames import Mode
from babble.evaluation.classifier import measure_accuracy
from babble.evaluation.clips import pick_segments
from babble.evaluation.references import sample_markov_chain, shuffle_frames
from babble.evaluation.speech_statistics import CLIP_SECONDS, REAL, measure_speech

CLASSIFIED_SECONDS = (1, 4, 16, 60)
# How much of each set the phone recogniser gets: it is by far the slowest measure.
PHONE_SECONDS = 300.0


def compare_speech(
    babble: list[np.ndarray], held_out: list[np.ndarray], train: list[np.ndarray], mode: Mode, seed: int
) -> dict[str, Any]:
    """Return the statistics of babble, real speech and references, and the classifier accuracy against held-out speech.

    Args:
        babble: streams (T, F) of one length, which the segments of the other sets have too.
        held_out: recordings (T, F) that the network was not trained on.
        train: recordings (T, F) that it was trained on.
        mode: the mode of all frames.
        seed: random seed of everything sampled.

    Returns:
        "statistics": what `measure_speech` returns. "classifier": by set and clip length in seconds (text), the values
        of an `Accuracy`, or None if there are too few clips. Good babble has the values of "other real speech".
    """
    rng = np.random.default_rng(seed)
    num_frames, total_frames = len(babble[0]), sum(map(len, babble))
    clip_frames = min(num_frames, CLIP_SECONDS * mode.frames_per_second)
    real, other = (
        pick_segments(recordings, num_frames, total_frames, clip_frames, seed) for recordings in (held_out, train)
    )
    speech = {
        "babble": babble,
        REAL: real,
        "other real speech": other,
        "shuffled frames": [shuffle_frames(frames, rng) for frames in real],
        "Markov chain": [sample_markov_chain(train, num_frames, mode, rng) for _ in babble],
    }
    pairs = [(name, seconds) for name in speech if name != REAL for seconds in CLASSIFIED_SECONDS]
    accuracies: dict[str, dict[str, Any]] = {name: {} for name, _ in pairs}
    for name, seconds in tqdm(pairs, "classifier", disable=not sys.stderr.isatty()):
        accuracy = measure_accuracy(speech[name], real, mode, seconds * mode.frames_per_second, seed)
        accuracies[name][str(seconds)] = accuracy and asdict(accuracy)
    return {"statistics": measure_speech(speech, train, mode, PHONE_SECONDS, seed), "classifier": accuracies}
