"""`ranks`, `stopping`, `sweep` and `streaming`: several processes, signals, and corpora larger than memory."""

import contextlib
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from babble.files import read_json_lines
from babble.run_folder import RunFolder
from jobs.benchmark.config import BenchmarkConfig
from jobs.benchmark.corpus import make_corpus
from jobs.benchmark.measurement import Measurement, per_second
from jobs.benchmark.process_usage import run_in_process, start_command, stay_on_one_core
from jobs.benchmark.training import TRAINING_ALONE, read_training, write_flags

STREAMS, CHUNK_FRAMES = 16, 64
CORPUS_HOURS = 2.0
RANK_STEPS = 120
TRIALS, TRIAL_STEPS = 8, 700
STREAMED_HOURS = 500.0
# As large as the default recipe: a step's arithmetic takes longer than what surrounds it.
SHAPE: dict[str, Any] = {"model.num_layers": 2, "model.units": 320, "model.skips": "true"}
SHAPE |= {"data.reading": "streams", "data.window_frames": CHUNK_FRAMES, "data.batch_size": STREAMS}


def _train_command(run: RunFolder, corpus: Path, settings: dict[str, Any]) -> list[str]:
    place = {"runs": run.path.parent, "name": run.path.name, "data.shards": corpus}
    return [sys.executable, "-u", "-m", "babble.train", *write_flags({**SHAPE, **TRAINING_ALONE, **place, **settings})]


