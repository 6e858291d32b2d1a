"""`generation` and `evaluation`: sampling frames, one stream and many, and both commands as a whole."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.config import DEFAULT_RECIPE, MODE, BenchmarkConfig
from jobs.benchmark.corpus import list_speech, make_corpus, make_run
from jobs.benchmark.floors import encode_recordings, make_generator
from jobs.benchmark.measurement import Measurement, per_second, take_turns
from jobs.benchmark.process_usage import measure_command, run_in_process, stay_on_one_core
from jobs.benchmark.training import RECIPE_2017, read_training

PROMPT_FRAMES = 200
# By number of streams: blocks per turn, and the target for the default recipe in frames per second (for one stream
# 20 times real time).
STREAMS = {1: (20, 500), 64: (2, 5000)}
COMMAND_SECONDS = 60
HELD_OUT_HOURS = 1.0


def measure_generation(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the speed of free-running generation on one core, for the network of 2017 and the default recipe."""
    return run_in_process(_measure_generation, config, folder)


def _measure_generation(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    stay_on_one_core()
    import torch

    from babble.codec.codec2 import write_c2
    from babble.codec.frames import unpack_packets
    from babble.model.babbler import Babbler

    prompt = unpack_packets(next(encode_recordings(list_speech()[:1])), MODE)[:PROMPT_FRAMES]
    networks = {
        f"2017 3x{config.units}": read_training({**RECIPE_2017, "model.units": config.units}),
        DEFAULT_RECIPE.stem: read_training({}, DEFAULT_RECIPE),
    }
    measurements = []
    for network, recipe in networks.items():
        torch.manual_seed(0)
        model = Babbler(recipe.model, MODE).eval()
        for streams in STREAMS:
            prompts_BTF = np.repeat(prompt[None], streams, axis=0)
            measurements.append(_measure_streams(network, model, prompts_BTF, config))
        run = make_run(folder / network, model)
        write_c2(run.prompts / "1.c2", prompt, MODE)
        measurements.append(_measure_command(network, run.path, config))
    return measurements


def _measure_streams(network: str, model: Any, prompts_BTF: np.ndarray, config: BenchmarkConfig) -> Measurement:
    from babble.generation.free_run import BLOCK_FRAMES, FreeRun

    streams = len(prompts_BTF)
    blocks, target = STREAMS[streams]
    blocks = config.count(blocks)
    free_run = FreeRun(model, prompts_BTF)

    def generate() -> float:
        return per_second(blocks * BLOCK_FRAMES * streams, lambda: [free_run.make_block() for _ in range(blocks)])

    name, note = f"generation, {network}, {streams} at once", "one core; 25 frames/s is real time"
    if network == DEFAULT_RECIPE.stem:
        _, *values = [generate() for _ in range(config.turns + 1)]
        return Measurement(name, "frames/s", tuple(values), at_least=target, note=note)
    generate_plainly = make_generator(model, prompts_BTF)
    ours, floors = take_turns(
        config.turns,
        generate,
        lambda: per_second(blocks * BLOCK_FRAMES * streams, lambda: generate_plainly(blocks * BLOCK_FRAMES)),
    )
    return Measurement(name, "frames/s", ours, floors, at_least=0.8, note=note)


def _measure_command(network: str, run: Path, config: BenchmarkConfig) -> Measurement:
    seconds, wav = config.count(COMMAND_SECONDS), run / "babble.wav"
    usage = measure_command(
        [sys.executable, "-m", "babble.generate", str(run), "--seconds", str(seconds), "--out", str(wav)]
    )
    loop = json.loads(wav.with_suffix(".json").read_text())["times_real_time"]
    note = f"{seconds} s in {usage.wall_seconds:.1f} s, imports and picture included; without them {loop:g} x real time"
    speed = seconds / usage.wall_seconds
    return Measurement(f"babble generate, {network}", "x real time", (speed,), note=note)


def measure_evaluation(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the wall time of the whole command, on all cores: without babble per hour of speech, and the default."""
    from babble.evaluate import EvaluateConfig
    from babble.model.babbler import Babbler

    hours = HELD_OUT_HOURS * config.scale
    corpus = make_corpus(folder, hours, hours)
    run = make_run(folder / "run", Babbler(read_training({}, DEFAULT_RECIPE).model, MODE))
    command = [sys.executable, "-m", "babble.evaluate", "--shards", str(corpus)]

    def measure(*words: str) -> tuple[float, ...]:
        return tuple(measure_command([*command, *words]).wall_seconds / config.scale for _ in range(config.few_turns))

    likelihood = measure(str(run.path), "--babble-seconds", "0")
    seconds = max(1.0, EvaluateConfig.babble_seconds * config.scale)
    default = measure("--babble-seconds", str(seconds))
    note = f"{hours:g} h, imports and baselines included, {os.cpu_count()} cores"
    return [
        Measurement(f"evaluation, {DEFAULT_RECIPE.stem}", "s per hour", likelihood, at_most=60, note=note),
        Measurement(
            "evaluation, bundled voice", "s", default, at_most=240, note=f"8 x {seconds:g} s of babble; {note}"
        ),
    ]
