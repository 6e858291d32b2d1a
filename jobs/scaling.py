"""How babble scales: the parts of the benchmark about several processes, stopping, and corpora larger than memory."""

import csv
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from jobs.measuring import MODE, ROOT, Figure, in_own_process, make_corpus, per_second, say, stay_on_one_core

# As large as the default recipe, in float32: large enough that a step's arithmetic counts.
SHAPE = {"model.num_layers": 2, "model.units": 320, "model.skips": "true", "data.reading": "streams"}
SIZES = {"data.window_frames": 64, "data.batch_size": 16}
QUIET = {"wandb.mode": "off", "listening.every_epochs": 0, "compute.accelerator": "cpu", "compute.threads": 1}
FIRST_STEP_FLOOR = "import babble.train"


def _command(corpus: Path, folder: Path, name: str, **settings: object) -> list[str]:
    words = {**SHAPE, **SIZES, **QUIET, "data.shards": corpus, "runs": folder, "name": name, **settings}
    flags = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in words.items())
    return [sys.executable, "-m", "babble.train", *flags]


def _speed(run: Path) -> float:
    """Return the median of a run's own frames a second, all processes together, its first figure left out."""
    with (run / "metrics.csv").open() as file:
        speeds = [
            float(row["train/frames_per_second"]) for row in csv.DictReader(file) if row["train/frames_per_second"]
        ]
    return statistics.median(speeds[1:])


def measure_ranks(folder: Path, turns: int, steps: int) -> list[Figure]:
    """Return the frames a second of two processes on two cores, beside twice those of one process on one core.

    Args:
        folder: an empty one to work in.
        turns: how often both are measured.
        steps: optimizer steps of each training.
    """
    say("ranks")
    corpus = make_corpus(folder, hours=2.0)
    cores = sorted(os.sched_getaffinity(0))
    pairs = []
    for turn in range(turns):
        speeds = {}
        for processes in (1, 2) if turn % 2 else (2, 1):
            name = f"of-{processes}-turn-{turn}"
            settings = {"compute.devices": processes, "stop.steps": steps, "log_every_steps": max(1, steps // 12)}
            taskset = ["taskset", "--cpu-list", ",".join(map(str, cores[:processes]))]
            command = [*taskset, *_command(corpus, folder, name, **settings)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            speeds[processes] = _speed(folder / name)
        pairs.append((speeds[2], 2 * speeds[1]))
    ours, floors = zip(*pairs, strict=True)
    note = "2x320 with skips, 16 streams of 64 frames a process, one thread each; gloo"
    return [Figure("two processes beside twice one", "frames/s", ours, floors, at_least=0.85, note=note)]


def measure_stopping(folder: Path, turns: int) -> list[Figure]:
    """Return the seconds from SIGUSR1 to a finished checkpoint, and from a resumed start to its first step.

    The second stands beside what importing takes alone, and may be 30 s more.

    Args:
        folder: an empty one to work in.
        turns: how often a training is stopped.
    """
    say("stopping")
    corpus = make_corpus(folder, hours=0.5)
    command = _command(corpus, folder, "stopped", **{"stop.steps": 10**6, "log_every_steps": 1})
    run, saves, starts, floors = folder / "stopped", [], [], []
    for _ in range(turns):
        floor = time.perf_counter()
        subprocess.run([sys.executable, "-c", FIRST_STEP_FLOOR], cwd=ROOT, check=True)
        floors.append(time.perf_counter() - floor)
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            metrics, last = run / "metrics.csv", run / "checkpoints" / "last.ckpt"
            before = metrics.stat().st_mtime_ns if metrics.exists() else 0
            steps = 0
            # A resumed start rewrites the file once before its first step adds a row.
            while steps < 2 and process.poll() is None:
                time.sleep(0.01)
                now = metrics.stat().st_mtime_ns if metrics.exists() else 0
                steps, before = steps + (now != before), now
            starts.append(time.perf_counter() - start)
            time.sleep(1)
            asked = time.time()
            process.send_signal(signal.SIGUSR1)
            process.wait()
        saves.append(last.stat().st_mtime - asked)
    note = "2x320, one process"
    fresh = tuple(start - floor for start, floor in zip(starts, floors, strict=True))
    return [
        Figure("SIGUSR1 to a finished checkpoint", "s", tuple(saves), at_most=5, note=note),
        Figure(
            "start to first step, imports apart", "s", fresh, at_most=30, note=f"{note}; imports {min(floors):.1f} s"
        ),
    ]


def _repeat_corpus(corpus: Path, folder: Path, hours: float) -> Path:
    """Return a folder of shards that is another one again and again: links to its tars, so that it takes no room."""
    from babble.shards import read_manifest, write_manifest

    manifest = read_manifest(corpus)
    train = [shard for shard in manifest.shards if shard.split == "train"]
    copies = -(-round(hours * 3600 * MODE.frames_per_second) // manifest.split_frames("train"))
    shards = [shard for shard in manifest.shards if shard.split != "train"]
    recordings = [recording for recording in manifest.recordings if recording["split"] != "train"]
    folder.mkdir()
    for shard in shards:
        (folder / shard.name).symlink_to(corpus / shard.name)
    for copy in range(copies):
        for number, shard in enumerate(train):
            name = f"train-{copy * len(train) + number:06d}.tar"
            (folder / name).symlink_to(corpus / shard.name)
            shards.append(replace(shard, name=name))
        recordings += [
            {**recording, "name": f"{recording['name']}-{copy}"}
            for recording in manifest.recordings
            if recording["split"] == "train"
        ]
    write_manifest(folder, replace(manifest, shards=shards, recordings=recordings))
    return folder


def _memory_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def _measure_reading(reading: str, corpus: Path, hours: float) -> list[Figure]:
    stay_on_one_core()
    from babble.data import SpeechData
    from babble.loaders import DataConfig

    hop = 64 if reading == "windows" else None
    config = DataConfig(corpus, reading=reading, window_frames=64, hop_frames=hop, batch_size=64, holding="shards")
    data = SpeechData(config, random_seed=0)
    data.setup()
    loader = data.train_dataloader()
    batches, parts = iter(loader), 10
    part = len(loader) // parts
    speeds, memory = [], []
    for _ in range(parts):
        speeds.append(per_second(part * 64 * 64, lambda: [None for _ in itertools.islice(batches, part)]))
        memory.append(_memory_mb())
    note = f"{hours:g} h, each frame once, one core; memory {min(memory[1:]):.0f} to {max(memory[1:]):.0f} MB"
    return [
        Figure(f"{reading} from shards", "frames/s", tuple(speeds), at_least=2e6, note=note),
        Figure(
            f"{reading} from shards, most memory beside least",
            "MB",
            (max(memory[1:]),),
            (min(memory[1:]),),
            at_most=1.1,
        ),
    ]


def measure_streaming(folder: Path, hours: float) -> list[Figure]:
    """Return how fast one process reads windows and streams that memory does not hold, and what memory that takes.

    Args:
        folder: an empty one to work in.
        hours: how much speech there is, made by repeating twelve hours.
    """
    say("streaming")
    corpus = _repeat_corpus(make_corpus(folder, hours=min(12.0, hours)), folder / "repeated", hours)
    readings = ("windows", "streams")
    return [figure for reading in readings for figure in in_own_process(_measure_reading, reading, corpus, hours)]
