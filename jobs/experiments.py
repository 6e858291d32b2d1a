"""Run many small trainings and append one row per training to a CSV: the tables of docs/results.md.

    python -m jobs.experiments --config experiments --shards shards/tale

1. The config lists the experiments: a table, a name, the seeds, and the settings that differ from a shared base config.
2. Each is a run of `babble train` on one core, several at the same time. An interrupted one is continued.
3. A finished one appends its row to the CSV. Experiments that have a row are skipped, so the file can grow over days.
"""

import csv
import json
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from babble.cli import CommandError, run_command
from babble.files import check_writable, read_json, read_json_lines
from babble.run_folder import RunFolder


@dataclass(frozen=True)
class Experiment:
    """One training per seed.

    Attributes:
        table: the comparison that it belongs to.
        name: its name in that table.
        settings: what differs from the base config, by the keys of `babble train`, e.g. model.cell.
        seeds: random seeds, a row each.
    """

    table: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class ExperimentsConfig:
    """Run experiments and append their metrics on the validation split to a CSV.

    Attributes:
        shards: Folder of shards for all experiments.
        base: Training config that all experiments share.
        experiments: What to compare; usually set in a config file.
        runs: Folder for the run folders and logs.
        csv: File to append the rows to.
        at_once: Trainings at the same time, each on one core.
        only: Only these tables; all by default.
    """

    shards: Path | None = None
    base: Path = Path("experiments-base")
    experiments: tuple[Experiment, ...] = ()
    runs: Path = Path("runs/experiments")
    csv: Path = Path("docs/experiments.csv")
    at_once: int = 2
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate that there is something to run."""
        if self.shards is None:
            raise ValueError("--shards is missing: name the folder of shards, e.g. --shards shards/tale.")
        if self.at_once < 1:
            raise ValueError(f"--at-once {self.at_once}: must be at least 1.")
        if not self.experiments:
            raise ValueError("no experiments are configured: add --config experiments.")
        tables = dict.fromkeys(experiment.table for experiment in self.experiments)
        for table in self.only:
            if table not in tables:
                raise ValueError(f"--only {table}: must be one of the config's tables, {', '.join(tables)}.")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to the CSV, after a header of its keys if the file is new."""
    is_new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _to_word(value: Any) -> str:
    """Return a setting's value as it is typed on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _train(config: ExperimentsConfig, experiment: Experiment, seed: int) -> dict[str, Any]:
    """Run one training to its end, or continue it, and return its row.

    Raises:
        CommandError: it failed; the message shows the end of its log.
    """
    name = f"{experiment.table}-{experiment.name}-{seed}".replace(" ", "-")
    settings = [word for key, value in experiment.settings.items() for word in (f"--{key}", _to_word(value))]
    command = [
        *(sys.executable, "-m", "babble.train", "--config", str(config.base), "--name", name),
        *("--runs", str(config.runs), "--data.shards", str(config.shards), "--seed", str(seed)),
        *settings,
    ]
    log = config.runs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise CommandError(f"{name} ended with exit code {code}; the end of {log}:\n{tail}")
    return make_row(RunFolder(config.runs / name), experiment, seed)


def make_row(run: RunFolder, experiment: Experiment, seed: int) -> dict[str, Any]:
    """Return the row of a finished training."""
    finished, metrics = read_json(run.finished), read_json_lines(run.metrics)
    speeds = [row["train/frames_per_second"] for row in metrics if "train/frames_per_second" in row]
    # Modes with label fields have none: the levels of a label have no distance.
    errors = [row["val/error_levels"] for row in metrics if "val/error_levels" in row]
    return {
        "table": experiment.table,
        "name": experiment.name,
        "seed": seed,
        "settings": " ".join(f"{key}={_to_word(value)}" for key, value in experiment.settings.items()),
        "frames": finished["frames"],
        "weights": finished["weights"],
        "monitor": finished["monitor"],
        "held_out": f"{finished['best']:.4f}",
        "error_levels": f"{errors[-1]:.4f}" if errors else "",
        "frames_per_second": round(statistics.median_high(speeds)) if speeds else "",
    }


def run_experiments(config: ExperimentsConfig) -> None:
    """Run the experiments without a row, `at_once` at the same time, and append each row when it is known.

    Raises:
        OSError: the CSV can't be written.
        CommandError: one or more failed; the others were run nevertheless.
    """
    check_writable(config.csv, "--csv")
    done = {(row["table"], row["name"], row["seed"]) for row in read_rows(config.csv)}
    missing = [
        (experiment, seed)
        for experiment in config.experiments
        for seed in experiment.seeds
        if (not config.only or experiment.table in config.only)
        and (experiment.table, experiment.name, str(seed)) not in done
    ]
    print(f"{len(missing)} to run; {len(done)} rows in {config.csv} already", flush=True)
    lock, failures = threading.Lock(), []

    def run(experiment: Experiment, seed: int) -> None:
        try:
            row = _train(config, experiment, seed)
        except CommandError as error:
            with lock:
                failures.append(error)
                print(f"failed: {error}", flush=True)
            return
        with lock:
            append_row(config.csv, row)
            print(f"{row['table']}, {row['name']}, seed {seed}: {row['held_out']} {row['monitor']}", flush=True)

    with ThreadPoolExecutor(config.at_once) as pool:
        for future in [pool.submit(run, *training) for training in missing]:
            future.result()
    if failures:
        raise CommandError(f"{len(failures)} of {len(missing)} failed; the rows of the others are in {config.csv}.")


if __name__ == "__main__":
    run_command(ExperimentsConfig, run_experiments, "python -m jobs.experiments")
