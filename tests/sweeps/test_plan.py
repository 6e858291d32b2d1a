"""The plan of a sweep: what is rejected before any trial, and what follows from the space."""

from typing import Any

import pytest
from paths import ROOT

from babble.cli import build_config, read_config
from babble.sweeps.plan import SweepPlan
from babble.sweeps.ranking import COLUMNS
from babble.tune import TuneConfig, plan_training

UNITS = {"model.units": {"choice": [8]}}
TINY: dict[str, Any] = {
    "name": "sweep",
    "model": {"num_layers": 2, "units": 8},
    "unfreezing": [{"layers": [1], "epochs": 1}, {"layers": [1, 2]}],
    "stop": {"epochs": 4},
}


def _plan(space: dict[str, Any], **settings: Any) -> SweepPlan:
    config = build_config(TuneConfig, {**TINY, "space": space, **settings})
    return plan_training(config.sweep, config.training)


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {}, "space is empty"),
        ({"model.unitz": {"choice": [8]}}, {}, "no setting model.unitz"),
        ({"model.cell": {"choice": ["lstm", "abacus"]}}, {}, "rejects model.cell=abacus"),
        ({"model.num_layers": {"choice": [2, 1]}}, {}, "rejects model.num_layers=1: unfreezing: stage 2"),
        ({"model.units": {"choice": ["many"]}}, {}, "rejects model.units=many"),
        ({"optim.lr": {"uniform": [-0.1, 0.2]}}, {"search": "random"}, "rejects optim.lr=-0.1"),
        ({"seed": {"choice": [1]}}, {}, "set `seeds` instead"),
        ({"name": {"choice": ["a", "b"]}}, {}, "name is set by the sweep"),
        (UNITS, {"search": "luck"}, "search"),
        ({"optim.lr": {"uniform": [0.1, 0.2]}}, {}, "search=grid: optim.lr is a range"),
        (UNITS, {"seeds": [1, 1]}, "none twice"),
        (
            UNITS,
            {"scheduler": "asha", "asha": {"grace_epochs": 1}},
            r"asha.grace_epochs=1: the last layer is unfrozen after 1 epochs",
        ),
        (UNITS, {"scheduler": "asha", "stop": {"epochs": 2}}, "would stop no trial"),
        (UNITS, {"compute": {"threads": 2}}, "more than trial.cores=1"),
        (UNITS, {"trial": {"gpus": 1.5}}, "trial.gpus=1.5: must be a whole number"),
    ],
)
def test_what_can_not_be_swept_is_rejected_with_its_key(space: dict[str, Any], settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        _plan(space, **settings)


@pytest.mark.parametrize("key", ["weights", "frames", "stage", "best", "seconds", "trial", "state"])
def test_an_axis_is_not_named_as_a_column_of_the_table(key: str):
    assert key in COLUMNS
    with pytest.raises(ValueError, match=f"space: {key} is a column of trials.csv .*choose another name"):
        _plan({key: {"choice": {"few": {"model.units": 8}, "many": {"model.units": 9}}}})


def test_trials_are_compared_by_bits_where_all_heads_have_a_likelihood():
    space = {"model.head": {"choice": ["categorical", "mixture"]}}
    assert _plan(space).monitor == "val/bits_per_frame"
    space["model.head"]["choice"].append("regression")
    assert _plan(space, model={**TINY["model"], "inputs": "scaled"}).monitor == "val/error_levels"


def test_asha_waits_for_the_slowest_unfreezing():
    slow = [{"layers": [1], "epochs": 2}, {"layers": [1, 2]}]
    space = {"unfreeze": {"choice": {"none": {"unfreezing": []}, "slow": {"unfreezing": slow}}}}
    assert _plan(space, scheduler="asha").grace_epochs == 3
    # The last stage of 2017 unfreezes layer 3 and freezes the others; a stage that only freezes does not count.
    space["unfreeze"]["choice"]["slow"]["unfreezing"] = [{"layers": [1, 2], "epochs": 3}, {"layers": [2]}]
    assert _plan(space).grace_epochs == 1


def test_a_grid_is_trained_in_an_order_that_the_seed_shuffles():
    space = {"model.units": {"choice": [8, 12]}, "optim.lr": {"choice": [0.001, 0.01]}}
    points = _plan(space, seeds=[0, 1, 2]).points
    assert [tuple(point.values()) for point in points] == [(12, 0.001), (8, 0.001), (8, 0.01), (12, 0.01)]
    assert _plan(space, seed=1).points != points
    assert _plan(space, seeds=[0, 1, 2]).num_trials == 12
    assert _plan(space, search="random", configurations=5).num_trials == 5


def test_trials_share_numbers_of_processes_and_threads_and_the_group_of_the_sweep():
    base = _plan(UNITS, trial={"cores": 4}, compute={"devices": 2}).base
    assert base["compute"] | {"nodes": 1, "devices": 2, "threads": 2} == base["compute"]
    assert base["wandb"]["group"] == "sweep"
    assert not {"name", "runs", "seed"} & base.keys()


@pytest.mark.parametrize(
    ("name", "num_trials"), [("tune", 8), ("tune-asha", 24), ("tune-babble-rnn-2017", 3 * 2 * 2 * 3)]
)
def test_the_shipped_configs_have_plans(name: str, num_trials: int):
    config = read_config(TuneConfig, ["--config", str(ROOT / f"configs/{name}.yaml"), "--data.shards", "shards/tale"])
    assert plan_training(config.sweep, config.training).num_trials == num_trials
