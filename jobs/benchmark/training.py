"""`training` and `logging`: one process, compared turn by turn with a plain PyTorch loop, and with no logging."""

import copy
import io
import itertools
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from babble.cli import read_config
from jobs.benchmark.config import DEFAULT_RECIPE, MODE, BenchmarkConfig
from jobs.benchmark.corpus import make_corpus
from jobs.benchmark.floors import make_training, wait_for
from jobs.benchmark.measurement import Measurement, per_second
from jobs.benchmark.process_usage import run_in_process, stay_on_one_core

BATCH_SIZE, WINDOW_FRAMES = 32, 200
CORPUS_HOURS = 12.0
# Steps per turn.
TRAINING_STEPS = 2
LOGGING_STEPS = 50
# The network and the batches of 2017.
RECIPE_2017: dict[str, Any] = {
    "model.inputs": "scaled",
    "model.cell": "lstm",
    "model.num_layers": 3,
    "model.head": "regression",
}
RECIPE_2017 |= {"data.window_frames": WINDOW_FRAMES, "data.batch_size": BATCH_SIZE, "optim.clip_norm": "null"}
# Nothing but training, on one core.
TRAINING_ALONE: dict[str, Any] = {"samples.every_epochs": 0, "samples.prompts": 1, "samples.frames": 2}
TRAINING_ALONE |= {"compute.accelerator": "cpu", "compute.devices": 1, "compute.threads": 1, "wandb.mode": "off"}


def write_flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as the words of a command line: {"model.units": 8} -> ["--model.units", "8"]."""
    return list(itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in settings.items()))


def read_training(settings: dict[str, Any], recipe: Path | None = None) -> Any:
    """Return the TrainConfig of a recipe (without one, of a single step) and settings."""
    from babble.training.config import TrainConfig

    if recipe:
        return read_config(TrainConfig, ["--config", str(recipe), *write_flags(settings)])
    return read_config(TrainConfig, write_flags({"stop.steps": 1} | settings))


def measure_training(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the speed of `train` compared with a plain loop's: in one process, on the same batches."""
    return run_in_process(compare_training, config, make_corpus(folder, CORPUS_HOURS * config.scale), folder)


def compare_training(config: BenchmarkConfig, corpus: Path, folder: Path) -> list[Measurement]:
    """Train in this process, in turns with the floor; see `measure_training`."""
    settings = {"model.units": config.units, "data.shards": corpus, "runs": folder, "name": "training"}
    settings |= {"stop.steps": (config.turns + 1) * TRAINING_STEPS, "wandb.mode": "offline"}
    # Each turn logs a row, by default every 50th step does.
    settings |= {"log_every_steps": TRAINING_STEPS}
    ours, floors = train_beside_floor(read_training({**RECIPE_2017, **TRAINING_ALONE, **settings}), TRAINING_STEPS)
    name = f"training, 2017 3x{config.units}"
    note = f"turns of {TRAINING_STEPS} steps, batches of {BATCH_SIZE} windows of {WINDOW_FRAMES} frames"
    return [Measurement(name, "frames/s", ours, floors, at_least=0.95, note=note)]


def train_beside_floor(training: Any, steps: int) -> tuple[tuple[float, ...], ...]:
    """Return frames per second of `train` and of a plain loop, in turns of some steps, without the first turn.

    Args:
        training: the settings, on any device; without gradient clipping, which the loop does not do.
        steps: optimizer steps per turn.
    """
    from babble.training.metrics import ThroughputLogger

    turns: list[tuple[float, float]] = []
    frames = steps * training.data.batch_size * training.data.window_frames

    class Turns(ThroughputLogger):
        """Runs the plain loop between two turns of Lightning's."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            loader = copy.copy(trainer.train_dataloader)
            loader.load_state_dict({"batches_given": 0})
            is_mixed = training.compute.precision == "bf16-mixed"
            self.train_plainly = make_training(copy.deepcopy(pl_module.model), iter(loader), is_mixed)
            self.turn_start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *arguments)
            if trainer.global_step % steps == 0:
                wait_for(pl_module.device)
                speed = frames / (time.perf_counter() - self.turn_start)
                turns.append((speed, per_second(frames, lambda: self.train_plainly(steps))))
                self.turn_start = time.perf_counter()

    _train_with(Turns, training)
    return tuple(zip(*turns[1:], strict=True))


def _train_with(speed: type, training: Any) -> None:
    """Train with another class in place of ThroughputLogger, the one way to take turns inside a training."""
    from babble.train import train
    from babble.training import trainer

    with mock.patch.object(trainer, "ThroughputLogger", speed), redirect_stdout(io.StringIO()):
        train(training)


def measure_logging(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the speed of a training that logs as by default, compared with its speed without logging.

    All runs on one core, W&B's own processes too.
    """
    data = read_training({}, DEFAULT_RECIPE).data
    # One epoch long: the time between two epochs is not training.
    frames = 2 * (config.turns + 2) * config.count(LOGGING_STEPS) * data.batch_size * data.window_frames
    corpus = make_corpus(folder, frames / MODE.frames_per_second / 3600)
    return run_in_process(compare_logging, config, corpus, folder)


def compare_logging(config: BenchmarkConfig, corpus: Path, folder: Path) -> list[Measurement]:
    """Train in this process, every second turn without logging; see `measure_logging`."""
    stay_on_one_core()
    from babble.training.metrics import ThroughputLogger

    steps = config.count(LOGGING_STEPS)
    turn_starts: list[float] = []

    class Turns(ThroughputLogger):
        """Switches all logging off or on after each turn."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.log = pl_module.log

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            # A row is written between the end of one step and the start of the next.
            if trainer.global_step % steps == 0:
                turn_starts.append(time.perf_counter())
                is_logged = len(turn_starts) % 2 == 1
                trainer.log_every_n_steps = steps if is_logged else sys.maxsize
                pl_module.log = self.log if is_logged else lambda *args, **kwargs: None

    settings = {"data.shards": corpus, "runs": folder, "name": "logging", "log_every_steps": steps}
    # The last turn ends before one more step.
    settings |= {"stop.steps": 2 * (config.turns + 1) * steps + 1, "optim.warmup_steps": 0, "wandb.mode": "offline"}
    training = read_training({**TRAINING_ALONE, **settings}, DEFAULT_RECIPE)
    _train_with(Turns, training)
    frames = steps * training.data.batch_size * training.data.window_frames
    speeds = [frames / seconds for seconds in np.diff(turn_starts)[2:].tolist()]
    name = f"logging, {DEFAULT_RECIPE.stem}"
    note = f"metrics file and W&B offline, a row every {steps} steps; floor: no logging"
    return [Measurement(name, "frames/s", tuple(speeds[::2]), tuple(speeds[1::2]), at_least=0.97, note=note)]
