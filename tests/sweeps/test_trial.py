"""What a trial's supervisor reads of its training, and the environment that the training gets."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.result import TRIAL_INFO

from babble.files import append_json_line, write_bytes
from babble.sweeps import trial
from babble.sweeps.folder import SweepFolder, trial_name
from babble.sweeps.ranking import TrialRow
from babble.sweeps.trial import MetricsReader, SweepCallback, Trial, Validation, make_environment

MONITOR = "val/bits_per_frame"


def _append(path: Path, epoch: int, value: float) -> None:
    append_json_line(path, {"step": 10 * epoch + 4, "epoch": epoch, "train/stage": epoch + 1.0, "train/loss": 1.0})
    append_json_line(path, {"step": 10 * epoch + 9, "epoch": epoch, MONITOR: value})


def test_each_row_of_metrics_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(trial.json, "loads", lambda line: parsed.append(line) or loads(line))
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, MONITOR)
    found = reader.read()
    for epoch, value in enumerate((40.0, 38.0, 39.0)):
        _append(path, epoch, value)
        for _ in range(5):
            found += reader.read()
    assert [(v.steps, v.epoch, v.stage, v.value, v.best) for v in found] == [
        (10, 1, 1, 40.0, 40.0),
        (20, 2, 2, 38.0, 38.0),
        (30, 3, 3, 39.0, 38.0),
    ]
    assert b"\n".join(parsed) + b"\n" == path.read_bytes()


def test_half_a_line_is_read_when_it_is_whole_and_a_replaced_file_from_its_beginning(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path, MONITOR)
    for epoch, value in enumerate((40.0, 30.0)):
        _append(path, epoch, value)
    lines = path.read_bytes()
    path.write_bytes(lines[:-10])
    assert [v.value for v in reader.read()] == [40.0]
    with path.open("ab") as file:
        file.write(lines[-10:])
    assert [v.value for v in reader.read()] == [30.0]
    # A resumed training drops the rows that it repeats, and can be past them by the next call.
    write_bytes(path, b"".join(lines.splitlines(keepends=True)[:2]))
    for epoch, value in ((1, 35.0), (2, 34.0)):
        _append(path, epoch, value)
    assert [(v.value, v.best) for v in reader.read()] == [(40.0, 40.0), (35.0, 35.0), (34.0, 34.0)]


def test_a_trial_runs_without_the_variables_of_slurm_and_torchrun(monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_PROCID", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES", "KEPT"):
        monkeypatch.setenv(name, "1")
    assert make_environment(gpus=1)["CUDA_VISIBLE_DEVICES"] == "1"
    environment = make_environment(gpus=0)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["KEPT"]) == ("", "1")
    assert not {"SLURM_PROCID", "LOCAL_RANK", "MASTER_ADDR"} & environment.keys()


def test_a_continued_trial_counts_the_seconds_of_its_earlier_starts(tmp_path: Path):
    folder, values = SweepFolder(tmp_path / "sweep"), {"model.units": 8}
    base = {"data": {"batch_size": 1, "window_frames": 1}, "compute": {"accumulate_batches": 1, "devices": 1}}
    settings = {"space": {"model.units": {"choice": [8]}}, "monitor": MONITOR, "seeds": [0]}
    folder.claim(settings, base | {"model": {"units": 8}})
    of_tune = SimpleNamespace(trial_id="1", trial_resources=PlacementGroupFactory([{"CPU": 1}]))
    name = trial_name("1", values, 0)
    folder.write_rows([TrialRow(name, "running", values, 0, best=30.0, seconds=60.0)])
    config = {"values": values, "seed": 0, "sweep": str(folder.path), "directory": str(tmp_path)}
    continued = Trial(config | {TRIAL_INFO: of_tune})
    # Its training is of no interest here.
    continued.cleanup()
    result = continued._result(Validation(steps=10, epoch=1, stage=1, value=29.0, best=29.0), is_finished=False)
    callback = SweepCallback(folder.path, 1)
    callback.weights[name] = 1
    about = {"trial_id": "1", "config": config, "status": "RUNNING", "num_failures": 1}
    row = callback._row(SimpleNamespace(**about, last_result=result | {"time_total_s": 5.0}))
    assert (row.trial, row.best, row.seconds) == (name, 29.0, 65.0)
