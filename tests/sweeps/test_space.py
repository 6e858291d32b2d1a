"""Search spaces: which are rejected, and which settings values stand for."""

from typing import Any

import pytest

from babble.sweeps.space import apply_values, every_combination, label, one_at_a_time, read_space

KNOWN = {"model.units", "model.num_layers", "optim.lr", "unfreezing"}


def test_a_grid_has_all_combinations_and_a_choice_can_change_several_settings():
    two, three = {"model.num_layers": 2}, {"model.num_layers": 3, "unfreezing": []}
    axes = read_space({"model.units": {"choice": [40, 160]}, "depth": {"choice": {"two": two, "three": three}}}, KNOWN)
    every = list(every_combination(axes))
    assert every == [{"model.units": u, "depth": d} for u in (40, 160) for d in ("two", "three")]
    assert apply_values(axes, every[1]) == {"model.units": 40, "model.num_layers": 3, "unfreezing": []}
    assert label(every[1]) == "units-40-depth-three"


def test_one_at_a_time_has_every_choice_and_both_ends_of_a_range():
    axes = read_space({"model.units": {"choice": [1, 2, 3]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}, KNOWN)
    some = list(one_at_a_time(axes))
    assert {values["model.units"] for values in some} == {1, 2, 3}
    assert {values["optim.lr"] for values in some} == {1e-4, 1e-2}
    with pytest.raises(ValueError, match=r"search=grid: optim.lr is a range \(loguniform\)"):
        list(every_combination(axes))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        ({"model.unitz": {"choice": [1]}}, "no setting model.unitz"),
        ({"depth": {"choice": {"two": {"model.layers": 2}}}}, "no setting model.layers"),
        ({"depth": {"choice": {"two": {}}}}, r"depth: two={} must be settings"),
        ({"model.units": {"choice": []}}, "not empty"),
        ({"model.units": {"choices": [1]}}, r"model.units: .* must be one of {choice: ...}"),
        ({"model.units": 40}, "model.units: 40 must be one of"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "two numbers above 0"),
        ({"optim.lr": {"uniform": [1, 1]}}, r"must be \[from, to\]"),
        ({"model.units": {"randint": [1, 2.5]}}, "two whole numbers"),
        (
            {"model.num_layers": {"choice": [1]}, "depth": {"choice": {"two": {"model.num_layers": 2}}}},
            "model.num_layers is varied by two axes",
        ),
    ],
)
def test_an_invalid_space_is_rejected_with_its_key(space: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read_space(space, KNOWN)