def measure_ranks(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the speed of two processes on two cores, compared with twice that of one process on one core.

    The speed of two independent trainings shows what the machine itself allows.
    """
    corpus = make_corpus(folder, CORPUS_HOURS * config.scale)
    steps = config.count(RANK_STEPS, at_least=12)
    cores = sorted(os.sched_getaffinity(0))[:2]
    ways = {"single": [cores[:1]], "joint": [cores], "independent": [[core] for core in cores]}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(config.turns):
        for way in list(ways)[:: -1 if turn % 2 else 1]:
            runs = [RunFolder(folder / f"{way}-{turn}-{number}") for number in range(len(ways[way]))]
            with contextlib.ExitStack() as trainings:
                for run, its_cores in zip(runs, ways[way], strict=True):
                    settings = {"compute.devices": len(its_cores), "stop.steps": steps, "log_every_steps": steps // 12}
                    trainings.enter_context(start_command(_train_command(run, corpus, settings), its_cores))
            speeds[way].append(sum(map(_read_speed, runs)))
    twice = tuple(2 * speed for speed in speeds["single"])
    joint, independent = tuple(speeds["joint"]), tuple(speeds["independent"])
    note = f"{STREAMS} streams of {CHUNK_FRAMES} frames per process, one thread each; gloo"
    return [
        Measurement("two processes compared with twice one", "frames/s", joint, twice, at_least=0.85, note=note),
        Measurement("two independent trainings compared with twice one", "frames/s", independent, twice),
    ]


def _read_speed(run: RunFolder) -> float:
    """Return the median frames per second that a run logged, all its processes together, without the first row."""
    rows = read_json_lines(run.metrics)
    return statistics.median([row[key] for row in rows if (key := "train/frames_per_second") in row][1:])


def measure_stopping(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the seconds from SIGUSR1 to a complete checkpoint, and from a start to the first step.

    Every start but the first resumes the run.
    """
    corpus = make_corpus(folder, CORPUS_HOURS * config.scale)
    run = RunFolder(folder / "stopped")
    command = _train_command(run, corpus, {"stop.steps": 10**6, "log_every_steps": 1})
    saves, starts = [], []
    for _ in range(config.turns):
        start, steps_before = time.perf_counter(), _last_step(run)
        with start_command(command, expected_code=128 + signal.SIGUSR1) as training:
            while _last_step(run) <= steps_before and training.poll() is None:
                time.sleep(0.01)
            starts.append(time.perf_counter() - start)
            time.sleep(1)
            signalled = time.time()
            training.send_signal(signal.SIGUSR1)
        saves.append(run.checkpoint("last").stat().st_mtime - signalled)
    note = f"2x320, one process; {config.turns - 1} of {config.turns} starts resumed"
    return [
        Measurement("SIGUSR1 to a complete checkpoint", "s", tuple(saves), at_most=5, note=note),
        Measurement("start to first step, imports included", "s", tuple(starts), at_most=30),
    ]


def _last_step(run: RunFolder) -> int:
    return max((row["step"] for row in read_json_lines(run.metrics)), default=-1)


def measure_sweep(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the time that a sweep of equal trials takes, compared with the same trainings in two shell loops.

    Two cores, one trial on each; the start of Ray is not counted.
    """
    corpus = make_corpus(folder, CORPUS_HOURS * config.scale)
    cores = sorted(os.sched_getaffinity(0))[:2]
    trials, steps = config.count(TRIALS, at_least=2), config.count(TRIAL_STEPS)
    settings = {"stop.steps": steps, "model.units": 160, "log_every_steps": 50}
    turn = itertools.count()

    def loop() -> float:
        name = f"loop-{next(turn)}"
        commands = [
            shlex.join(_train_command(RunFolder(folder / f"{name}-{seed}"), corpus, settings | {"seed": seed}))
            for seed in range(trials)
        ]
        first, second = (" && ".join(commands[core::2]) for core in (0, 1))
        start = time.perf_counter()
        with start_command(["bash", "-c", f"({first}) & {second} && wait $!"], cores):
            pass
        return time.perf_counter() - start

    def sweep() -> float:
        # One configuration: a sweep refuses flags for what it varies, so a setting that has none.
        space = {"model.frames_ahead": {"choice": [1]}}
        sweep_only = {"seeds": list(range(trials)), "space": json.dumps(space)}
        command = _train_command(RunFolder(folder / f"sweep-{next(turn)}"), corpus, settings | sweep_only)
        command[command.index("babble.train")] = "babble.tune"
        with start_command(command, cores, stdout=subprocess.PIPE) as tune:
            # Its first line is printed once Ray has started.
            tune.stdout.readline()
            start = time.perf_counter()
            tune.stdout.read()
        return time.perf_counter() - start

    ours, floors = zip(*((sweep(), loop()) for _ in range(config.few_turns)), strict=True)
    note = f"{trials} trainings of {steps} steps, two at once, with the sweep's report"
    return [Measurement("a sweep compared with two shell loops", "s", ours, floors, at_most=1.10, note=note)]


def measure_streaming(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return how fast one process reads windows and streams of a corpus not held in memory, and the memory it takes."""
    hours = STREAMED_HOURS * config.scale
    corpus = make_corpus(folder, hours)
    return [
        measurement
        for reading in ("windows", "streams")
        for measurement in run_in_process(_measure_reading, reading, corpus, hours)
    ]


def _measure_reading(reading: str, corpus: Path, hours: float) -> list[Measurement]:
    stay_on_one_core()
    from babble.data.datamodule import SpeechData

    settings = {"data.shards": corpus, "data.reading": reading, "data.holding": "shards"}
    settings |= {"data.window_frames": 64, "data.batch_size": 64}
    # Windows without overlap: each frame is read once, as in streams.
    settings |= {"data.hop_frames": 64} if reading == "windows" else {}
    data = SpeechData(read_training(settings).data, seed=0)
    data.setup()
    loader = data.train_dataloader()
    batches = iter(loader)
    tenth = len(loader) // 10
    speeds, memory = [], []
    for _ in range(10):
        speeds.append(per_second(tenth * 64 * 64, lambda: [None for _ in itertools.islice(batches, tenth)]))
        memory.append(psutil.Process().memory_info().rss / 1e6)
    name = f"{reading} from shards"
    note = f"{hours:g} h, one core"
    most, least = max(memory[1:]), min(memory[1:])
    return [
        Measurement(name, "frames/s", tuple(speeds), at_least=2e6, note=note),
        Measurement(f"{name}, highest memory compared with lowest", "MB", (most,), (least,), at_most=1.1),
    ]
