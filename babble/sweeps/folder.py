"""The sweep folder: where its files are, and how they are read and written.

runs/NAME/
    sweep.yaml         the space, the search and the other settings of the sweep
    base.yaml          the settings of `babble train` that all trials share
    trials/            for each trial a config, a log and a run folder
    trials.csv         one row per trial with its values, state and best result; always up to date
    answer.txt         the table of configurations, best first, and the variance explained per setting
    answer.png         results against number of weights and against time
    best.yaml          the best configuration, for babble train --config
    best/              its run, for babble generate
    ray/               the state of Ray Tune, for --resume
"""

import csv
import io
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from babble.cli import describe_changes, flatten, to_yaml, unflatten
from babble.files import lock, replacing, temporary_path, write_bytes
from babble.run_folder import RunFolder
from babble.sweeps.ranking import ENDED, State, TrialRow, format_answer, rank
from babble.sweeps.space import Axis, Values, apply_values, describe, label, read_space

# Settings of a trial that are left out of best.yaml.
TRIAL_SETTINGS = ("name", "runs", "recipe", "seed", "wandb.group")


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep, and reading and writing its files.

    Attributes:
        path: the folder, runs/NAME.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """The settings of the sweep."""
        return self.path / "sweep.yaml"

    @property
    def base(self) -> Path:
        """The settings of `babble train` that all trials share."""
        return self.path / "base.yaml"

    @property
    def trials(self) -> Path:
        """The trials' run folders, next to each its config and log."""
        return self.path / "trials"

    @property
    def table(self) -> Path:
        """One row per trial."""
        return self.path / "trials.csv"

    @property
    def answer(self) -> Path:
        """The table of configurations as text."""
        return self.path / "answer.txt"

    @property
    def ray(self) -> Path:
        """The state of Ray Tune."""
        return self.path / "ray"

    @property
    def best(self) -> RunFolder:
        """A copy of the best trial's run."""
        return RunFolder(self.path / "best")

    @property
    def resume_flags(self) -> str:
        """The flags of `babble tune` that continue the sweep, as typed in a shell."""
        return shlex.join(["--resume", self.path.name, "--runs", str(self.path.parent)])

    def log(self, name: str) -> Path:
        """Return the path of a trial's console output."""
        return self.trials / f"{name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            FileInUse: another sweep is running in it.
        """
        with lock(self.path / ".lock", f"{self.path} is in use by another sweep: wait for it or stop it."):
            yield

    def read_settings(self) -> dict[str, Any]:
        """Return the settings of the sweep.

        Raises:
            FileNotFoundError: there is no sweep in this folder.
        """
        if not self.settings.is_file():
            raise FileNotFoundError(f"{self.path} is not a sweep: it has no sweep.yaml.")
        settings: dict[str, Any] = yaml.safe_load(self.settings.read_text(encoding="utf-8"))
        return settings

    def read_base(self) -> dict[str, Any]:
        """Return the settings of `babble train` that all trials share, nested."""
        base: dict[str, Any] = yaml.safe_load(self.base.read_text(encoding="utf-8"))
        return base

    def read_axes(self) -> tuple[Axis, ...]:
        """Return the axes of the space."""
        return read_space(self.read_settings()["space"], flatten(self.read_base()))

    def check(self, settings: dict[str, Any], base: dict[str, Any]) -> None:
        """Raise if the folder holds a run, or a sweep with other settings.

        Args:
            settings: of the sweep, as for sweep.yaml.
            base: of its trials, as for base.yaml.

        Raises:
            ValueError: the message names each setting with both values.
        """
        if RunFolder(self.path).config.is_file():
            raise ValueError(f"{self.path} is a run of `babble train`: choose another --name for the sweep.")
        if not self.settings.is_file():
            return
        before = self.read_base()
        # `claim` can have changed it.
        before["data"]["holding"] = base["data"]["holding"]
        changed = describe_changes(self.read_settings(), settings) + describe_changes(before, base)
        if changed:
            raise ValueError(
                f"{self.path} is a sweep with other settings, so it is not continued:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\n"
                f"Continue it with {self.resume_flags}, or choose another --name."
            )

    def claim(self, settings: dict[str, Any], base: dict[str, Any]) -> None:
        """Write the settings of a new sweep; arguments as for `check`."""
        self.trials.mkdir(parents=True, exist_ok=True)
        write_bytes(self.base, to_yaml(base))
        write_bytes(self.settings, to_yaml(settings))

    def trial_settings(self, values: Values, seed: int, name: str) -> dict[str, Any]:
        """Return all settings of a trial's training, nested."""
        own = {"seed": seed, "name": name, "runs": str(self.trials)}
        return unflatten(flatten(self.read_base()) | apply_values(self.read_axes(), values) | own)

    def write_config(self, name: str, values: Values, seed: int) -> Path:
        """Write a trial's config, for `babble train --config`; return its path."""
        path = self.trials / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, to_yaml(self.trial_settings(values, seed, name)))
        return path

    def write_rows(self, rows: Sequence[TrialRow]) -> None:
        """Write trials.csv."""
        lines = [row.to_columns() for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_bytes(self.table, text.getvalue().encode())

    def read_rows(self) -> list[TrialRow]:
        """Return the rows of trials.csv; none before the first trial."""
        if not self.table.is_file():
            return []
        axes = self.read_axes()
        with self.table.open(newline="") as file:
            return [_from_columns(columns, axes) for columns in csv.DictReader(file)]

    def count_ended(self) -> int:
        """Return how many trials have ended."""
        return sum(row.state in ENDED for row in self.read_rows())


def _from_columns(columns: dict[str, str], axes: Sequence[Axis]) -> TrialRow:
    def number(key: str) -> int | None:
        return int(columns[key]) if columns[key] else None

    return TrialRow(
        trial=columns["trial"],
        state=cast(State, columns["state"]),
        values={axis.key: axis.parse(columns[axis.key]) for axis in axes},
        seed=int(columns["seed"]),
        best=float(columns["best"]) if columns["best"] else None,
        stage=number("stage"),
        epoch=number("epoch"),
        frames=int(columns["frames"]),
        weights=int(columns["weights"]),
        seconds=float(columns["seconds"]),
        retries=int(columns["retries"]),
        reason=columns["reason"],
    )


def trial_name(trial_id: str, values: Values, seed: int) -> str:
    """Return a trial's name: its id in Ray Tune, its values, its seed."""
    return f"{trial_id}-{label(values)}-seed-{seed}"


def prune_checkpoints(
    folder: SweepFolder, rows: Sequence[TrialRow], axes: Sequence[Axis], num_kept: int, num_seeds: int
) -> None:
    """Remove all checkpoints of ended configurations, except those of the best trial of the `num_kept` best.

    A removed configuration can't return to the best: results of ended trials don't change.
    """
    ended = [c for c in rank(rows, axes) if c.has_ended and len(c.rows) == num_seeds]
    kept = {configuration.best_row.trial for configuration in ended[:num_kept]}
    for configuration in ended:
        for row in configuration.rows:
            if row.trial not in kept:
                shutil.rmtree(RunFolder(folder.trials / row.trial).checkpoint("any").parent, ignore_errors=True)


def _copy_best(run: RunFolder, best: RunFolder) -> None:
    """Copy a run to best/. If it is there already, only what has changed since, so that a user's own files stay."""
    left_out = shutil.ignore_patterns("wandb*", "last.ckpt", "previous.ckpt", ".*")
    if best.config.is_file() and best.read_config()["name"] == run.path.name:
        shutil.copytree(run.path, best.path, ignore=left_out, copy_function=_copy_newer, dirs_exist_ok=True)
        return
    temporary = temporary_path(best.path)
    try:
        shutil.copytree(run.path, temporary, ignore=left_out)
        shutil.rmtree(best.path, ignore_errors=True)
        temporary.rename(best.path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_newer(source: str, target: str) -> None:
    """Copy a file whole or not at all, unless the target is as new."""
    path = Path(target)
    if not path.is_file() or path.stat().st_mtime < Path(source).stat().st_mtime:
        with replacing(path) as temporary:
            shutil.copy2(source, temporary)


def write_answer(folder: SweepFolder) -> str:
    """Write the results so far: answer.txt, best.yaml and best/; return the text of answer.txt.

    Raises:
        FileNotFoundError: there is no sweep, or none of its trials has been validated.
    """
    settings, axes = folder.read_settings(), folder.read_axes()
    configurations = rank(folder.read_rows(), axes)
    if not configurations or not configurations[0].results:
        raise FileNotFoundError(f"{folder.path}: no trial has been validated yet; wait for the first one.")
    best = configurations[0]
    name = best.best_row.trial
    flat = flatten(yaml.safe_load((folder.trials / f"{name}.yaml").read_text(encoding="utf-8")))
    for key in TRIAL_SETTINGS:
        flat.pop(key, None)
    count = len(best.results)
    head = (
        f"# Best configuration of {folder.path}: {describe(best.values)}.\n"
        f"# {settings['monitor']} {best.mean:.4f} on the validation split, mean over {count} seed{'s' * (count > 1)}.\n"
    )
    write_bytes(folder.path / "best.yaml", head.encode() + to_yaml(unflatten(flat)))
    run = RunFolder(folder.trials / name)
    if run.checkpoint("best").is_file():
        _copy_best(run, folder.best)
    text = format_answer(configurations, axes, settings["monitor"])
    write_bytes(folder.answer, (text + "\n").encode())
    return text
