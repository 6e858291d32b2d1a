"""The sweep folder: what lies where, and the answer that it holds.

runs/NAME/
    sweep.yaml         what is varied, and how
    base.yaml          every setting of training that all trials share
    trials/            for each trial a config, a log and a run folder
    trials.csv         a row a trial: its values, its state, its best held-out figure; always up to date
    answer.txt         the table of the sweep, best first; which settings mattered
    answer.png         held-out figure against weights and against time
    best.yaml          the best configuration, ready for python -m babble.train --config
    best/              its run, ready for python -m babble.generate
    ray/               what Ray Tune needs to go on
"""

import csv
import io
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from babble.cli import flatten, to_yaml, unflatten
from babble.files import write_bytes
from babble.reporting.plots.figures import save_figure
from babble.reporting.plots.sweep import plot_sweep
from babble.run_folder import RunFolder
from babble.sweeps.space import Axis, Values, apply_values, describe, label, read_space

# What a trial can be. The last three have ended.
WAITING, RUNNING, FINISHED, STOPPED, FAILED = "waiting", "running", "finished", "stopped", "failed"
ENDED = (FINISHED, STOPPED, FAILED)
# Settings that belong to a trial, not to the configuration that best.yaml is.
OWN_SETTINGS = ("name", "runs", "recipe", "seed", "wandb.group")
# Below this many configurations nothing is said of what mattered.
MIN_CONFIGURATIONS = 4
# The values of a range are compared in so many groups, as large as each other.
RANGE_GROUPS = 4


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep, and what is read and written there.

    Attributes:
        path: the folder, runs/NAME.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """What is varied, and how."""
        return self.path / "sweep.yaml"

    @property
    def base(self) -> Path:
        """Every setting of training that all trials share."""
        return self.path / "base.yaml"

    @property
    def trials(self) -> Path:
        """The trials' run folders, with the config and the log of each beside it."""
        return self.path / "trials"

    @property
    def table(self) -> Path:
        """A row a trial."""
        return self.path / "trials.csv"

    @property
    def ray(self) -> Path:
        """What Ray Tune needs to go on."""
        return self.path / "ray"

    @property
    def best(self) -> RunFolder:
        """The best configuration's run."""
        return RunFolder(self.path / "best")

    def log(self, name: str) -> Path:
        """Return where a trial's training says what it says."""
        return self.trials / f"{name}.log"

    def read_settings(self) -> dict[str, Any]:
        """Return what is varied, and how.

        Raises:
            FileNotFoundError: no sweep is in this folder.
        """
        if not self.settings.is_file():
            raise FileNotFoundError(f"{self.path} holds no sweep: it has no sweep.yaml.")
        settings: dict[str, Any] = yaml.safe_load(self.settings.read_text())
        return settings

    def read_base(self) -> dict[str, Any]:
        """Return the settings of training that all trials share, nested."""
        base: dict[str, Any] = yaml.safe_load(self.base.read_text())
        return base

    def read_axes(self) -> tuple[Axis, ...]:
        """Return what is varied."""
        return read_space(self.read_settings()["space"], set(flatten(self.read_base())))

    def trial_settings(self, values: Values, seed: int, name: str) -> dict[str, Any]:
        """Return the whole config of a trial, nested."""
        own = {"seed": seed, "name": name, "runs": str(self.trials)}
        return unflatten(flatten(self.read_base()) | apply_values(self.read_axes(), values) | own)

    def write_config(self, name: str, values: Values, seed: int) -> Path:
        """Write a trial's config and return where; it is what `python -m babble.train --config` takes."""
        path = self.trials / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, to_yaml(self.trial_settings(values, seed, name)))
        return path

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write trials.csv anew."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.table, text.getvalue().encode())

    def read_rows(self) -> list[dict[str, str]]:
        """Return the rows of trials.csv; none where no trial has begun."""
        if not self.table.is_file():
            return []
        with self.table.open(newline="") as file:
            return list(csv.DictReader(file))


