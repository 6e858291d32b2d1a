"""Metrics of a running training: where they are written (loggers), and those beyond loss and error (callbacks)."""

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
from babble.training.config import Stage
from babble.training.module import BabbleModule, is_logged
from babble.training.unfreezing import unfrozen_layers
from babble.training.wandb_run import STEP, WandbRun

# Metrics of the machine: they differ between two trainings that are otherwise equal.
OF_THE_MACHINE = (
    *("train/frames_per_second", "train/times_real_time"),
    *("train/peak_memory_gb", "train/peak_gpu_memory_gb"),
)


class MetricsFile(Logger):
    """Appends each set of metrics to metrics.jsonl, one JSON object per row: step, epoch, metric names.

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
    def resume(self, step: int, prefix: str = "") -> None:
        """Drop the rows that the run repeats, so that the file equals that of an uninterrupted run.

        A half-written last line, left by a kill, is dropped too.

        Args:
            step: the first step to drop, counted from 0: the optimizer steps done at the checkpoint.
            prefix: drop only rows with a metric whose name starts with it.
        """
        if not self.path.is_file():
            return
        rows = [
            row
            for row in read_json_lines(self.path)
            if row["step"] < step or not any(name.startswith(prefix) for name in row)
        ]
        if rows:
            write_bytes(self.path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        else:
            self.path.unlink()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        append_json_line(self.path, {"step": step, **metrics})


class WandbMetrics(Logger):
    """Sends each set of metrics to W&B; validation metrics together with the baselines, which become lines.

    Args:
        wandb: the open run.
        lines: value of each baseline, see `baseline_lines`.
    """

    def __init__(self, wandb: WandbRun, lines: dict[str, float]) -> None:
        super().__init__()
        self.wandb = wandb
        self.lines = lines

    @property
    def name(self) -> str:
        """The logger's name."""
        return "wandb"

    @property
    def version(self) -> str:
        """The version within the run: there is only one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Send nothing: the run was opened with all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to the curve of each metric."""
        is_validation = any(name.startswith("val/") for name in metrics)
        self.wandb.log({**metrics, **(self.lines if is_validation else {}), STEP: step})


class ThroughputLogger(pl.Callback):
    """Logs frames per second of all processes together since the last row, and the peak memory of the first process.

    Args:
        every_steps: optimizer steps between two rows.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.frames, self.since = 0, time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start over: the time between two epochs is not training."""
        self.frames, self.since = 0, time.monotonic()

    def on_train_start(self, *_: Any) -> None:
        """Start over, also where a run that resumes within an epoch has no start of one."""
        self.on_train_epoch_start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count frames; log."""
        self.frames += batch.frames.shape[0] * (batch.frames.shape[1] - 1) * trainer.world_size
        if trainer.global_step % self.every_steps == 0:
            now = time.monotonic()
            frames_per_second = self.frames / (now - self.since)
            pl_module.log("train/frames_per_second", frames_per_second)
            pl_module.log("train/times_real_time", frames_per_second / pl_module.mode.frames_per_second)
            # macOS counts bytes, Linux kilobytes.
            unit = 1 if sys.platform == "darwin" else 1024
            pl_module.log("train/peak_memory_gb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)
            if torch.cuda.is_available():
                pl_module.log("train/peak_gpu_memory_gb", torch.cuda.max_memory_allocated() / 1e9)
            self.frames, self.since = 0, now


class LayerLogger(pl.Callback):
    """Logs the norm of gradients (before clipping) and weights of each layer, and whether it is unfrozen.

    It must come after `Unfreezing`, so that the gradient norm of frozen layers is 0.
    """

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the step's norms."""
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
        unfrozen = unfrozen_layers(trainer.current_epoch, self.stages, len(layers))
        for number, name in enumerate(layers, 1):
            pl_module.log(f"unfrozen/{name}", float(number in unfrozen))
