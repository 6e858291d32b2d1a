"""How babble scales: the parts of the benchmark about several processes, stopping, and corpora larger than memory."""

import contextlib
import itertools
import json
import math
import os
import re
import secrets
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from babble.cli import CommandError
from babble.files import read_json_lines
from jobs.measuring import (
    MODE,
    ROOT,
    SPEECH,
    Figure,
    encode_bare,
    in_own_process,
    join_speech,
    make_corpus,
    per_second,
    say,
    stay_on_one_core,
    train_bare,
)

# As large as the default recipe, in float32: large enough that a step's arithmetic counts.
SHAPE = {"model.num_layers": 2, "model.units": 320, "model.skips": "true", "data.reading": "streams"}
SIZES = {"data.window_frames": 64, "data.batch_size": 16}
QUIET = {"wandb.mode": "off", "samples.every_epochs": 0, "compute.accelerator": "cpu", "compute.threads": 1}
# As in slurm/preprocess.sh: who does not know the token is kept out.
RAY_ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A training that writes down how long its imports took, in the process that then trains.
TRAINING_WITH_CLOCK = """
import sys, time
start = time.perf_counter()
import babble.train
with open(sys.argv.pop(1), "w") as file:
    print(time.perf_counter() - start, file=file)
babble.train.main()
"""


def _settings(corpus: Path, folder: Path, name: str, **settings: object) -> list[str]:
    words = {**SHAPE, **SIZES, **QUIET, "data.shards": corpus, "runs": folder, "name": name, **settings}
    return list(itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in words.items()))


def _speed(run: Path) -> float:
    """Return the median of a run's own frames a second, all processes together, its first figure left out."""
    rows = read_json_lines(run / "metrics.jsonl")
    speeds = [row["train/frames_per_second"] for row in rows if "train/frames_per_second" in row]
    return statistics.median(speeds[1:])