def trial_name(trial_id: str, values: Values, seed: int) -> str:
    """Return a trial's name: Tune's id for it, then its values and random seed."""
    return f"{trial_id}-{label(values)}-seed-{seed}"


@dataclass(frozen=True)
class Configuration:
    """One combination of values, and its trials: one a random seed.

    Attributes:
        values: of each axis.
        rows: of trials.csv.
    """

    values: Values
    rows: tuple[dict[str, Any], ...]

    @property
    def figures(self) -> list[float]:
        """The best held-out figure of each trial that has one."""
        return [float(row["best"]) for row in self.rows if row["best"] not in ("", None)]

    @property
    def mean(self) -> float:
        """Their mean; infinity where there is none."""
        return statistics.mean(self.figures) if self.figures else float("inf")

    @property
    def finished(self) -> "Configuration":
        """The same with its finished trials alone: those that heard all that they were to hear."""
        return Configuration(self.values, tuple(row for row in self.rows if row["state"] == FINISHED))

    @property
    def has_ended(self) -> bool:
        """Whether no trial of it is still to come or at work."""
        return all(row["state"] in ENDED for row in self.rows)

    @property
    def best_row(self) -> dict[str, Any]:
        """The row of its best trial."""
        return min(self.rows, key=lambda row: float(row["best"] or "inf"))


def rank(rows: Iterable[dict[str, Any]], axes: Sequence[Axis]) -> list[Configuration]:
    """Return the configurations, the one with the lowest mean held-out figure first."""
    together: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        together.setdefault(tuple(str(row[axis.key]) for axis in axes), []).append(row)
    configurations = [
        Configuration({axis.key: mine[0][axis.key] for axis in axes}, tuple(mine)) for mine in together.values()
    ]
    return sorted(configurations, key=lambda configuration: configuration.mean)


def prune(sweep: SweepFolder, rows: Sequence[dict[str, Any]], axes: Sequence[Axis], num_kept: int, seeds: int) -> None:
    """Remove the checkpoints of configurations that have ended and are not among the best so many.

    Of those that stay, the best trial's stay. A configuration once removed never returns to the best.
    """
    ended = [c for c in rank(rows, axes) if c.has_ended and len(c.rows) == seeds]
    kept = {configuration.best_row["trial"] for configuration in ended[:num_kept]}
    for configuration in ended:
        for row in configuration.rows:
            if row["trial"] not in kept:
                shutil.rmtree(RunFolder(sweep.trials / row["trial"]).checkpoint("any").parent, ignore_errors=True)


# ---- the answer


