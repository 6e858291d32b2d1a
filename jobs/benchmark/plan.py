"""`plan`: what corpora of 16 to 60,000 hours take on 1 to 256 devices, calculated from rates measured on one core."""

import itertools
import math
from pathlib import Path

from jobs.benchmark.config import MODE, BenchmarkConfig
from jobs.benchmark.corpus import list_speech, make_corpus
from jobs.benchmark.floors import encode_recordings, make_training
from jobs.benchmark.measurement import Measurement, per_second
from jobs.benchmark.process_usage import run_in_process, stay_on_one_core
from jobs.benchmark.scaling import CHUNK_FRAMES, CORPUS_HOURS, SHAPE, STREAMS
from jobs.benchmark.training import read_training

HOURS = (16, 1_000, 60_000)
DEVICES = (1, 8, 256)
# Assumptions about the cluster.
DEVICES_PER_NODE = 8
CORES_PER_NODE = 64
NETWORK_GBIT_PER_SECOND = 25
GRADIENT_BYTES = 4
STEP_FRAMES = STREAMS * CHUNK_FRAMES
# The names of the measured rates.
ENCODING = "plan: encoding, one core"
SHARD_BYTES = "plan: shards on disk"
SHARD_HOURS = "plan: one shard of 64 entries"
READING = "plan: reading from shards, one process"
TRAINING = "plan: training, one core"
WEIGHTS = "plan: weights"

COLUMNS = (
    *("hours of speech", "devices", "shards", "GB", "preprocessing, hours", "one epoch, hours"),
    *("read per node, MB/s", "gradients per step, MB", "bottleneck"),
)


def measure_rates(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the rates that `format_plan` needs, for the default recipe's network on one core."""
    return run_in_process(_measure_rates, config, make_corpus(folder, CORPUS_HOURS * config.scale))


def _measure_rates(config: BenchmarkConfig, corpus: Path) -> list[Measurement]:
    stay_on_one_core()
    import soundfile

    from babble.data.datamodule import SpeechData
    from babble.data.shards import read_manifest
    from babble.model.babbler import Babbler

    shard = next(shard for shard in read_manifest(corpus).shards if shard.split == "train")
    hours = shard.frames / MODE.frames_per_second / 3600
    recordings = list_speech()[: config.count(6)]
    seconds = round(sum(soundfile.info(path).duration for path in recordings))
    training = read_training({**SHAPE, "data.shards": corpus, "data.holding": "shards"})
    data = SpeechData(training.data, seed=0)
    data.setup()
    batches = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    model = Babbler(training.model, MODE)
    train = make_training(model, batches)
    train(1)
    reads, steps = config.count(100), config.count(20)
    rates = {
        ENCODING: (per_second(seconds, lambda: list(encode_recordings(recordings))), "x real time"),
        SHARD_BYTES: ((corpus / shard.name).stat().st_size / hours / 1e6, "MB per hour"),
        SHARD_HOURS: (hours, "hours"),
        READING: (per_second(reads * STEP_FRAMES, lambda: [next(batches) for _ in range(reads)]), "frames/s"),
        TRAINING: (per_second(steps * STEP_FRAMES, lambda: train(steps)), "frames/s"),
        WEIGHTS: (sum(parameter.numel() for parameter in model.parameters()), "weights"),
    }
    return [Measurement(name, unit, (value,)) for name, (value, unit) in rates.items()]


def format_plan(rates: dict[str, float], device_frames: float | None = None) -> str:
    """Return a Markdown table of the time, space and traffic that corpora of several sizes take.

    Args:
        rates: median of each measurement of `measure_rates`, by name.
        device_frames: frames per second that one device trains on; by default the measured rate of one core.
    """
    speed = device_frames or rates[TRAINING]
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [_plan_row(hours, devices, rates, speed) for hours in HOURS for devices in DEVICES]
    assumptions = (
        f"Assumptions: {CORES_PER_NODE} cores and {DEVICES_PER_NODE} devices per node, {NETWORK_GBIT_PER_SECOND} Gbit/s"
        f" between nodes; a device trains on {speed:,.0f} frames per second."
    )
    return "\n".join(["", *(f"| {' | '.join(row)} |" for row in rows), "", assumptions])


def _plan_row(hours: int, devices: int, rates: dict[str, float], speed: float) -> tuple[str, ...]:
    """Return the cells of one row.

    The bottleneck is what is used most: the devices by training, a process by reading its share, or a node's network by
    gradients, which go round a ring of devices twice, so that a node carries the share of one device.
    """
    nodes = -(-devices // DEVICES_PER_NODE)
    frames = hours * 3600 * MODE.frames_per_second
    megabytes = rates[SHARD_BYTES] * hours
    gradient_mb = 2 * (devices - 1) / devices * rates[WEIGHTS] * GRADIENT_BYTES / 1e6
    network = gradient_mb * 8e-3 * speed / STEP_FRAMES / NETWORK_GBIT_PER_SECOND if nodes > 1 else 0.0
    used = {"the network": network, "reading": speed / rates[READING]}
    busiest = max(used, key=lambda part: used[part])
    return (
        f"{hours:,}",
        f"{devices}",
        f"{math.ceil(hours / rates[SHARD_HOURS]):,}",
        f"{megabytes / 1e3:,.2g}",
        f"{hours / (rates[ENCODING] * CORES_PER_NODE * nodes):.2g}",
        f"{frames / speed / devices / 3600:.2g}",
        f"{speed * min(devices, DEVICES_PER_NODE) / frames * megabytes:.2g}",
        f"{gradient_mb:.1f}",
        busiest if used[busiest] > 1 else f"training (next: {busiest}, at {100 * used[busiest]:.0f} %)",
    )
