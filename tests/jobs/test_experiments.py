"""Experiments: each runs once, its row says what it was, and a failure stops nobody else."""

from pathlib import Path

import pytest
import yaml

from babble.cli import CommandError, read_config
from jobs.experiments import ExperimentsConfig, read_rows, run_experiments

TINY = {
    "data": {"reading": "streams", "window_frames": 16, "batch_size": 4},
    "model": {"num_layers": 2, "units": 8},
    "stop": {"steps": 3},
    "samples": {"every_epochs": 0, "seeds": 1, "frames": 5},
    "compute": {"threads": 1},
    "wandb": {"mode": "off"},
}


def _config(folder: Path, shards: Path, experiments: list[dict[str, object]], *words: str) -> ExperimentsConfig:
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "all.yaml").write_text(yaml.safe_dump({"base": str(folder / "base.yaml"), "experiments": experiments}))
    places = ("--runs", str(folder / "runs"), "--csv", str(folder / "rows.csv"))
    return read_config(
        ExperimentsConfig, ["--config", str(folder / "all.yaml"), "--shards", str(shards), *places, *words]
    )


def test_rows_are_appended_once_and_a_failure_stops_nobody_else(speech_shards: Path, tmp_path: Path):
    stages = [{"layers": [1], "epochs": 1}, {"layers": [1, 2]}]
    experiments: list[dict[str, object]] = [
        {"table": "cell", "name": "of a kind that there is not", "settings": {"model.cell": "abacus"}},
        {
            "table": "stages",
            "name": "bypassed",
            "settings": {"unfreezing": stages, "before_unfreezing": "bypassed", "data.windows_per_epoch": 4},
            "seeds": [3, 4],
        },
    ]
    config, said = _config(tmp_path, speech_shards, experiments), []
    with pytest.raises(CommandError, match="1 of 3 failed"):
        run_experiments(config, said.append)
    assert any("abacus" in line for line in said)
    rows = read_rows(config.csv)
    assert {(row["name"], row["seed"]) for row in rows} == {("bypassed", "3"), ("bypassed", "4")}
    for row in rows:
        assert row["frames"] == str(3 * 4 * 16)
        assert 40 < float(row["held_out"]) < 60
        assert "before_unfreezing=skipped" in row["settings"]
        assert '"layers": [1, 2]' in row["settings"]
    again: list[str] = []
    with pytest.raises(CommandError, match="1 of 1 failed"):
        run_experiments(config, again.append)
    assert read_rows(config.csv) == rows


def test_tables_that_there_are_not_are_refused(speech_shards: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no experiments of heads"):
        _config(tmp_path, speech_shards, [{"table": "head", "name": "x"}], "--only", "heads")
