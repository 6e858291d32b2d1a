"""Ranking of configurations, variance explained per setting, and the table."""

from dataclasses import replace

import pytest

from babble.sweeps.ranking import TrialRow, average_by_value, explain_variance, format_answer, rank
from babble.sweeps.space import read_space

AXES = read_space(
    {"model.units": {"choice": [40, 160]}, "model.cell": {"choice": ["lstm", "gru"]}}, {"model.units", "model.cell"}
)


def _row(units: int, cell: str, seed: int, best: float | None) -> TrialRow:
    return TrialRow(
        trial=f"{units}-{cell}-{seed}",
        state="finished" if best is not None else "failed",
        values={"model.units": units, "model.cell": cell},
        seed=seed,
        best=best,
        frames=100,
        weights=1000,
        seconds=60.0,
        reason="" if best is not None else "NaN",
    )


# 160 units are better than 40, lstm is slightly better than gru.
ROWS = [
    _row(units, cell, seed, 30 - units / 40 - 0.2 * (cell == "lstm") + 0.01 * seed)
    for units in (40, 160)
    for cell in ("lstm", "gru")
    for seed in (0, 1)
]


def test_configurations_are_ranked_by_their_mean_over_seeds():
    ranked = rank(ROWS, AXES)
    assert [tuple(c.values.values()) for c in ranked] == [(160, "lstm"), (160, "gru"), (40, "lstm"), (40, "gru")]
    assert ranked[0].mean == pytest.approx(25.805)
    assert ranked[0].best_row.seed == 0
    assert rank([*ROWS, _row(80, "gru", 0, None)], AXES)[-1].mean == float("inf")


def test_variance_explained_is_that_of_the_means_at_each_value():
    """Means differ by 3 bits between the units and by 0.2 between the cells: variances in the ratio 9 to 0.04."""
    ranked = rank(ROWS, AXES)
    assert explain_variance(ranked, AXES) == pytest.approx({"model.units": 9 / 9.04, "model.cell": 0.04 / 9.04})
    means = {value: mean for value, (_, mean) in average_by_value(ranked, AXES[0]).items()}
    assert means == pytest.approx({"40": 28.905, "160": 25.905})
    assert explain_variance(ranked[:3], AXES) == {}
    assert explain_variance(rank([replace(row, best=30.0) for row in ROWS], AXES), AXES) == {}


def test_the_values_of_a_range_are_compared_in_groups():
    space = {"optim.lr": {"loguniform": [1e-4, 1.0]}, "model.units": {"choice": [40, 160]}}
    axes = read_space(space, set(space))
    # The best learning rate is in the middle; the number of units has no effect.
    rows = [
        replace(
            _row(0, "", 0, 30 + abs(n - 4.5 - (n > 4)) // 2),
            values={"optim.lr": 10 ** (-4 + n / 3), "model.units": (40, 160)[n % 2]},
        )
        for n in range(8)
    ]
    ranked = rank(rows, axes)
    groups = average_by_value(ranked, axes[0])
    assert [count for count, _ in groups.values()] == [2, 2, 2, 2]
    assert next(iter(groups)) == "0.0001..0.000215"
    assert list(explain_variance(ranked, axes)) == ["optim.lr", "model.units"]
    # Groups with the same ends are merged, and no configuration is lost.
    equal = rank([replace(row, values=row.values | {"optim.lr": 0.1}) for row in rows], axes)
    assert average_by_value(equal, axes[0]) == {"0.1..0.1": (2, pytest.approx(30.5))}


def test_the_answer_has_one_line_per_configuration_best_first():
    lines = format_answer(rank([*ROWS, _row(40, "gru", 2, None)], AXES), AXES, "val/bits_per_frame").splitlines()
    assert lines[0].split()[:3] == ["model.units", "model.cell", "bits_per_frame"]
    assert lines[1].split()[:4] == ["160", "lstm", "25.805", "25.800..25.810"]
    assert "2 finished, 1 failed" in lines[4]
    assert lines[-1] == "failed: 40-gru-2: NaN"


def test_variance_is_explained_from_finished_trials_only():
    stopped = [replace(_row(160, cell, seed, 90.0), state="stopped") for cell in ("lstm", "gru") for seed in (2, 3)]
    with_stopped, without = (format_answer(rank(rows, AXES), AXES, "val/bits") for rows in (ROWS + stopped, ROWS))
    assert with_stopped.splitlines()[-3:] == without.splitlines()[-3:]
    assert "40: 28.905  160: 25.905" in without
    half = [replace(row, state="stopped") if row.values["model.units"] == 40 else row for row in ROWS]
    assert "needs 4 finished configurations that differ, 2 finished so far" in format_answer(
        rank(half, AXES), AXES, "val/bits"
    )