def average_by_value(configurations: Sequence[Configuration], axis: Axis) -> dict[str, tuple[int, float]]:
    """Return for each value of an axis how many configurations have it and a figure, and the mean of their figures.

    The values of a range are taken together in `RANGE_GROUPS` groups, as low..high.
    """
    groups: dict[str, list[float]] = {}
    measured = [c for c in configurations if c.figures]
    if axis.kind == "choice":
        for value in axis.values:
            groups[str(value)] = [c.mean for c in measured if str(c.values[axis.key]) == str(value)]
    else:
        pairs = sorted((float(c.values[axis.key]), c.mean) for c in measured)
        for part in range(RANGE_GROUPS):
            group = pairs[part * len(pairs) // RANGE_GROUPS : (part + 1) * len(pairs) // RANGE_GROUPS]
            if group:
                # Groups of the same few whole numbers are one.
                together = groups.setdefault(f"{group[0][0]:.3g}..{group[-1][0]:.3g}", [])
                together += [figure for _, figure in group]
    return {value: (len(figures), statistics.mean(figures)) for value, figures in groups.items() if figures}


def weigh_settings(configurations: Sequence[Configuration], axes: Sequence[Axis]) -> dict[str, float]:
    """Return how much each axis mattered, as shares of 1, the largest first: their main effects.

    An axis's effect is the variance of the configurations' figures that the means at its values explain. Where every
    combination is there, as in a grid, effects are exact; else what one axis does may be counted to another. Empty
    below `MIN_CONFIGURATIONS` with a figure, or where all figures are equal.

    Source: R. A. Fisher: Statistical Methods for Research Workers, 1925 (analysis of variance).
    """
    figures = [c.mean for c in configurations if c.figures]
    if len(figures) < MIN_CONFIGURATIONS:
        return {}
    overall = statistics.mean(figures)
    effects = {
        axis.key: sum(count * (mean - overall) ** 2 for count, mean in average_by_value(configurations, axis).values())
        for axis in axes
    }
    total = sum(effects.values())
    shares = {key: effect / total for key, effect in effects.items() if total}
    return dict(sorted(shares.items(), key=lambda share: -share[1]))


def format_answer(configurations: Sequence[Configuration], axes: Sequence[Axis], figure: str) -> str:
    """Return the table of configurations, best first, and what mattered, as lines to read."""
    header = [*(axis.key for axis in axes), figure.removeprefix("val/"), "lowest..highest", "trials", "weights"]
    header += ["frames", "minutes"]
    lines = [header]
    for c in configurations:
        states = [row["state"] for row in c.rows]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        spread = f"{min(c.figures):.3f}..{max(c.figures):.3f}" if len(c.figures) > 1 else ""
        minutes = statistics.mean(float(row["seconds"] or 0) for row in c.rows) / 60
        frames = statistics.mean(int(row["frames"] or 0) for row in c.rows)
        mean = f"{c.mean:.3f}" if c.figures else "-"
        words = [describe({"": v}).removeprefix("=") for v in c.values.values()]
        lines.append(
            [*words, mean, spread, counts, f"{int(c.rows[0]['weights']):,}", f"{frames:,.0f}", f"{minutes:.1f}"]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    # Figures of trials that were stopped early are no match for those of the others.
    finished = [c.finished for c in configurations]
    shares = weigh_settings(finished, axes)
    if shares:
        text += ["", "What mattered, as shares of the whole, and the mean at each value; of finished trials:"]
        for key, share in shares.items():
            means = average_by_value(finished, next(axis for axis in axes if axis.key == key))
            text.append(f"  {key:<20} {share:4.0%}  " + "  ".join(f"{v}: {mean:.3f}" for v, (_, mean) in means.items()))
    else:
        done = sum(bool(c.figures) for c in finished)
        text += [
            "",
            f"What mattered is not said of fewer than {MIN_CONFIGURATIONS} finished configurations: {done} here.",
        ]
    failed = [row for c in configurations for row in c.rows if row["state"] == FAILED]
    text += [f"failed: {row['trial']}: {row['reason']}" for row in failed]
    return "\n".join(text)


def write_answer(sweep: SweepFolder) -> str:
    """Write what the sweep says so far: answer.txt, answer.png, best.yaml and best/; return the text.

    Raises:
        FileNotFoundError: there is no sweep, or no trial of it has a held-out figure.
    """
    settings, axes, rows = sweep.read_settings(), sweep.read_axes(), sweep.read_rows()
    configurations = rank(rows, axes)
    if not configurations or not configurations[0].figures:
        raise FileNotFoundError(f"{sweep.path}: no trial has a held-out figure yet.")
    best = configurations[0]
    row = best.best_row
    text = format_answer(configurations, axes, settings["figure"])
    flat = flatten(yaml.safe_load((sweep.trials / f"{row['trial']}.yaml").read_text()))
    for key in OWN_SETTINGS:
        flat.pop(key, None)
    head = f"# The best of {sweep.path}: {describe(best.values)}.\n# {settings['figure']} {best.mean:.4f}"
    head += f" on held-out speech, the mean of {len(best.figures)} random seeds.\n"
    write_bytes(sweep.path / "best.yaml", head.encode() + to_yaml(unflatten(flat)))
    run = RunFolder(sweep.trials / row["trial"])
    if run.checkpoint("best").is_file():
        shutil.rmtree(sweep.best.path, ignore_errors=True)
        shutil.copytree(
            run.path, sweep.best.path, ignore=shutil.ignore_patterns("wandb*", "last.ckpt", "previous.ckpt")
        )
    write_bytes(sweep.path / "answer.txt", (text + "\n").encode())
    measured = [row for row in rows if row["best"]]
    picture = plot_sweep(measured, settings["figure"].removeprefix("val/"), axes[0].key)
    save_figure(picture, sweep.path / "answer.png")
    return text


# ---- while it runs


class Board:
    """How a sweep stands: a table that is drawn again on a terminal, a line for each change in a log.

    Args:
        name: the sweep's.
        total: how many trials there will be.
        out: where it is shown.
    """

    LINES = 12
    SECONDS = 2.0

    def __init__(self, name: str, total: int, out: TextIO | None = None) -> None:
        self.name, self.total = name, total
        self.out = out or sys.stdout
        self.states: dict[str, str] = {}
        self.drawn = 0
        self.last = 0.0

    def show(self, rows: Sequence[dict[str, Any]], figure: str) -> None:
        """Show how the trials stand; no oftener than a person reads."""
        if self.out.isatty():
            if time.monotonic() - self.last >= self.SECONDS or all(row["state"] in ENDED for row in rows):
                self._draw(rows, figure)
                self.last = time.monotonic()
            return
        for row in rows:
            if self.states.get(row["trial"]) != row["state"] and row["state"] != WAITING:
                said = f"{row['trial']}: {row['state']}"
                if row["best"] not in ("", None):
                    said += (
                        f", best {figure.removeprefix('val/')} {float(row['best']):.4f} after {row['frames']:,} frames"
                    )
                reason = f" ({row['reason']})" if row["state"] == FAILED else ""
                print(f"{said}{reason}; {self.summary(rows)}", file=self.out, flush=True)
            self.states[row["trial"]] = row["state"]

    def _draw(self, rows: Sequence[dict[str, Any]], figure: str) -> None:
        order = sorted(rows, key=lambda row: (row["state"] != RUNNING, float(row["best"] or "inf")))
        lines = [f"{self.name}: {self.summary(rows)}"]
        lines.append(f"  {'state':<9}{'stage':>6}{'epoch':>7}{figure.removeprefix('val/'):>16}  trial")
        for row in [row for row in order if row["state"] != WAITING][: self.LINES]:
            best = f"{float(row['best']):.4f}" if row["best"] not in ("", None) else "-"
            lines.append(
                f"  {row['state']:<9}{row['stage'] or '-':>6}{row['epoch'] or '-':>7}{best:>16}  {row['trial']}"
            )
        columns = shutil.get_terminal_size().columns
        up = f"\x1b[{self.drawn}F\x1b[J" if self.drawn else ""
        print(up + "\n".join(line[: columns - 1] for line in lines), file=self.out, flush=True)
        self.drawn = len(lines)

    def summary(self, rows: Sequence[dict[str, Any]]) -> str:
        """Return how many trials have ended and run, the best figure so far and about how long it will take."""
        ended = [row for row in rows if row["state"] in ENDED]
        running = [row for row in rows if row["state"] == RUNNING]
        figures = [float(row["best"]) for row in rows if row["best"] not in ("", None)]
        said = f"{len(ended)} of {self.total} ended, {len(running)} running"
        if figures:
            said += f", best {min(figures):.4f}"
        if ended and running:
            each = statistics.mean(float(row["seconds"]) for row in ended)
            left = (self.total - len(ended)) * each - sum(float(row["seconds"] or 0) for row in running)
            said += f", about {max(0.0, left) / len(running) / 60:.0f} min left"
        return said
