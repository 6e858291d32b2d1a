"""Search spaces: what is refused, by name, and what values make of a training's settings."""

from typing import Any

import pytest

from babble.sweeps.space import apply_values, check_space, every_combination, label, one_at_a_time, read_space

KNOWN = {"model.units", "model.num_layers", "optim.lr", "unfreezing"}


def test_a_grid_has_all_combinations_and_several_settings_change_at_once():
    two, three = {"model.num_layers": 2}, {"model.num_layers": 3, "unfreezing": []}
    axes = read_space({"model.units": {"choice": [40, 160]}, "depth": {"choice": {"two": two, "three": three}}}, KNOWN)
    every = list(every_combination(axes))
    assert every == [{"model.units": u, "depth": d} for u in (40, 160) for d in ("two", "three")]
    assert apply_values(axes, every[1]) == {"model.units": 40, "model.num_layers": 3, "unfreezing": []}
    assert label(every[1]) == "units-40-depth-three"


def test_where_not_all_is_tried_every_value_is():
    axes = read_space({"model.units": {"choice": [1, 2, 3]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}, KNOWN)
    some = list(one_at_a_time(axes))
    assert {values["model.units"] for values in some} == {1, 2, 3}
    assert {values["optim.lr"] for values in some} == {1e-4, 1e-2}
    with pytest.raises(ValueError, match=r"search=grid: optim.lr is a range \(loguniform\)"):
        list(every_combination(axes))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the space is empty"),
        ({"model.unitz": {"choice": [1]}}, "training has no setting model.unitz"),
        ({"depth": {"choice": {"two": {"model.layers": 2}}}}, "training has no setting model.layers"),
        ({"depth": {"choice": {"two": {}}}}, "depth: two has to name settings"),
        ({"model.units": {"choice": []}}, "at least one"),
        ({"model.units": {"choices": [1]}}, r"model.units: .* is none of {choice: ...}"),
        ({"model.units": 40}, "model.units: 40 is none of"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "two numbers above 0"),
        ({"optim.lr": {"uniform": [1, 1]}}, r"takes \[from, to\]"),
        ({"model.units": {"randint": [1, 2.5]}}, "two whole numbers"),
        (
            {"model.num_layers": {"choice": [1]}, "depth": {"choice": {"two": {"model.num_layers": 2}}}},
            "model.num_layers is varied twice",
        ),
    ],
)
def test_what_is_no_space_is_refused_by_name(space: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read_space(space, KNOWN)


@pytest.mark.parametrize("is_grid", [True, False])
def test_a_value_that_training_would_refuse_is_named(is_grid: bool):
    def build(settings: dict[str, Any]) -> None:
        if settings["model.units"] == 0:
            raise ValueError("no units")

    axes = read_space({"model.num_layers": {"choice": [1, 2]}, "model.units": {"choice": [1, 0]}}, KNOWN)
    with pytest.raises(ValueError, match=r"refuse model.num_layers=1, model.units=0: no units"):
        check_space(axes, is_grid, build)
