"""metrics.jsonl: what a resumed run keeps of it; the measured speed."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from babble.files import read_json_lines
from babble.training import metrics
from babble.training.metrics import MetricsFile, ThroughputLogger


def test_a_resumed_run_drops_the_rows_of_steps_that_it_repeats(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.log_metrics({"train/loss": 3.0}, step=4)
    first.log_metrics({"val/bits_per_frame": 40.0}, step=9)
    with path.open("a") as file:
        file.write('{"step": 10, "train/lo')
    second = MetricsFile(path)
    second.resume(9)
    second.log_metrics({"val/bits_per_frame": 39.0}, step=9)
    assert read_json_lines(path) == [{"step": 4, "train/loss": 3.0}, {"step": 9, "val/bits_per_frame": 39.0}]


def test_a_run_without_a_checkpoint_starts_with_an_empty_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).log_metrics({"train/loss": 3.0}, step=0)
    second = MetricsFile(path)
    second.resume(0)
    second.log_metrics({"train/loss": 2.0}, step=0)
    assert read_json_lines(path) == [{"step": 0, "train/loss": 2.0}]


def test_metrics_that_are_not_finite_survive(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.log_metrics({"train/loss": math.inf, "val/bits_per_frame": math.nan}, step=0)
    file.resume(1)
    (row,) = read_json_lines(path)
    assert row["train/loss"] == math.inf
    assert math.isnan(row["val/bits_per_frame"])


def test_the_speed_of_a_run_that_resumes_within_an_epoch_is_without_its_start(monkeypatch: pytest.MonkeyPatch):
    now, logged = SimpleNamespace(seconds=0.0), {}
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now.seconds)
    trainer: Any = SimpleNamespace(world_size=2, global_step=1)
    module: Any = SimpleNamespace(log=logged.__setitem__, mode=SimpleNamespace(frames_per_second=25))
    callback = ThroughputLogger(every_steps=1)
    now.seconds = 30.0
    callback.on_train_start(trainer, module)
    now.seconds = 32.0
    callback.on_train_batch_end(trainer, module, None, SimpleNamespace(frames=torch.zeros(4, 11, 16)), 0)
    assert logged["train/frames_per_second"] == 4 * 10 * 2 / 2
