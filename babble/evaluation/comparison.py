"""Babble compared with real speech and with references that need no network.

    comparison = compare_speech(make_babble, (8, 15_000), held_out, train, mode, seed=0)

1. Sets of equal size are made: held-out speech ("real speech"), training speech ("other real speech"), the frames of
   the held-out speech shuffled, and a Markov chain per field.
2. A classifier is trained to separate each set from the held-out speech (classifier.py), on clips of several lengths.
   Meanwhile `make_babble` generates the babble, which is one set more.
3. `measure_speech` gives the statistics of each set.

Statistics and classifiers are independent of each other: they use all cores.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from babble.codec.frames import Mode
from babble.evaluation.classifier import Accuracy, measure_accuracy
from babble.evaluation.clips import pick_segments
from babble.evaluation.references import sample_markov_chain, shuffle_frames
from babble.evaluation.speech_statistics import CLIP_SECONDS, REAL, measure_speech
from babble.processes import run_in_processes

BABBLE = "babble"
CLASSIFIED_SECONDS = (1, 4, 16, 60)
# How much of each set the phone recogniser gets: it is by far the slowest measure.
PHONE_SECONDS = 300.0
# Each process takes seconds to start.
PARALLEL_SECONDS = 600.0


def compare_speech(
    make_babble: Callable[[], list[np.ndarray]],
    shape: tuple[int, int],
    held_out: list[np.ndarray],
    train: list[np.ndarray],
    mode: Mode,
    seed: int,
) -> dict[str, Any]:
    """Return the statistics of babble, real speech and references, and the classifier accuracy against held-out speech.

    Args:
        make_babble: called once, in this process; returns streams (T, F) of one length.
        shape: number of streams and their frames, T; the segments of the other sets have T frames too.
        held_out: recordings (T, F) that the network was not trained on.
        train: recordings (T, F) that it was trained on.
        mode: the mode of all frames.
        seed: random seed of everything sampled.

    Returns:
        "statistics": what `measure_speech` returns. "classifier": by set and clip length in seconds (text), the values
        of an `Accuracy`, or None if there are too few clips. Good babble has the values of "other real speech".
    """
    rng = np.random.default_rng(seed)
    num_streams, num_frames = shape
    total_frames = num_streams * num_frames
    clip_frames = min(num_frames, CLIP_SECONDS * mode.frames_per_second)
    real, other = (
        pick_segments(recordings, num_frames, total_frames, clip_frames, seed) for recordings in (held_out, train)
    )
    references = {
        "other real speech": other,
        "shuffled frames": [shuffle_frames(frames, rng) for frames in real],
        "Markov chain": [sample_markov_chain(train, num_frames, mode, rng) for _ in range(num_streams)],
    }

    def make_tasks() -> Iterator[Callable[[], Any]]:
        for frames in references.values():
            yield from _classify(frames, real, mode, seed)
        babble = make_babble()
        assert [len(frames) for frames in babble] == [num_frames] * num_streams, "the other sets have another size"
        # Before the others, as it takes longest.
        yield partial(measure_speech, {BABBLE: babble, REAL: real, **references}, train, mode, PHONE_SECONDS, seed)
        yield from _classify(babble, real, mode, seed)

    is_long = total_frames >= PARALLEL_SECONDS * mode.frames_per_second
    results = _run_in_processes(make_tasks()) if is_long else (task() for task in make_tasks())
    total = 1 + (1 + len(references)) * len(CLASSIFIED_SECONDS)
    found = list(tqdm(results, "measures", total, disable=not sys.stderr.isatty()))
    statistics = found.pop(len(references) * len(CLASSIFIED_SECONDS))
    accuracies = iter(accuracy and asdict(accuracy) for accuracy in found)
    by_set = {name: {str(s): next(accuracies) for s in CLASSIFIED_SECONDS} for name in (*references, BABBLE)}
    return {"statistics": statistics, "classifier": {name: by_set[name] for name in (BABBLE, *references)}}


def _classify(
    ours: list[np.ndarray], real: list[np.ndarray], mode: Mode, seed: int
) -> Iterator[Callable[[], Accuracy | None]]:
    """Yield what measures the classifier accuracy between a set and real speech, for each length of clip."""
    for seconds in CLASSIFIED_SECONDS:
        yield partial(measure_accuracy, ours, real, mode, seconds * mode.frames_per_second, seed)


def _run_in_processes(tasks: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """Yield the result of each task, from a process per core with one thread each."""
    return run_in_processes((partial(_run_on_one_thread, task) for task in tasks), len(os.sched_getaffinity(0)))


def _run_on_one_thread(task: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    return task()
