"""`scale`: a corpus of 60,000 hours, opened, planned and started by eight ranks of this machine; sizes of a large run.

1. `make_large_corpus` writes a folder with the manifest of 100,000 recordings and 70,000 shards. Its shards are hard
   links to a few real ones, so every file is found, has its size and can be read, but the folder takes few MB.
2. Eight processes import what training imports, and wait for each other. Then each does what a rank of `babble train`
   does until it has its first batch: read the manifest, plan, read the validation split, build network and Trainer; the
   first one also looks at the size of each shard and measures the baselines. The slowest rank counts.
3. A training of the recipe for large GPUs, of one step, shows the size of a checkpoint and the rows of its metrics.
"""

import multiprocessing
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from babble.data.shards import MANIFEST, SEGMENT_FRAMES, Manifest, Segment, ShardFacts, write_manifest, write_shards
from babble.files import read_json_lines
from babble.processes import end_with_parent
from babble.run_folder import RunFolder
from jobs.benchmark.config import MODE, ROOT, BenchmarkConfig
from jobs.benchmark.corpus import make_corpus
from jobs.benchmark.measurement import Measurement
from jobs.benchmark.process_usage import start_command
from jobs.benchmark.training import TRAINING_ALONE, read_training, write_flags

RANKS = 8
LARGE_RECIPE = ROOT / "configs" / "babble.yaml"
RECORDINGS, RECORDING_ENTRIES, SHARD_ENTRIES = 100_000, 36, 51
VALIDATION_RECORDINGS = 20
# File systems limit the links to a file, ext4 to 65,000.
LINKS_PER_FILE = 20_000

# Where ranks wait for each other; set in each of their processes.
_imported: threading.Barrier


