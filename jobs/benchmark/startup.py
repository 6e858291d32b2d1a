"""`startup`: what a command takes before and beside its work, compared with the imports that it can't do without."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from babble.commands import COMMANDS
from jobs.benchmark.config import ROOT, BenchmarkConfig
from jobs.benchmark.corpus import join_speech
from jobs.benchmark.measurement import Measurement, take_turns
from jobs.benchmark.preprocessing import JOB, RAY_ALONE
from jobs.benchmark.process_usage import measure_command

# What reads a command line, and what generates.
PARSER, TORCH = "import jsonargparse, numpy, yaml", "import torch; print()"
HELP_CPU_SECONDS = 0.5
FIRST_SOUND_SECONDS, GENERATE_SECONDS = 1.8, 2.2
PREPROCESS_MINUTES, PREPROCESS_SECONDS = 10.0, 6.0
# Of a command that takes seconds.
MAX_TURNS = 7


def _run(words: Sequence[str]) -> tuple[float, float, float]:
    """Run Python with these words; return seconds to the first byte of its output and to its end, and CPU seconds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    # Unlike a sampled process tree, this counts all CPU time of so short a process.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return first, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def measure_startup(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the CPU time of each command's --help, and the wall time of short runs of generate and preprocess."""
    turns = min(config.turns, MAX_TURNS)
    measurements = []
    for word, command in COMMANDS.items():
        ours, floors = take_turns(
            turns,
            lambda module=command.module: _run(["-m", module, "--help"])[2],  # type: ignore[misc]
            lambda: _run(["-c", PARSER])[2],
        )
        name = f"babble {word} --help"
        measurements.append(Measurement(name, "CPU s", ours, floors, at_most=HELP_CPU_SECONDS, is_absolute=True))
    generate = ["-m", "babble.generate", "--seconds", "5", "--out"]
    for name, out, number, target in (
        ("babble generate --seconds 5, first byte of sound", "-", 0, FIRST_SOUND_SECONDS),
        ("babble generate --seconds 5, whole", str(folder / "babble.wav"), 1, GENERATE_SECONDS),
    ):
        ours, floors = take_turns(
            turns,
            lambda out=out, number=number: _run([*generate, out])[number],  # type: ignore[misc]
            lambda: _run(["-c", TORCH])[1],
        )
        note = "floor: import torch"
        measurements.append(Measurement(name, "s", ours, floors, at_most=target, is_absolute=True, note=note))
    return [*measurements, _measure_preprocess(config, folder)]


def _measure_preprocess(config: BenchmarkConfig, folder: Path) -> Measurement:
    minutes = PREPROCESS_MINUTES * config.scale
    files = [str(path) for path in join_speech(folder, minutes / 60)]
    jobs, rays = [], []
    for turn in range(min(config.turns, MAX_TURNS)):
        words = [*JOB, "--shifts", "1", "--speeds", "1", "--sources", *files, "--out", str(folder / f"shards-{turn}")]
        jobs.append(measure_command(words).wall_seconds)
        rays.append(measure_command(RAY_ALONE).wall_seconds)
    return Measurement(
        f"babble preprocess, {minutes:g} minutes",
        "s",
        tuple(jobs),
        tuple(rays),
        at_most=PREPROCESS_SECONDS,
        is_absolute=True,
        note="floor: Ray started and stopped",
    )
