"""Figures of a running training: metrics.csv, speed, and plain lines for a log."""

import csv
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from babble.unfreezing import Stage, stage_at

LINE_SECONDS = 30.0


class MetricsCsv(Logger):
    """Writes metrics.csv: a row for each set of figures, columns added as they first appear.

    Lightning's own wipes the file when a run is continued; this one drops the rows behind the resumed step, so that
    the file is that of a run which never stopped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one version: the run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Drop every row of a step that the run will do again: all, where it begins anew at step 0."""
        if not self.path.is_file():
            return
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row["step"] and int(row["step"]) < step]
            self.columns = list(reader.fieldnames or [])
        if rows:
            self._rewrite(rows)
        else:
            self.path.unlink()
            self.columns = []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row and see it to the disk."""
        row = {"step": step, **metrics}
        unknown = [column for column in row if column not in self.columns]
        if unknown:
            rows = []
            if self.path.is_file():
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            self.columns += unknown
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


class Speed(pl.Callback):
    """Logs `train/frames_per_second`, all processes together, over the steps since it last did."""

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
            pl_module.log("train/frames_per_second", self.frames / (now - self.since))
            self.frames, self.since = 0, now


class PlainLines(pl.Callback):
    """Says where the training is in plain lines, for a log file: at every validation, and every half a minute."""

    def __init__(self, stages: tuple[Stage, ...], epochs: int | None) -> None:
        self.stages = stages
        self.epochs = epochs
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
        self._say(trainer, ["train/loss", pl_module.headline])

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
        total = trainer.estimated_stepping_batches
        if self.started is None or not math.isfinite(total) or trainer.global_step <= self.started[1]:
            return None
        seconds = (time.monotonic() - self.started[0]) / (trainer.global_step - self.started[1])
        return seconds * (total - trainer.global_step) / 60
