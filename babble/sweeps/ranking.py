"""Rank the configurations of a sweep and estimate which settings matter. Reads and writes no files.

1. `TrialRow`: one trial, a row of trials.csv.
2. `rank`: trials that differ only in their seed form a configuration; lowest mean metric first.
3. `explain_variance`: the share of each setting in what the configurations differ by.
4. `format_answer`: the table and the shares as text.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from babble.sweeps.space import Axis, Values, format_value

State = Literal["waiting", "running", "finished", "stopped", "failed"]
# "finished" trials were trained to their end, "stopped" ones were ended by the scheduler.
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
# With fewer configurations, no variance is attributed to settings.
MIN_CONFIGURATIONS = 4
# The values of a range are compared in this many groups of equal size.
RANGE_GROUPS = 4


@dataclass(frozen=True)
class TrialRow:
    """One trial and its state: a row of trials.csv.

    Attributes:
        trial: name of the trial and of its run folder.
        state: "waiting", "running", "finished", "stopped" or "failed".
        values: the value of each axis.
        seed: random seed of the training.
        best: lowest monitor value so far; None before the first validation.
        stage: unfreezing stage at the last validation, counted from 1.
        epoch: epochs trained at the last validation.
        frames: frames trained on until then, over all processes.
        weights: number of weights of the network.
        seconds: wall-clock time until the last validation, over all starts.
        retries: how often it crashed and was continued.
        reason: why it failed.
    """

    trial: str
    state: State
    values: Values
    seed: int
    best: float | None = None
    stage: int | None = None
    epoch: int | None = None
    frames: int = 0
    weights: int = 0
    seconds: float = 0.0
    retries: int = 0
    reason: str = ""

    def to_columns(self) -> dict[str, Any]:
        """Return the row by column: values of axes as text, each in the column of its key."""
        columns: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            columns |= {key: str(v) for key, v in value.items()} if f.name == "values" else {f.name: value}
        return columns


# Columns of trials.csv besides one per axis.
COLUMNS = tuple(f.name for f in fields(TrialRow) if f.name != "values")


@dataclass(frozen=True)
class Configuration:
    """One combination of values and its trials, one per seed.

    Attributes:
        values: the value of each axis.
        rows: its trials.
    """

    values: Values
    rows: tuple[TrialRow, ...]

    @property
    def results(self) -> list[float]:
        """The lowest monitor value of each trial that was validated at least once."""
        return [row.best for row in self.rows if row.best is not None]

    @property
    def mean(self) -> float:
        """Mean of `results`; infinity without any."""
        return statistics.mean(self.results) if self.results else float("inf")

    @property
    def has_ended(self) -> bool:
        """Whether none of its trials is waiting or running."""
        return all(row.state in ENDED for row in self.rows)

    @property
    def best_row(self) -> TrialRow:
        """The trial with the lowest monitor value."""
        return min(self.rows, key=lambda row: float("inf") if row.best is None else row.best)

    def keep_finished(self) -> "Configuration":
        """Return the same configuration with its finished trials only."""
        return Configuration(self.values, tuple(row for row in self.rows if row.state == "finished"))


def rank(rows: Iterable[TrialRow], axes: Sequence[Axis]) -> list[Configuration]:
    """Return the configurations, lowest mean monitor value first."""
    groups: dict[tuple[str, ...], list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.values[axis.key]) for axis in axes), []).append(row)
    configurations = [Configuration(group[0].values, tuple(group)) for group in groups.values()]
    return sorted(configurations, key=lambda configuration: configuration.mean)


def average_by_value(configurations: Sequence[Configuration], axis: Axis) -> dict[str, tuple[int, float]]:
    """Return, for each value of an axis, how many measured configurations have it and the mean of their results.

    The values of a range are combined into `RANGE_GROUPS` groups of equal size, named low..high.
    """
    groups: dict[str, list[float]] = {}
    measured = [c for c in configurations if c.results]
    if axis.kind == "choice":
        for value in axis.values:
            groups[str(value)] = [c.mean for c in measured if str(c.values[axis.key]) == str(value)]
    else:
        pairs = sorted((float(c.values[axis.key]), c.mean) for c in measured)
        for number in range(RANGE_GROUPS):
            group = pairs[number * len(pairs) // RANGE_GROUPS : (number + 1) * len(pairs) // RANGE_GROUPS]
            if group:
                # Whole numbers repeat: groups with the same ends are one group.
                merged = groups.setdefault(f"{group[0][0]:.3g}..{group[-1][0]:.3g}", [])
                merged += [mean for _, mean in group]
    return {value: (len(means), statistics.mean(means)) for value, means in groups.items() if means}


def explain_variance(configurations: Sequence[Configuration], axes: Sequence[Axis]) -> dict[str, float]:
    """Return the share of each axis in the variance that the axes' main effects explain, largest first.

    The main effect of an axis is the variance of the mean results at its values. Main effects are exact where every
    combination was trained, as in a grid; otherwise part of one axis's effect can be attributed to another.

    Returns:
        shares by axis, summing to 1; empty with fewer than `MIN_CONFIGURATIONS` measured configurations, or where all
        results are equal.

    Source: R. A. Fisher: Statistical Methods for Research Workers, 1925 (analysis of variance).
    """
    means = [c.mean for c in configurations if c.results]
    if len(means) < MIN_CONFIGURATIONS:
        return {}
    overall = statistics.mean(means)
    effects = {
        axis.key: sum(count * (mean - overall) ** 2 for count, mean in average_by_value(configurations, axis).values())
        for axis in axes
    }
    total = sum(effects.values())
    shares = {key: effect / total for key, effect in effects.items() if total}
    return dict(sorted(shares.items(), key=lambda share: -share[1]))


def format_answer(configurations: Sequence[Configuration], axes: Sequence[Axis], monitor: str) -> str:
    """Return the table of configurations, best first, the variance explained per setting, and the failed trials."""
    failed = [row for c in configurations for row in c.rows if row.state == "failed"]
    return "\n".join(
        [
            *_format_table(configurations, axes, monitor),
            "",
            *_format_variance([c.keep_finished() for c in configurations], axes),
            *(f"failed: {row.trial}: {row.reason}" for row in failed),
        ]
    )


def _format_table(configurations: Sequence[Configuration], axes: Sequence[Axis], monitor: str) -> list[str]:
    measured = (monitor.removeprefix("val/"), "lowest..highest", "trials", "weights", "frames", "minutes")
    lines = [[*(axis.key for axis in axes), *measured]]
    for c in configurations:
        states = [row.state for row in c.rows]
        lines.append(
            [
                *(format_value(value) for value in c.values.values()),
                f"{c.mean:.3f}" if c.results else "-",
                f"{min(c.results):.3f}..{max(c.results):.3f}" if len(c.results) > 1 else "",
                ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
                f"{c.rows[0].weights:,}",
                f"{statistics.mean(row.frames for row in c.rows):,.0f}",
                f"{statistics.mean(row.seconds for row in c.rows) / 60:.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _format_variance(finished: Sequence[Configuration], axes: Sequence[Axis]) -> list[str]:
    # Trials that were stopped early are left out: their results don't compare with those of finished ones.
    shares = explain_variance(finished, axes)
    if not shares:
        count = sum(bool(c.results) for c in finished)
        return [f"Variance explained per setting: needs {MIN_CONFIGURATIONS} finished configurations that differ, "
                f"{count} finished so far."]  # fmt: skip
    lines = ["Variance explained per setting, and the mean result at each value (finished trials only):"]
    by_key = {axis.key: axis for axis in axes}
    for key, share in shares.items():
        means = average_by_value(finished, by_key[key])
        lines.append(f"  {key:<20} {share:4.0%}  " + "  ".join(f"{v}: {mean:.3f}" for v, (_, mean) in means.items()))
    return lines