def make_large_corpus(folder: Path, num_recordings: int) -> Path:
    """Write a corpus of recordings of 36 minutes on average, whole minutes each, and return its folder.

    Training recordings share the frames of one shard; a manifest that `babble preprocess` writes has the same facts.
    """
    corpus = folder / "large"
    corpus.mkdir()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, MODE.levels, (SHARD_ENTRIES * SEGMENT_FRAMES, MODE.num_fields)).astype(MODE.dtype)
    entries = rng.integers(RECORDING_ENTRIES // 2, RECORDING_ENTRIES * 3 // 2 + 1, num_recordings)
    rest = int(entries.sum()) % SHARD_ENTRIES or SHARD_ENTRIES
    (first,) = write_shards(corpus, "train", [Segment("training", 0, frames)], MODE, SHARD_ENTRIES)
    (last,) = write_shards(folder, "last", [Segment("training", 0, frames[: rest * SEGMENT_FRAMES])], MODE, rest)
    shards = _link_shards(corpus, first, -(-int(entries.sum()) // SHARD_ENTRIES))
    (corpus / shards[-1].name).unlink()
    (folder / last.name).rename(corpus / shards[-1].name)
    shards[-1] = replace(last, name=shards[-1].name, split="train")
    held_out = [
        Segment(f"validation-{n}", 0, frames[: RECORDING_ENTRIES * SEGMENT_FRAMES])
        for n in range(min(VALIDATION_RECORDINGS, num_recordings))
    ]
    shards += write_shards(corpus, "validation", held_out, MODE, SHARD_ENTRIES)
    lengths = [("train", int(n) * SEGMENT_FRAMES) for n in entries] + [("validation", len(r.frames)) for r in held_out]
    recordings = [
        _describe(f"speaker-{n // 100:04d}/{split}-{n if split == 'train' else n - num_recordings}", split, num_frames)
        for n, (split, num_frames) in enumerate(lengths)
    ]
    write_manifest(corpus, Manifest(MODE, {}, recordings, shards, []))
    return corpus


def _link_shards(corpus: Path, first: ShardFacts, num_shards: int) -> list[ShardFacts]:
    """Write more names of the first shard, and return the facts of all."""
    shards, source = [first], corpus / first.name
    for number in range(1, num_shards):
        path = corpus / f"train-{number:06d}.tar"
        if number % LINKS_PER_FILE:
            os.link(source, path)
        else:
            source = Path(shutil.copy(source, path))
        shards.append(replace(first, name=path.name))
    return shards


def _describe(name: str, split: str, num_frames: int) -> dict[str, Any]:
    """Return the manifest's row of a recording, with all facts that preprocessing writes."""
    position = {"name": name, "split": split, "first_frame": 0, "frames": num_frames}
    source = {"file": f"{name}.mp3", "bytes": 640 * num_frames, "sha256": os.urandom(32).hex(), "kind": "MP3"}
    speech = {"voiced": 0.7826, "pitch_hz": 137.5, "energy_db": 14.54, "energy_at_ceiling": 0.01453}
    return {**position, **source, **speech, "lsp_disorder": 0.000284}


@dataclass(frozen=True)
class RankStart:
    """How one rank started: seconds and CPU seconds of imports and of the start after them, peak memory after each."""

    import_seconds: float
    import_mb: float
    seconds: float
    cpu_seconds: float
    mb: float


def measure_scale(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return how long eight ranks take to start on a corpus of 60,000 hours, their memory, and sizes of a large run."""
    corpus = make_large_corpus(folder, config.count(RECORDINGS))
    manifest_mb = (corpus / MANIFEST).stat().st_size / 1e6
    measurements = [
        Measurement("scale: manifest", "MB", (manifest_mb,), note=f"{config.count(RECORDINGS):,} recordings")
    ]
    for reading in ("windows", "streams"):
        ranks = _start_ranks(corpus, reading)
        first, *others = ranks
        name = f"scale: {RANKS} ranks to the first batch, {reading}"
        others_cpu = float(np.median([rank.cpu_seconds for rank in others]))
        imports = max(ranks, key=lambda rank: rank.import_seconds)
        note = f"CPU: the first rank {first.cpu_seconds:.1f} s, each other {others_cpu:.1f} s; imports before it: "
        note += f"{imports.import_seconds:.0f} s, {imports.import_mb:.0f} MB each"
        measurements += [
            Measurement(name, "s", (max(r.seconds for r in ranks),), at_most=10, note=note),
            Measurement(f"{name}: first rank", "MB", (first.mb,), at_most=500),
            Measurement(f"{name}: largest other", "MB", (max(r.mb for r in others),), at_most=500),
        ]
    return [*measurements, *_measure_large_run(folder)]


def _start_ranks(corpus: Path, reading: str) -> list[RankStart]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(RANKS, context, _prepare, (context.Barrier(RANKS, timeout=600),)) as pool:
        try:
            return list(pool.map(_start_rank, range(RANKS), [corpus] * RANKS, [reading] * RANKS))
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _prepare(barrier: threading.Barrier) -> None:
    """Keep the barrier, which only a starting process can be given."""
    end_with_parent()
    global _imported
    _imported = barrier


def _start_rank(rank: int, corpus: Path, reading: str) -> RankStart:
    """Do in this process what a rank does until it has its first batch."""
    started = time.perf_counter()
    # Lightning looks for it when it is imported.
    os.environ["LOCAL_RANK"] = str(rank)
    import torch

    import babble.train  # noqa: F401
    from babble.data.shards import hash_manifest
    from babble.evaluation.baselines import measure_baselines
    from babble.processes import StopRequest
    from babble.training.topology import Topology
    from babble.training.trainer import build_training

    torch.set_num_threads(1)
    import_seconds, import_mb = time.perf_counter() - started, _peak_mb()
    _imported.wait()
    started, cpu = time.perf_counter(), time.process_time()
    settings = {"data.shards": corpus, "data.holding": "shards", "data.verify": "never", "data.reading": reading}
    training = build_training(read_training({**TRAINING_ALONE, **settings}), Topology(1, RANKS, False), StopRequest())
    data = training.data
    if rank == 0:
        hash_manifest(corpus)
        train, held_out = ((r.frames for r in some) for some in (data.train_recordings, data.validation_recordings))
        measure_baselines(train, list(held_out), data.mode)
    data.trainer = training.trainer
    next(iter(data.train_dataloader()))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return RankStart(import_seconds, import_mb, seconds, cpu_seconds, _peak_mb())


def _peak_mb() -> float:
    """Return the highest resident set size of this process so far, shared pages included."""
    # Not getrusage, whose peak includes that of the process that started this one.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _measure_large_run(folder: Path) -> list[Measurement]:
    """Return the size of a checkpoint of the recipe for large GPUs, and how many metrics a row has."""
    run = RunFolder(folder / "large-run")
    place = {"data.shards": make_corpus(folder, 0.01), "runs": folder, "name": run.path.name}
    one_step = {"data.batch_size": 1, "data.window_frames": 2, "optim.warmup_steps": 0, "stop.steps": 1}
    settings = TRAINING_ALONE | place | one_step | {"compute.precision": "32-true", "log_every_steps": 1}
    command = [sys.executable, "-m", "babble.train", "--config", str(LARGE_RECIPE), *write_flags(settings)]
    with start_command(command):
        pass
    rows = read_json_lines(run.metrics)
    numbers = max(len(row) for row in rows if "train/loss" in row)
    return [
        Measurement("scale: checkpoint of configs/babble.yaml", "MB", (run.checkpoint("last").stat().st_size / 1e6,)),
        Measurement("scale: numbers in a row of training metrics", "numbers", (numbers,)),
    ]
