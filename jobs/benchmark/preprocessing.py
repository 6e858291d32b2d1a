"""`preprocess`: CPU time, busy cores and memory of jobs.preprocess."""

import sys
from collections.abc import Sequence
from pathlib import Path

from babble.ray_cluster import start_ray
from jobs.benchmark.config import BenchmarkConfig
from jobs.benchmark.corpus import join_speech
from jobs.benchmark.measurement import Measurement
from jobs.benchmark.process_usage import measure_command
from preprocessing.sources import find_sources

# What both the job and the floor read; M4B and AAC take another library.
SUFFIXES = (".mp3", ".flac", ".wav", ".ogg", ".oga", ".opus")
SPEECH_HOURS = 2.0
# Above this, one turn is enough, and takes long enough.
ONE_TURN_HOURS = 5

JOB = [sys.executable, "-m", "jobs.preprocess"]
FLOOR = [sys.executable, "-m", "jobs.benchmark.floors"]
RAY_ALONE = [sys.executable, "-c", "from jobs.benchmark.preprocessing import start_and_stop_ray as run; run()"]


def start_and_stop_ray() -> None:
    """Start Ray on this machine as jobs.preprocess does, run an empty task per core, and stop it."""
    cores = start_ray()
    import ray

    empty_task = ray.remote(lambda: None)
    ray.get([empty_task.remote() for _ in range(cores)])
    ray.shutdown()


def find_recordings(sources: Sequence[Path]) -> list[Path]:
    """Return the recordings in files and folders that soundfile can read.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: none is found.
    """
    found = find_sources(list(sources)).sources
    paths = [source.path.resolve() for source in found if not source.member and source.suffix in SUFFIXES]
    if not paths:
        names = " ".join(map(str, sources))
        raise ValueError(f"--sources {names}: no recording found. Name {', '.join(SUFFIXES)} files or folders of them.")
    return paths


def measure_preprocessing(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return CPU time compared with the floor's, how busy the cores were, and the memory of the workers."""
    import soundfile

    hours = SPEECH_HOURS * config.scale
    paths = find_recordings(config.sources) if config.sources else join_speech(folder, hours)
    hours = sum(soundfile.info(path).duration for path in paths) / 3600
    files = [str(path) for path in paths]
    floors, jobs, rays = [], [], []
    for turn in range(1 if hours > ONE_TURN_HOURS else config.few_turns):
        floors.append(measure_command([*FLOOR, *files]))
        jobs.append(
            measure_command(
                [*JOB, "--shifts", "1", "--speeds", "1", "--sources", *files, "--out", str(folder / f"shards-{turn}")]
            )
        )
        rays.append(measure_command(RAY_ALONE))
    floor_cpu, job_cpu, ray_cpu = (tuple(usage.cpu_seconds for usage in usages) for usages in (floors, jobs, rays))
    without_ray = tuple(job - ray for job, ray in zip(job_cpu, ray_cpu, strict=True))
    note = f"{hours:.2f} h in {len(paths)} files of {' '.join(map(str, config.sources)) or 'tests/speech as MP3'}"
    name, ray = "preprocessing, without Ray's start and stop", f"{rays[-1].wall_seconds:.1f} s of wall time"
    busy, memory = tuple(usage.busy_share for usage in jobs), tuple(usage.worker_mb for usage in jobs)
    return [
        Measurement(name, "CPU s", without_ray, floor_cpu, at_most=1.10, note=note),
        Measurement("preprocessing, with Ray's start and stop", "CPU s", job_cpu, floor_cpu),
        Measurement("Ray's start and stop alone", "CPU s", ray_cpu, note=ray),
        Measurement("cores busy while encoding", "share", busy, at_least=0.9),
        Measurement("peak memory of a worker", "MB", memory, at_most=500),
    ]
