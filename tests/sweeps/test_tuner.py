"""What a sweep has Ray Tune do: its scheduler, and the removal of a damaged state after a full disk."""

import json
import pickle
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from babble.cli import build_config
from babble.sweeps.tuner import _make_scheduler, _remove_damaged_state
from babble.tune import TuneConfig, plan_training

FIRST, SECOND = "2026-11-26_06-04-29", "2026-11-26_06-05-30"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder with the states of two starts."""
    for start in (FIRST, SECOND):
        (tmp_path / f"experiment_state-{start}.json").write_text(json.dumps({"trial_data": [start]}))
        (tmp_path / f"basic-variant-state-{start}.json").write_bytes(pickle.dumps({"start": start}))
    (tmp_path / "tuner.pkl").write_bytes(pickle.dumps({"a": 1}))
    return tmp_path


def _starts(folder: Path) -> set[str]:
    return {path.stem[-19:] for path in folder.glob("*-*.json")}


def test_a_whole_state_stays(state: Path):
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST, SECOND}
    _remove_damaged_state(state / "new")
    assert not (state / "new").exists()


@pytest.mark.parametrize("kind", ["experiment_state", "basic-variant-state"])
def test_an_older_state_replaces_one_that_is_cut_short_or_lacks_a_file(kind: str, state: Path):
    path = state / f"{kind}-{SECOND}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST}
    (state / f"experiment_state-{SECOND}.json").write_bytes(b"{}")
    _remove_damaged_state(state)
    assert _starts(state) == {FIRST}


def test_without_any_whole_state_the_sweep_starts_anew(state: Path, capsys: pytest.CaptureFixture[str]):
    (state / "tuner.pkl").write_bytes(b"")
    _remove_damaged_state(state)
    assert not state.exists()
    assert "every trial is trained again" in capsys.readouterr().err


def test_asha_stops_a_worse_trial_before_its_last_epoch_and_never_at_it():
    """At the last epoch there is nothing to stop: the trial would only be listed as stopped, not as finished."""
    settings = {"name": "sweep", "space": {"optim.lr": {"choice": [0.1, 0.2]}}, "stop": {"epochs": 8}}
    config = build_config(TuneConfig, settings | {"scheduler": "asha", "asha": {"factor": 2, "grace_epochs": 2}})
    scheduler = _make_scheduler(plan_training(config.sweep, config.training))
    assert scheduler is not None
    scheduler.set_search_properties("best", "min")
    better, worse = (Trial("none", stub=True) for _ in range(2))
    for trial in (better, worse):
        scheduler.on_trial_add(None, trial)

    def decide(trial: Trial, epoch: int, best: float) -> str:
        return scheduler.on_trial_result(None, trial, {"epoch": epoch, "best": best})

    for epoch in range(1, 9):
        assert decide(better, epoch, 20.0) == TrialScheduler.CONTINUE
    decisions = [decide(worse, epoch, 30.0) for epoch in range(1, 9)]
    assert [epoch for epoch, decision in enumerate(decisions, 1) if decision == TrialScheduler.STOP] == [2, 4]
