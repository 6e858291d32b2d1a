"""Metrics of a running training: metrics.jsonl, curves in W&B, speed, layers, and plain lines for a log."""

import json
import resource
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from babble.files import append_json_line, read_json_lines, write_bytes
from babble.training.module import BabbleModule, is_logged
from babble.training.unfreezing import Stage, stage_at, unfrozen_layers
from babble.training.wandb_run import STEP, WandbRun

LINE_SECONDS = 30.0
# What no two trainings have in common, though they learn the same.
OF_THE_MACHINE = (
    *("train/frames_per_second", "train/times_real_time"),
    *("train/peak_memory_gb", "train/peak_gpu_memory_gb"),
)


class MetricsFile(Logger):
    """Append each set of metrics to metrics.jsonl, one JSON object per row: step, epoch, metric names.

    Args:
        path: the file; NaN and infinities are written as Python's json does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """The version within the run: there is only one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write nothing: config.yaml has all settings."""

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Drop the rows of steps that the run repeats, so that the file equals that of an uninterrupted run.

        A half-written last line, left by a kill, is dropped too.

        Args:
            step: optimizer steps done at the checkpoint; 0 drops all rows.
        """
        if not self.path.is_file():
            return
        rows = [row for row in read_json_lines(self.path) if row["step"] < step]
        if rows:
            write_bytes(self.path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        else:
            self.path.unlink()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        append_json_line(self.path, {"step": step, **metrics})


class Curves(Logger):
    """Draws the figures in W&B, held-out ones with the baselines as lines beside them.

    Args:
        wandb: the open run.
        lines: what `baseline_lines` gave.
    """

    def __init__(self, wandb: WandbRun, lines: dict[str, float]) -> None:
        super().__init__()
        self.wandb = wandb
        self.lines = lines

    @property
    def name(self) -> str:
        """The logger's name."""
        return "curves"

    @property
    def version(self) -> str:
        """There is one version: the run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run was opened with all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to each figure's curve."""
        is_held_out = any(name.startswith("val/") for name in metrics)
        self.wandb.log({**metrics, **(self.lines if is_held_out else {}), STEP: step})


class Speed(pl.Callback):
    """Logs how fast all processes together train, over the steps since it last did, and the first one's peak memory."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.frames, self.since = 0, time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start anew: what lies between two epochs is not training."""
        self.frames, self.since = 0, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and log where the other figures are."""
        self.frames += batch.frames.shape[0] * (batch.frames.shape[1] - 1) * trainer.world_size
        if trainer.global_step % self.every_steps == 0:
            now = time.monotonic()
            speed = self.frames / (now - self.since)
            pl_module.log("train/frames_per_second", speed)
            pl_module.log("train/times_real_time", speed / pl_module.mode.frames_per_second)
            # macOS counts bytes, Linux kilobytes.
            unit = 1 if sys.platform == "darwin" else 1024
            pl_module.log("train/peak_memory_gb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)
            if torch.cuda.is_available():
                pl_module.log("train/peak_gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9)
            self.frames, self.since = 0, now


class LayerFigures(pl.Callback):
    """Logs, by layer, how large gradients (before clipping) and weights are, and whether it learns.

    Where Unfreezing comes first, a layer that waits has a gradient of 0.
    """

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log where the other figures are."""
        if not is_logged(trainer):
            return
        assert isinstance(pl_module, BabbleModule)
        model = pl_module.model
        layers = {f"layer_{number}": layer for number, layer in enumerate(model.layers, 1)}
        for name, part in {"input": model.input, **layers, "head": model.head}.items():
            weights = list(part.parameters())
            if not weights:
                continue
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            pl_module.log(f"gradient_norm/{name}", get_total_norm(gradients))
            pl_module.log(f"weight_norm/{name}", get_total_norm([weight.detach() for weight in weights]))
        learning = unfrozen_layers(trainer.current_epoch, self.stages, len(layers))
        for number, name in enumerate(layers, 1):
            pl_module.log(f"unfrozen/{name}", float(number in learning))


class PlainLines(pl.Callback):
    """Says where the training is in plain lines, for a log file: at every validation, and every half a minute.

    Args:
        stages: of the unfreezing.
        epochs: that the training ends after, or None.
        steps: that the training ends after, for the time left; None where only time tells.
    """

    def __init__(self, stages: tuple[Stage, ...], epochs: int | None, steps: int | None) -> None:
        self.stages = stages
        self.epochs = epochs
        self.steps = steps
        self.said_at = 0.0
        self.started: tuple[float, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remember where this start began, for the time left."""
        self.started = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Say so if it is half a minute since."""
        if time.monotonic() - self.said_at > LINE_SECONDS:
            self._say(trainer, ["train/loss", "train/frames_per_second"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say how the held-out speech fared."""
        self._say(trainer, ["train/loss", pl_module.monitor])

    def _say(self, trainer: pl.Trainer, names: list[str]) -> None:
        if not trainer.is_global_zero:
            return
        self.said_at = time.monotonic()
        figures = [
            f"{name} {float(trainer.callback_metrics[name]):,.4g}" for name in names if name in trainer.callback_metrics
        ]
        stage = f", stage {stage_at(trainer.current_epoch, self.stages)}" if self.stages else ""
        epochs = f"/{self.epochs}" if self.epochs else ""
        left = self._minutes_left(trainer)
        print(
            f"epoch {trainer.current_epoch + 1}{epochs}{stage}, step {trainer.global_step}: {', '.join(figures)}"
            + (f", {left:.1f} min left" if left is not None else ""),
            flush=True,
        )

    def _minutes_left(self, trainer: pl.Trainer) -> float | None:
        if self.started is None or self.steps is None or trainer.global_step <= self.started[1]:
            return None
        seconds = (time.monotonic() - self.started[0]) / (trainer.global_step - self.started[1])
        return seconds * (self.steps - trainer.global_step) / 60
