"""Experiments: each training runs once, its row holds settings and metrics, and a failure does not stop the others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import ROOT

from babble.cli import CommandError, read_config
from babble.codec.frames import get_mode
from babble.data.shards import Manifest, Segment, write_manifest, write_shards
from babble.files import append_json_line, write_json
from babble.run_folder import RunFolder
from jobs.experiments import Experiment, ExperimentsConfig, make_row, read_rows, run_experiments

TINY = {
    "data": {"reading": "streams", "window_frames": 16, "batch_size": 4},
    "model": {"num_layers": 2, "units": 8},
    "stop": {"steps": 3},
    "samples": {"every_epochs": 0, "prompts": 1, "frames": 5},
    "compute": {"threads": 1},
    "wandb": {"mode": "off"},
}
EXPERIMENTS = [
    {"table": "cell", "name": "unknown cell", "settings": {"model.cell": "abacus"}},
    {
        "table": "stages",
        "name": "bypassed",
        "settings": {
            "unfreezing": [{"layers": [1], "epochs": 1}, {"layers": [1, 2]}],
            "before_unfreezing": "bypassed",
            "data.windows_per_epoch": 4,
        },
        "seeds": [3],
    },
]


def make_config(folder: Path, shards: Path, *words: str) -> ExperimentsConfig:
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "all.yaml").write_text(yaml.safe_dump({"base": str(folder / "base.yaml"), "experiments": EXPERIMENTS}))
    paths = ("--shards", str(shards), "--runs", str(folder / "runs"), "--csv", str(folder / "rows.csv"))
    return read_config(ExperimentsConfig, ["--config", str(folder / "all.yaml"), *paths, *words])


def make_label_shards(folder: Path) -> Path:
    """Write 20 s of random frames per split in mode 700C, which has label fields."""
    mode, random = get_mode("700C"), np.random.default_rng(0)
    folder.mkdir()
    shards, recordings = [], []
    for split in ("train", "validation"):
        frames = random.integers(0, mode.levels, (500, mode.num_fields)).astype(mode.dtype)
        shards += write_shards(folder, split, [Segment(split, 0, frames)], mode, 64)
        recordings.append({"name": split, "split": split, "first_frame": 0, "frames": 500})
    write_manifest(folder, Manifest(mode, {}, recordings, shards, []))
    return folder


def test_each_experiment_gets_one_row_and_a_failure_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, make_label_shards(tmp_path / "labels"))
    with pytest.raises(CommandError, match="1 of 2 failed"):
        run_experiments(config)
    assert "abacus" in capsys.readouterr().out
    (row,) = read_rows(config.csv)
    assert (row["name"], row["seed"], row["monitor"]) == ("bypassed", "3", "val/bits_per_frame")
    assert row["frames"] == str(3 * 4 * 16)
    assert 20 < float(row["held_out"]) < 40
    assert row["error_levels"] == "", "the levels of label fields have no distance"
    assert "before_unfreezing=bypassed" in row["settings"]
    assert '"layers": [1, 2]' in row["settings"]

    run_experiments(replace(config, only=("stages",)))
    assert capsys.readouterr().out == f"0 to run; 1 rows in {config.csv} already\n"
    assert read_rows(config.csv) == [row]


def test_a_row_has_the_last_error_and_the_median_speed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(run.finished, {"frames": 10, "weights": 7, "monitor": "val/bits_per_frame", "best": 41.5})
    for step, speed in enumerate((100.0, 900.0, 300.0)):
        append_json_line(run.metrics, {"step": step, "train/frames_per_second": speed})
        append_json_line(run.metrics, {"step": step, "val/error_levels": 5.0 - step})
    row = make_row(run, Experiment("cell", "gru", {"model.cell": "gru", "optim.lr": 0.1}), 2)
    # The rows of all experiments are in one file.
    assert ",".join(row) == (ROOT / "docs" / "experiments.csv").read_text().splitlines()[0]
    assert row["settings"] == "model.cell=gru optim.lr=0.1"
    assert (row["held_out"], row["error_levels"], row["frames_per_second"]) == ("41.5000", "3.0000", 300)


def test_what_can_not_be_run_is_rejected(tmp_path: Path) -> None:
    config = replace(make_config(tmp_path, tmp_path), csv=Path("/proc/no/rows.csv"))
    with pytest.raises(OSError, match=r"rows\.csv can't be written .*name another place with --csv"):
        run_experiments(config)
    assert not config.runs.exists()
    with pytest.raises(ValueError, match=r"--only heads: must be one of the config's tables, cell, stages"):
        make_config(tmp_path, tmp_path, "--only", "heads")
    with pytest.raises(ValueError, match="no experiments are configured"):
        ExperimentsConfig(tmp_path)
    with pytest.raises(ValueError, match="--shards is missing"):
        ExperimentsConfig()
