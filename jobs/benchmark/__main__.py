"""How fast babble is, each metric next to its floor: the same work in a minimal loop (floors.py).

    python -m jobs.benchmark [--sources PATH...] [--only preprocess generation] [--json benchmark.json]

1. startup: --help of each command, short runs of generate and preprocess (startup.py).
2. preprocess: CPU time of jobs.preprocess, how busy the cores are, memory of its workers (preprocessing.py).
3. training, logging: `train` next to a plain PyTorch loop, and the cost of logging (training.py).
4. generation, evaluation: sampling frames, one stream and 64; the whole commands (generation.py).
5. ranks, stopping, sweep, streaming: two processes, saving on a signal, Ray Tune, corpora on disk (scaling.py).
6. scale: eight ranks start on a corpus of 60,000 hours; checkpoint and metrics of a large run (scale.py).
7. gpu, only where it is named: training and generation on a GPU, and the numbers that saturate it (gpu.py).
8. plan: what 16 to 60,000 hours take on 1 to 256 devices, calculated from a few rates (plan.py).

A metric and its floor are measured in turns, in one run and on the same cores, so that a noisy machine affects both
alike; the median of the ratios counts. Use an idle machine. Out: a table, and JSON on request. A missed target is shown
as MISS and is not an error. Linux only.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from babble.cli import config_to_dict, run_command
from babble.files import write_json
from babble.processes import StopRequest
from babble.run_folder import environment
from jobs.benchmark.config import BenchmarkConfig, Part
from jobs.benchmark.generation import measure_evaluation, measure_generation
from jobs.benchmark.gpu import check_gpu, measure_gpu
from jobs.benchmark.measurement import Measurement, format_table
from jobs.benchmark.plan import format_plan, measure_rates
from jobs.benchmark.preprocessing import measure_preprocessing
from jobs.benchmark.scale import measure_scale
from jobs.benchmark.scaling import measure_ranks, measure_stopping, measure_streaming, measure_sweep
from jobs.benchmark.startup import measure_startup
from jobs.benchmark.training import measure_logging, measure_training

MEASURE: dict[Part, Callable[[BenchmarkConfig, Path], list[Measurement]]] = {
    "startup": measure_startup,
    "preprocess": measure_preprocessing,
    "training": measure_training,
    "logging": measure_logging,
    "generation": measure_generation,
    "evaluation": measure_evaluation,
    "ranks": measure_ranks,
    "stopping": measure_stopping,
    "sweep": measure_sweep,
    "streaming": measure_streaming,
    "gpu": measure_gpu,
    "scale": measure_scale,
    "plan": measure_rates,
}


def benchmark(config: BenchmarkConfig) -> None:
    """Measure all parts in the order of `MEASURE`, print the table, and write JSON on request."""
    if sys.platform != "linux":
        raise ValueError("jobs.benchmark keeps processes to cores, which needs Linux.")
    if "gpu" in config.only:
        check_gpu()
    start = time.monotonic()
    load = os.getloadavg()[0]
    measurements = []
    for part, measure in MEASURE.items():
        if part in config.only:
            print(f"{part} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="babble-benchmark-") as folder:
                measurements += measure(config, Path(folder))
    minutes = (time.monotonic() - start) / 60
    about = environment()
    print(format_table(measurements))
    if "plan" in config.only:
        print(format_plan({m.name: m.median for m in measurements}, config.device_frames))
    print(f"{about['machine']}, git {about['git']}; load {load:.1f} at the start; {minutes:.1f} minutes")
    if config.json:
        facts = {"environment": about, "config": config_to_dict(config), "minutes": minutes, "load_before": load}
        write_json(config.json, {**facts, "measurements": [m.to_dict() for m in measurements]})


def _interrupt() -> None:
    # Not by SIGINT: in the background, shells start programs with that ignored.
    raise KeyboardInterrupt


def _benchmark_until_stopped(config: BenchmarkConfig) -> None:
    # SIGTERM stops like Ctrl-C: what was measured so far is worth nothing, but temporary folders have to be removed.
    with StopRequest("ending the benchmark").watching(signal.SIGTERM, on_request=_interrupt):
        benchmark(config)


if __name__ == "__main__":
    run_command(BenchmarkConfig, _benchmark_until_stopped, "python -m jobs.benchmark")
