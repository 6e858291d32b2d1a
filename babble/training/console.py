"""What a training prints while it runs: a progress bar on a terminal, plain lines in a log file, and warnings.

epoch 3/20, stage 1, step 120: 31.20 in training, 30.12 in validation (bits per frame), 5,512 frames/s, 1.2 min left
"""

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer, TQDMProgressBar

from babble.codec.token_sequences import name_frame
from babble.training.config import Stage
from babble.training.unfreezing import stage_at

LINE_SECONDS = 30.0
# The first steps, from which the duration is estimated: enough of them, but no more than a minute.
ESTIMATE_STEPS = 20
ESTIMATE_SECONDS = 60.0
LONG_HOURS = 24.0


def read_progress(trainer: pl.Trainer, module: Any) -> tuple[str, dict[str, float]]:
    """Return the unit of the console's metrics, and the latest values of "training" and "validation".

    Heads with a likelihood are shown in bits per frame or token, in training too, where the loss is in bits per field.
    """
    has_bits = module.model.head.has_likelihood
    values = {}
    if module.latest_loss is not None:
        values["training"] = float(module.latest_loss) * (module.mode.num_fields if has_bits else 1)
    if module.monitor in trainer.callback_metrics:
        values["validation"] = float(trainer.callback_metrics[module.monitor])
    return f"bits per {name_frame(module.mode.name)}" if has_bits else "levels of error", values


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the metrics of `read_progress`."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        """Return the numbers shown after the bar."""
        unit, values = read_progress(trainer, pl_module)
        return {f"{unit}, {split}": f"{value:.2f}" for split, value in values.items()}


class ConsoleLogger(pl.Callback):
    """Prints plain lines for a log file: at every validation, and every half a minute.

    Args:
        stages: of the unfreezing.
        epochs: number of epochs of the training, or None.
        steps: number of steps of the training, for the time left; None if it is not known.
        timer: ends the training after some hours, or None.
    """

    def __init__(
        self, stages: tuple[Stage, ...], epochs: int | None, steps: int | None, timer: Timer | None = None
    ) -> None:
        self.stages = stages
        self.epochs = epochs
        self.steps = steps
        self.timer = timer
        self.printed_at = 0.0
        self.started: tuple[float, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remember time and step, for the time left."""
        self.started = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Print a line after half a minute."""
        if time.monotonic() - self.printed_at > LINE_SECONDS:
            self._print(trainer, pl_module, is_validated=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print a line with the validation's result."""
        self._print(trainer, pl_module, is_validated=True)

    def _print(self, trainer: pl.Trainer, module: Any, is_validated: bool) -> None:
        if not trainer.is_global_zero:
            return
        self.printed_at = time.monotonic()
        stage = f", stage {stage_at(trainer.current_epoch, self.stages)}" if self.stages else ""
        epochs = f"/{self.epochs}" if self.epochs else ""
        unit, values = read_progress(trainer, module)
        shown = ("training", "validation") if is_validated else ("training",)
        parts = [", ".join(f"{values[split]:.2f} in {split}" for split in shown if split in values) + f" ({unit})"]
        if (speed := trainer.callback_metrics.get("train/frames_per_second")) is not None:
            parts.append(f"{float(speed):,.0f} frames/s")
        if (minutes := self._minutes_left(trainer)) is not None:
            parts.append(f"{minutes:.1f} min left")
        where = f"epoch {trainer.current_epoch + 1}{epochs}{stage}, step {trainer.global_step}"
        print(f"{where}: {', '.join(parts)}", flush=True)

    def _minutes_left(self, trainer: pl.Trainer) -> float | None:
        """Return the minutes to the first of the limits in steps and hours; None if neither is known."""
        left = []
        if self.started is not None and self.steps is not None and trainer.global_step > self.started[1]:
            seconds = (time.monotonic() - self.started[0]) / (trainer.global_step - self.started[1])
            left.append(seconds * (self.steps - trainer.global_step))
        if self.timer and (seconds_left := self.timer.time_remaining()) is not None:
            left.append(max(0.0, seconds_left))
        return min(left) / 60 if left else None


class DurationWarning(pl.Callback):
    """Warns once if the first steps show that the training will take more than a day.

    Args:
        steps: number of steps of the training.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: tuple[float, int] | None = None
        self.is_done = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Measure from the end of the first step on, which is slower than the others."""
        if self.is_done or not trainer.is_global_zero:
            return
        now, step = time.monotonic(), trainer.global_step
        if self.first is None:
            self.first = now, step
            return
        seconds, steps = now - self.first[0], step - self.first[1]
        if steps and (steps >= ESTIMATE_STEPS or seconds > ESTIMATE_SECONDS):
            self.is_done = True
            if warning := warn_if_long(seconds / steps, self.steps - step):
                print(warning, flush=True)


def warn_if_long(step_seconds: float, steps_left: int) -> str | None:
    """Return a warning if the steps that are left take more than a day, else None."""
    hours = step_seconds * steps_left / 3600
    if hours <= LONG_HOURS:
        return None
    return (
        f"Warning: on this machine the training will take about {hours / 24:.1f} days ({step_seconds:.2g} s per step). "
        "--config babble-cpu is a smaller recipe (one hour on two CPU cores), --config demo the smallest "
        "(3 minutes); --stop.hours sets a limit."
    )


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence messages of Lightning and torch that do not apply here; restore everything at the end."""
    # Banner, tips, and a line per process; the start table has what matters.
    names = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Batches come from memory (data/loaders.py): loader workers would only copy them.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning 2.6 calls torch in an outdated way; can go when it does not.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        # On a login node, or in a batch script, a training without srun may be intended.
        warnings.filterwarnings("ignore", ".*srun. command is available.*")
        # Small epochs are intended; rows of metrics do not depend on epochs.
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        # compute.accelerator=cpu is a choice.
        warnings.filterwarnings("ignore", ".*GPU available but not used.*")
        # The new name of this argument is not in the oldest torch that babble supports.
        warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
