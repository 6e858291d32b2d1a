"""metrics.jsonl: what a resumed run keeps of it."""

import math
from pathlib import Path

from babble.files import read_json_lines
from babble.training.metrics import MetricsFile


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
