"""The sweep folder: what is written comes back, what is removed, and what best.yaml and best/ hold."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder, prune_checkpoints, write_answer
from babble.sweeps.ranking import TrialRow, average_by_value, rank

SPACE = {"clip": {"choice": [None, 1.0]}, "lr": {"loguniform": [1e-4, 1.0]}}
BASE = {"clip": 0.5, "lr": 0.1, "recipe": "tune", "wandb": {"group": "sweep"}, "data": {"holding": "mapped"}}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "sweep")
    folder.claim({"space": SPACE, "monitor": "val/bits_per_frame"}, BASE)
    return folder


def _row(clip: float | None, lr: float, seed: int, best: float | None = None) -> TrialRow:
    state = "finished" if best else "running"
    return TrialRow(f"{clip}-{lr}-{seed}", state, {"clip": clip, "lr": lr}, seed, best, stage=1 if best else None)


def test_rows_come_back_as_they_were_written(folder: SweepFolder):
    rows = [_row(None, 1 / 3, 0, 25.123456789), _row(1.0, 0.1, 1)]
    rows[1] = replace(rows[1], reason='a "quoted", word')
    assert folder.read_rows() == []
    folder.write_rows(rows)
    assert folder.read_rows() == rows
    # A choice of nothing is a value like any other.
    assert average_by_value(rank(folder.read_rows(), folder.read_axes()), folder.read_axes()[0]) == {
        "None": (1, 25.123456789)
    }


def test_checkpoints_of_all_but_the_best_configuration_are_removed(folder: SweepFolder):
    rows = [_row(clip, 0.1, seed, best + seed) for clip, best in ((None, 20), (1.0, 30), (2.0, 25)) for seed in (0, 1)]
    for row in rows:
        (folder.trials / row.trial / "checkpoints").mkdir(parents=True)
    axes = folder.read_axes()
    # A configuration with a running trial is not compared yet.
    prune_checkpoints(folder, [*rows[:5], replace(rows[5], state="running")], axes, num_kept=1, num_seeds=2)
    kept = {path.parent.name for path in folder.trials.glob("*/checkpoints")}
    assert kept == {"None-0.1-0", "2.0-0.1-0", "2.0-0.1-1"}
    prune_checkpoints(folder, rows, axes, num_kept=1, num_seeds=2)
    assert {path.parent.name for path in folder.trials.glob("*/checkpoints")} == {"None-0.1-0"}


def test_the_best_configuration_is_written_without_what_belongs_to_its_trial(folder: SweepFolder):
    rows = [_row(None, 0.1, 7, 26.0), _row(1.0, 0.2, 7, 25.0)]
    folder.write_rows(rows)
    for row in rows:
        folder.write_config(row.trial, row.values, row.seed)
    assert write_answer(folder) + "\n" == folder.answer.read_text()
    assert yaml.safe_load((folder.path / "best.yaml").read_text()) == {
        "clip": 1.0,
        "lr": 0.2,
        "data": {"holding": "mapped"},
    }


def test_what_a_user_adds_to_the_best_run_stays_until_another_trial_is_best(folder: SweepFolder):
    rows = [_row(None, 0.1, 0, 25.0), _row(1.0, 0.2, 0, 26.0)]
    runs = [RunFolder(folder.trials / row.trial) for row in rows]
    for row, run in zip(rows, runs, strict=True):
        path = folder.write_config(row.trial, row.values, row.seed)
        run.checkpoint("best").parent.mkdir(parents=True)
        run.config.write_bytes(path.read_bytes())
        run.checkpoint("best").write_text(row.trial)
    folder.write_rows(rows)
    write_answer(folder)
    (folder.best.path / "evaluation.json").touch()
    write_answer(folder)
    assert (folder.best.path / "evaluation.json").is_file()
    # The trial was still running, and has improved since.
    runs[0].checkpoint("best").write_text("better")
    os.utime(runs[0].checkpoint("best"), (2e9, 2e9))
    runs[0].finished.touch()
    write_answer(folder)
    assert folder.best.checkpoint("best").read_text() == "better"
    assert {path.name for path in folder.best.path.iterdir()} == {
        *("checkpoints", "config.yaml", "evaluation.json", "finished.json")
    }
    folder.write_rows([rows[0], replace(rows[1], best=24.0)])
    write_answer(folder)
    assert folder.best.checkpoint("best").read_text() == rows[1].trial
    assert {path.name for path in folder.best.path.iterdir()} == {"checkpoints", "config.yaml"}
    assert not list(folder.path.glob(".*"))


def test_only_the_same_settings_continue_a_sweep(folder: SweepFolder):
    settings = folder.read_settings()
    folder.check(settings, BASE | {"data": {"holding": "memory"}})
    with pytest.raises(ValueError, match=r"(?s)is a sweep with other settings.*lr.*0.1.*0.3"):
        folder.check(settings, BASE | {"lr": 0.3})
    spaced = SweepFolder(folder.path.rename(folder.path.with_name("my sweep")))
    with pytest.raises(ValueError, match=f"with --resume 'my sweep' --runs {folder.path.parent}, or choose"):
        spaced.check(settings, BASE | {"lr": 0.3})
    spaced.path.rename(folder.path)
    (folder.path / "config.yaml").touch()
    with pytest.raises(ValueError, match="is a run of `babble train`"):
        folder.check(settings, BASE)


def test_without_a_sweep_or_a_validation_there_is_no_answer(folder: SweepFolder, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is not a sweep"):
        write_answer(SweepFolder(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no trial has been validated yet"):
        write_answer(folder)
