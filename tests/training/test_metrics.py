"""metrics.csv: what a continued run, and one that died before its first checkpoint, make of it."""

import csv
from pathlib import Path

from babble.training.metrics import MetricsCsv


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_that_are_done_again_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path)
    first.log_metrics({"train/loss": 3.0}, step=4)
    first.log_metrics({"val/bits_per_frame": 40.0}, step=9)
    second = MetricsCsv(path)
    second.continue_from(9)
    second.log_metrics({"val/bits_per_frame": 39.0}, step=9)
    assert _read(path) == [
        {"step": "4", "train/loss": "3.0", "val/bits_per_frame": ""},
        {"step": "9", "train/loss": "", "val/bits_per_frame": "39.0"},
    ]


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path)
    first.log_metrics({"val/bits_per_frame": float("nan")}, step=0)
    second = MetricsCsv(path)
    second.continue_from(0)
    second.log_metrics({"train/loss": 3.0}, step=0)
    second.log_metrics({"val/bits_per_frame": 40.0}, step=0)
    assert _read(path) == [
        {"step": "0", "train/loss": "3.0", "val/bits_per_frame": ""},
        {"step": "0", "train/loss": "", "val/bits_per_frame": "40.0"},
    ]