def measure_ranks(folder: Path, turns: int, steps: int) -> list[Figure]:
    """Return the frames a second of two processes on two cores, beside twice those of one process on one core.

    Behind it those of two trainings that know nothing of each other: what the machine itself gives.

    Args:
        folder: an empty one to work in.
        turns: how often all are measured.
        steps: optimizer steps of each training.
    """
    say("ranks")
    corpus = make_corpus(folder, hours=2.0)
    cores = sorted(os.sched_getaffinity(0))[:2]

    def start(name: str, *its_cores: int) -> subprocess.Popen[bytes]:
        settings = {"compute.devices": len(its_cores), "stop.steps": steps, "log_every_steps": max(1, steps // 12)}
        taskset = ["taskset", "--cpu-list", ",".join(map(str, its_cores))]
        command = [*taskset, sys.executable, "-m", "babble.train", *_settings(corpus, folder, name, **settings)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def measure(turn: int, what: str) -> float:
        shares = {"one": [cores[:1]], "together": [cores], "apart": [[core] for core in cores]}[what]
        trainings = {f"{what}-{turn}-{number}": share for number, share in enumerate(shares)}
        for process in [start(name, *share) for name, share in trainings.items()]:
            if process.wait():
                raise CommandError(f"a training that was to be measured ended with code {process.returncode}.")
        return sum(_speed(folder / name) for name in trainings)

    found: dict[str, list[float]] = {"one": [], "together": [], "apart": []}
    for turn in range(turns):
        for what in list(found)[:: -1 if turn % 2 else 1]:
            found[what].append(measure(turn, what))
    twice = tuple(2 * speed for speed in found["one"])
    note = "2x320 with skips, 16 streams of 64 frames a process, one thread each; gloo"
    return [
        Figure("two processes beside twice one", "frames/s", tuple(found["together"]), twice, at_least=0.85, note=note),
        Figure("two trainings apart beside twice one", "frames/s", tuple(found["apart"]), twice),
    ]


@contextlib.contextmanager
def _ray_nodes(cores: Sequence[int]) -> Iterator[str]:
    """Run a Ray cluster of so many nodes, each of one CPU and kept to a core of its own; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0"]
    start += ["--object-store-memory=200000000", f"--node-ip-address={address.split(':')[0]}"]
    head = ["--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
    with contextlib.ExitStack() as nodes:
        for number, core in enumerate(cores):
            words = [*start, *(head if number == 0 else [f"--address={address}"])]
            node = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *words],
                env=RAY_ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # Last in, first out: it is told to end, then waited for.
            nodes.callback(node.wait)
            nodes.callback(node.terminate)
            while number == 0 and not _answers(address):
                if node.poll() is not None:
                    raise CommandError(f"Ray's head ended by itself, with code {node.returncode}.")
                time.sleep(0.1)
        yield address


def _answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as asking:
        return asking.connect_ex((host, int(port))) == 0


def measure_nodes(folder: Path, pairs: int, hours: float) -> list[Figure]:
    """Return how fast two Ray nodes of one core each preprocess, beside twice one such node.

    The job itself runs on the first node's core.

    Args:
        folder: an empty one to work in.
        pairs: how often both are measured.
        hours: how much of tests/speech is preprocessed.
    """
    say("nodes")
    recordings = join_speech(folder, hours)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise CommandError("two Ray nodes need two cores.")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for pair in range(pairs):
        for count in (1, 2) if pair % 2 else (2, 1):
            out = folder / f"{count}-nodes-{pair}"
            with _ray_nodes(cores[:count]) as address:
                command = [sys.executable, "-m", "jobs.preprocess", "--address", address, "--nodes", str(count)]
                command += ["--sources", *map(str, recordings), "--out", str(out)]
                command = ["taskset", "--cpu-list", str(cores[0]), *command]
                subprocess.run(command, cwd=ROOT, env=RAY_ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
            speed = re.search(r"([0-9]+) x real time", (out / "report.txt").read_text())
            assert speed is not None
            rates[count].append(float(speed[1]))
    twice = tuple(2 * rate for rate in rates[1])
    note = f"{hours:g} h of tests/speech, each node pinned to its core; by the job's clock, without Ray's start"
    return [
        Figure("two Ray nodes beside twice one", "x real time", tuple(rates[2]), twice, at_least=0.9, note=note),
    ]


def measure_stopping(folder: Path, turns: int) -> list[Figure]:
    """Return the seconds from SIGUSR1 to a finished checkpoint, and from a resumed start to its first step.

    The second leaves out what its imports took, in that same process.

    Args:
        folder: an empty one to work in.
        turns: how often a training is stopped.
    """
    say("stopping")
    corpus = make_corpus(folder, hours=0.5)
    words = _settings(corpus, folder, "stopped", **{"stop.steps": 10**6, "log_every_steps": 1})
    run, clock = folder / "stopped", folder / "imports"
    metrics, last = run / "metrics.jsonl", run / "checkpoints" / "last.ckpt"
    command = [sys.executable, "-c", TRAINING_WITH_CLOCK, str(clock), *words]
    saves, starts, imports = [], [], []
    for _ in range(turns):
        start = time.perf_counter()
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            changes = 0
            # A resumed start rewrites the file once before its first step adds a row.
            while changes < 2 and process.poll() is None:
                time.sleep(0.01)
                now = metrics.stat().st_mtime_ns if metrics.exists() else 0
                changes, before = changes + (now != before), now
            imports.append(float(clock.read_text()))
            starts.append(time.perf_counter() - start - imports[-1])
            time.sleep(1)
            asked = time.time()
            process.send_signal(signal.SIGUSR1)
        if process.returncode != 128 + signal.SIGUSR1:
            raise CommandError(f"a training that was to be stopped ended by itself, with code {process.returncode}.")
        saves.append(last.stat().st_mtime - asked)
    note = f"2x320, one process, {turns} starts of which {turns - 1} resumed"
    return [
        Figure("SIGUSR1 to a finished checkpoint", "s", tuple(saves), at_most=5, note=note),
        Figure(
            "start to first step, imports apart",
            "s",
            tuple(starts),
            at_most=30,
            note=f"{note}; imports {min(imports):.1f} to {max(imports):.1f} s more",
        ),
    ]


def measure_sweep(folder: Path, turns: int, trials: int, steps: int) -> list[Figure]:
    """Return how long a sweep of equal trials takes, beside the same trainings in two plain loops of a shell.

    Two cores, a trial on each; Ray's start apart.

    Args:
        folder: an empty one to work in.
        turns: how often both are measured.
        trials: how many trainings.
        steps: optimizer steps of each.
    """
    say("sweep")
    corpus = make_corpus(folder, hours=1.0)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    sizes = {"stop.steps": steps, "model.units": 160, "log_every_steps": 50, "compute.devices": 1}

    def loops(turn: int) -> float:
        def loop(first: int) -> str:
            commands = [
                shlex.join([sys.executable, "-m", "babble.train", *_settings(corpus, folder, name, **own)])
                for number in range(first, trials, 2)
                for name, own in [(f"alone-{turn}-{number}", sizes | {"seed": number})]
            ]
            return " && ".join(commands)

        start = time.perf_counter()
        words = ["taskset", "--cpu-list", cores, "bash", "-c", f"({loop(0)}) & ({loop(1)}); wait"]
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    def tuned(turn: int) -> float:
        words = _settings(corpus, folder, f"sweep-{turn}", **sizes)
        words += ["--seeds", json.dumps(list(range(trials))), "--space", '{"model.units": {"choice": [160]}}']
        command = ["taskset", "--cpu-list", cores, sys.executable, "-u", "-m", "babble.tune", *words]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as sweep:
            assert sweep.stdout is not None
            # Its first words come when Ray has started.
            sweep.stdout.readline()
            start = time.perf_counter()
            sweep.stdout.read()
        if sweep.returncode:
            raise CommandError(f"a sweep that was to be measured ended with code {sweep.returncode}.")
        return time.perf_counter() - start

    pairs = [(tuned(turn), loops(turn)) if turn % 2 else (loops(turn), tuned(turn))[::-1] for turn in range(turns)]
    ours, floors = zip(*pairs, strict=True)
    note = f"{trials} trainings of {steps} steps, two at once, the answer written too"
    return [Figure("a sweep beside two shell loops", "s", ours, floors, at_most=1.10, note=note)]


def _repeat_corpus(corpus: Path, folder: Path, hours: float) -> Path:
    """Return a folder of shards that is another one again and again: links to its tars, so that it takes no room."""
    from babble.data.shards import read_manifest, write_manifest

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


def _measure_reading(reading: Literal["windows", "streams"], corpus: Path, hours: float) -> list[Figure]:
    stay_on_one_core()
    from babble.data.datamodule import SpeechData
    from babble.data.loaders import DataConfig

    hop = 64 if reading == "windows" else None
    config = DataConfig(corpus, reading=reading, window_frames=64, hop_frames=hop, batch_size=64, holding="shards")
    data = SpeechData(config, seed=0)
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


# ---- beyond one machine, on paper

PLAN_HOURS = (16, 1_000, 60_000)
PLAN_DEVICES = (1, 8, 256)
# What the plan supposes of a cluster.
DEVICES_PER_NODE = 8
CORES_PER_NODE = 64
NETWORK_GBIT_PER_SECOND = 25
GRADIENT_BYTES = 4
# What it is made from, as `measure_rates` names them.
ENCODING, SHARD_BYTES, SHARD_HOURS = (
    "plan: encoding, one core",
    "plan: shards on the disk",
    "plan: a shard of 64 entries",
)
READING, TRAINING = "plan: reading from shards, one process", "plan: training, one core"
STEPS, WEIGHTS = "plan: training steps, one core", "plan: weights"


def _measure_rates(folder: Path) -> list[Figure]:
    stay_on_one_core()
    import soundfile

    from babble.data.datamodule import SpeechData
    from babble.data.loaders import DataConfig
    from babble.data.shards import read_manifest
    from babble.model.babbler import Babbler, ModelConfig

    corpus = make_corpus(folder, hours=2.0)
    shard = next(shard for shard in read_manifest(corpus).shards if shard.split == "train")
    hours = shard.frames / MODE.frames_per_second / 3600
    recordings = sorted(SPEECH.glob("*.ogg"))[:6]
    seconds = round(sum(soundfile.info(path).duration for path in recordings))
    data = SpeechData(DataConfig(corpus, reading="streams", window_frames=64, batch_size=16, holding="shards"), 0)
    data.setup()
    batches = iter(data.train_dataloader())
    model = Babbler(ModelConfig(num_layers=2, units=320, skips=True), MODE)
    train = train_bare(model, batches)
    train(2)
    steps = per_second(20, lambda: train(20))
    values = {
        ENCODING: (per_second(seconds, lambda: [None for _ in encode_bare(recordings)]), "x real time"),
        SHARD_BYTES: ((corpus / shard.name).stat().st_size / hours / 1e6, "MB an hour"),
        SHARD_HOURS: (hours, "hours"),
        READING: (per_second(100 * 16 * 64, lambda: [next(batches) for _ in range(100)]), "frames/s"),
        TRAINING: (steps * 16 * 64, "frames/s"),
        STEPS: (steps, "steps/s"),
        WEIGHTS: (sum(parameter.numel() for parameter in model.parameters()), "weights"),
    }
    return [Figure(name, unit, (value,)) for name, (value, unit) in values.items()]


def measure_rates(folder: Path) -> list[Figure]:
    """Return the rates that `format_plan` takes, of the default recipe's network on one core.

    Args:
        folder: an empty one to work in.
    """
    say("plan")
    return in_own_process(_measure_rates, folder)


def format_plan(rates: dict[str, float], device_frames: float | None = None) -> str:
    """Return a Markdown table of what corpora of many sizes take on many devices.

    What saturates first is whatever is used most: a device by its training, a process by reading its share, or a node's
    network by its gradients, each moved there and back in a ring. Devices are as fast as measured, whatever is beside.

    Args:
        rates: what `measure_rates` found, by name.
        device_frames: frames a second that one device trains on; by default the core's that was measured.
    """
    frames_per_step = rates[TRAINING] / rates[STEPS]
    speed = device_frames or rates[TRAINING]
    lines = [
        "| hours | devices | shards | GB | preprocessing, hours | an epoch, hours | read a node, MB/s "
        "| gradients a step, MB | saturates first |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for hours in PLAN_HOURS:
        for devices in PLAN_DEVICES:
            nodes = -(-devices // DEVICES_PER_NODE)
            on_node = min(devices, DEVICES_PER_NODE)
            megabytes = rates[SHARD_BYTES] * hours
            frames = hours * 3600 * MODE.frames_per_second
            encoding_hours = hours / (rates[ENCODING] * CORES_PER_NODE * nodes)
            read = speed * on_node / frames * megabytes
            gradients = 2 * (devices - 1) / devices * rates[WEIGHTS] * GRADIENT_BYTES / 1e6
            # Of a ring, a node's network carries one device's share each way.
            network = gradients * 8e-3 * speed / frames_per_step / NETWORK_GBIT_PER_SECOND if nodes > 1 else 0.0
            used = {"training": 1.0, "reading": speed / rates[READING], "the network": network}
            first = max(used, key=lambda what: used[what])
            second = max((what for what in used if what != "training"), key=lambda what: used[what])
            cells = (
                *(f"{hours:,}", f"{devices}", f"{math.ceil(hours / rates[SHARD_HOURS]):,}", f"{megabytes / 1e3:,.2g}"),
                *(f"{encoding_hours:.2g}", f"{frames / speed / devices / 3600:.2g}", f"{read:.2g}", f"{gradients:.1f}"),
                f"{first}" + (f" (then {second}, at {used[second]:.0%})" if first == "training" else ""),
            )
            lines.append(f"| {' | '.join(cells)} |")
    suppositions = (
        f"Supposed: {CORES_PER_NODE} cores and {DEVICES_PER_NODE} devices a node, {NETWORK_GBIT_PER_SECOND} Gbit/s "
        f"between nodes; a device trains on {speed:,.0f} frames/s"
    )
    return "\n".join(["", *lines, "", suppositions])
