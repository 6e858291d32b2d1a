"""Babble compared with real speech and with references that need no network.

    comparison = compare_speech(babble, held_out, train, mode, seed=0)

1. Sets of equal size are made: babble, held-out speech ("real speech"), training speech ("other real speech"), the
   frames of the held-out speech shuffled, and a Markov chain per field.
2. `measure_speech` gives the statistics of each set.
3. A classifier is trained to separate each set from the held-out speech (classifier.py), on clips of several lengths.

Statistics and classifiers are independent of each other: they use all cores.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.codec.frames import Mode
from babble.evaluation.classifier import measure_accuracy
from babble.evaluation.clips import pick_segments
from babble.evaluation.references import sample_markov_chain, shuffle_frames
from babble.evaluation.speech_statistics import CLIP_SECONDS, REAL, measure_speech
from babble.processes import run_in_processes

CLASSIFIED_SECONDS = (1, 4, 16, 60)
# How much of each set the phone recogniser gets: it is by far the slowest measure.
PHONE_SECONDS = 300.0
# Each process takes seconds to start.
PARALLEL_SECONDS = 600.0


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
    tasks: list[Callable[[], Any]] = [
        # First, as it takes longest.
        partial(measure_speech, speech, train, mode, PHONE_SECONDS, seed),
        *(partial(measure_accuracy, speech[n], real, mode, s * mode.frames_per_second, seed) for n, s in pairs),
    ]
    total_seconds = total_frames / mode.frames_per_second
    statistics, *found = tqdm(_run(tasks, total_seconds), "measures", len(tasks), disable=not sys.stderr.isatty())
    accuracies: dict[str, dict[str, Any]] = {name: {} for name, _ in pairs}
    for (name, seconds), accuracy in zip(pairs, found, strict=True):
        accuracies[name][str(seconds)] = accuracy and asdict(accuracy)
    return {"statistics": statistics, "classifier": accuracies}


def _run(tasks: Sequence[Callable[[], Any]], seconds: float) -> Iterator[Any]:
    """Yield the result of each task, from a process per core if there is enough speech to be worth their start."""
    if seconds < PARALLEL_SECONDS:
        yield from (task() for task in tasks)
        return
    yield from run_in_processes([partial(_run_on_one_thread, task) for task in tasks], len(os.sched_getaffinity(0)))


def _run_on_one_thread(task: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    return task()
