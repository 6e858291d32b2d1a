"""A sweep whose trials share a GPU."""

from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")

from test_tune import _sweep, _words

from babble.sweeps.folder import SweepFolder

pytestmark = pytest.mark.gpu


def test_two_trials_at_once_train_on_one_gpu(shards: Path, tmp_path: Path):
    space = {"model.units": {"choice": [8, 12]}}
    settings = {"trial": {"cores": 1, "gpus": 0.5}, "compute": {"accelerator": "gpu"}}
    printed = _sweep(_words(tmp_path, shards, space, **settings))
    folder = SweepFolder(tmp_path / "sweep")
    rows = folder.read_rows()
    assert [row.state for row in rows] == ["finished", "finished"], printed
    for row in rows:
        assert "1 process, cuda" in folder.log(row.trial).read_text()
