"""The sweep folder: who is best, what stays on the disk, what is said while it runs."""

import io
from pathlib import Path
from typing import Any

import pytest

from babble.sweeps.folder import (
    Board,
    SweepFolder,
    average_by_value,
    format_answer,
    prune,
    rank,
    weigh_settings,
    write_answer,
)
from babble.sweeps.space import read_space

AXES = read_space(
    {"model.units": {"choice": [40, 160]}, "model.cell": {"choice": ["lstm", "gru"]}}, {"model.units", "model.cell"}
)


def _row(units: int, cell: str, seed: int, best: float | str, state: str = "finished") -> dict[str, Any]:
    values = {"model.units": units, "model.cell": cell, "seed": seed}
    measured = {"best": best, "stage": 1, "epoch": 2, "frames": 100, "weights": 1000, "seconds": 60.0}
    return {"trial": f"{units}-{cell}-{seed}", "state": state, **values, **measured, "retries": 0, "reason": "NaN"}


# 160 units are better than 40, an lstm a little better than a gru.
ROWS = [
    _row(units, cell, seed, 30 - units / 40 - 0.2 * (cell == "lstm") + 0.01 * seed)
    for units in (40, 160)
    for cell in ("lstm", "gru")
    for seed in (0, 1)
]


def test_configurations_are_ranked_by_their_mean_over_random_seeds():
    ranked = rank(ROWS, AXES)
    assert [(c.values["model.units"], c.values["model.cell"]) for c in ranked] == [
        (160, "lstm"),
        (160, "gru"),
        (40, "lstm"),
        (40, "gru"),
    ]
    assert ranked[0].mean == pytest.approx(25.805)
    assert ranked[0].best_row["seed"] == 0
    assert rank([*ROWS, _row(80, "gru", 0, "", "failed")], AXES)[-1].mean == float("inf")


def test_what_mattered_is_the_share_of_the_variance_that_means_explain():
    """3 levels lie between the units, 0.2 between the cells: of the variance of a grid 9 parts and 0.04."""
    ranked = rank(ROWS, AXES)
    assert weigh_settings(ranked, AXES) == pytest.approx({"model.units": 9 / 9.04, "model.cell": 0.04 / 9.04})
    means = {value: mean for value, (_, mean) in average_by_value(ranked, AXES[0]).items()}
    assert means == pytest.approx({"40": 28.905, "160": 25.905})
    assert weigh_settings(ranked[:3], AXES) == {}
    assert weigh_settings(rank([row | {"best": 30.0} for row in ROWS], AXES), AXES) == {}


def test_a_range_is_compared_in_groups():
    axes = read_space(
        {"optim.lr": {"loguniform": [1e-4, 1.0]}, "model.units": {"choice": [40, 160]}}, {"optim.lr", "model.units"}
    )
    # The best learning rate lies in the middle; the units do nothing.
    rows = [
        {**_row((40, 160)[n % 2], "lstm", 0, 30 + abs(n - 4.5 - (n > 4)) // 2), "optim.lr": 10 ** (-4 + n / 3)}
        for n in range(8)
    ]
    ranked = rank(rows, axes)
    groups = average_by_value(ranked, axes[0])
    assert [count for count, _ in groups.values()] == [2, 2, 2, 2]
    assert next(iter(groups)) == "0.0001..0.000215"
    assert list(weigh_settings(ranked, axes)) == ["optim.lr", "model.units"]
    # Of a few whole numbers many are equal: none is lost.
    equal = rank([row | {"optim.lr": 0.1} for row in rows], axes)
    assert average_by_value(equal, axes[0]) == {"0.1..0.1": (2, pytest.approx(30.5))}


def test_the_answer_has_a_line_a_configuration_best_first():
    failed = _row(40, "gru", 2, "", "failed")
    lines = format_answer(rank([*ROWS, failed], AXES), AXES, "val/bits_per_frame").splitlines()
    assert lines[0].split()[:3] == ["model.units", "model.cell", "bits_per_frame"]
    assert lines[1].split()[:4] == ["160", "lstm", "25.805", "25.800..25.810"]
    assert "2 finished, 1 failed" in lines[4]
    assert lines[-1] == "failed: 40-gru-2: NaN"


def test_what_mattered_is_said_of_finished_trials_alone():
    stopped = [_row(160, cell, seed, 90.0, "stopped") for cell in ("lstm", "gru") for seed in (2, 3)]
    with_stopped, without = (format_answer(rank(rows, AXES), AXES, "val/bits") for rows in (ROWS + stopped, ROWS))
    assert with_stopped.splitlines()[-3:] == without.splitlines()[-3:]
    assert "40: 28.905  160: 25.905" in without
    half = [row | {"state": "stopped"} if row["model.units"] == 40 else row for row in ROWS]
    assert "fewer than 4 finished configurations: 2 here" in format_answer(rank(half, AXES), AXES, "val/bits")


def test_checkpoints_of_all_but_the_best_go(tmp_path: Path):
    sweep = SweepFolder(tmp_path)
    for row in ROWS:
        (sweep.trials / row["trial"] / "checkpoints").mkdir(parents=True)
    # One of the best two configurations has a trial at work, so only three can be compared.
    rows = [row | {"state": "running"} if row["trial"] == "160-gru-1" else row for row in ROWS]
    prune(sweep, rows, AXES, num_kept=1, seeds=2)
    kept = {path.parent.name for path in sweep.trials.glob("*/checkpoints")}
    assert kept == {"160-lstm-0", "160-gru-0", "160-gru-1"}
    prune(sweep, ROWS, AXES, num_kept=1, seeds=2)
    assert {path.parent.name for path in sweep.trials.glob("*/checkpoints")} == {"160-lstm-0"}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_a_change_and_a_terminal_a_table():
    log, terminal = io.StringIO(), _Terminal()
    in_log, on_terminal = Board("units", 8, log), Board("units", 8, terminal)
    running = [_row(40, "lstm", 0, 28.0, "running"), _row(40, "gru", 0, "", "waiting")]
    for rows in (running, running, ROWS[:2]):
        in_log.show(rows, "val/bits_per_frame")
        on_terminal.last = 0.0
        on_terminal.show(rows, "val/bits_per_frame")
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "40-lstm-0: running, best bits_per_frame 28.0000 after 100 frames; 0 of 8 ended, 1 running, best 28.0000"
    )
    assert terminal.getvalue().count("\x1b[") == 4  # Up and clear, twice.
    assert "40-gru" not in terminal.getvalue().split("\x1b[")[0]


def test_without_a_sweep_there_is_no_answer(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        write_answer(SweepFolder(tmp_path / "none"))
