"""Many small trainings side by side, one row of a CSV each: the tables of LOG.md.

    python -m jobs.experiments --config configs/experiments.yaml --shards shards/tale

1. The config names the experiments: for each a table, a name, the random seeds, and what it sets beside the training
   config that all share.
2. Each is a run of `python -m babble.train` on one core, as many at once as asked for. One that was cut short goes on.
3. A finished one appends its row to the CSV; experiments that have a row are skipped, so the file grows over days.
"""

import csv
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from babble.cli import CommandError, run_command
from babble.files import read_json_lines
from babble.run_folder import RunFolder

COLUMNS = (
    *("table", "name", "seed", "settings", "frames", "weights", "monitor", "held_out", "error_levels"),
    "frames_per_second",
)


@dataclass(frozen=True)
class Experiment:
    """One row a random seed.

    Attributes:
        table: which comparison it belongs to.
        name: what it is called there.
        settings: what it sets, in the words of `babble.train`, such as model.cell.
        seeds: one run each.
    """

    table: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class ExperimentsConfig:
    """Run experiments and append what they reach on the validation split to a CSV.

    Attributes:
        shards: the folder of shards that all hear.
        base: the training config that all share.
        experiments: what is compared.
        runs: the folder for their run folders.
        csv: where rows are appended.
        at_once: how many run side by side, each on one core.
        only: only these tables; all by default.
    """

    shards: Path | None = None
    base: Path = Path("configs/experiments-base.yaml")
    experiments: tuple[Experiment, ...] = ()
    runs: Path = Path("runs/experiments")
    csv: Path = Path("docs/experiments.csv")
    at_once: int = 2
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what nothing could be run from."""
        if self.shards is None:
            raise ValueError("name the shards that all experiments hear: --shards shards/tale")
        if self.at_once < 1:
            raise ValueError(f"--at_once {self.at_once}: at least 1 is needed.")
        unknown = set(self.only) - {experiment.table for experiment in self.experiments}
        if unknown or not self.experiments:
            raise ValueError(f"the config has no experiments of {', '.join(sorted(unknown)) or 'any table'}.")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row, under a header where the file is new."""
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _as_typed(value: Any) -> str:
    """Return a setting as one types it on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _train(config: ExperimentsConfig, experiment: Experiment, seed: int) -> dict[str, Any]:
    """Run one training to its end and return its row."""
    name = f"{experiment.table}-{experiment.name}-{seed}".replace(" ", "-")
    settings = [word for key, value in experiment.settings.items() for word in (f"--{key}", _as_typed(value))]
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
    run = RunFolder(config.runs / name)
    finished = json.loads(run.finished.read_text())
    metrics = read_json_lines(run.metrics)
    speeds = sorted(row["train/frames_per_second"] for row in metrics if "train/frames_per_second" in row)
    errors = [row["val/error_levels"] for row in metrics if "val/error_levels" in row]
    return {
        "table": experiment.table,
        "name": experiment.name,
        "seed": seed,
        "settings": " ".join(f"{key}={_as_typed(value)}" for key, value in experiment.settings.items()),
        "frames": finished["frames"],
        "weights": finished["weights"],
        "monitor": finished["monitor"],
        "held_out": f"{finished['best']:.4f}",
        "error_levels": f"{errors[-1]:.4f}",
        "frames_per_second": round(speeds[len(speeds) // 2]) if speeds else "",
    }


def run_experiments(config: ExperimentsConfig, say: Callable[[str], None] = print) -> None:
    """Run what has no row yet, `at_once` side by side, and append the rows as they come.

    Raises:
        CommandError: after all others were run, if one or more failed; names them.
    """
    done = {(row["table"], row["name"], row["seed"]) for row in read_rows(config.csv)}
    chosen = [experiment for experiment in config.experiments if not config.only or experiment.table in config.only]
    wanted = [
        (experiment, seed)
        for experiment in chosen
        for seed in experiment.seeds
        if (experiment.table, experiment.name, str(seed)) not in done
    ]
    say(f"{len(wanted)} to run, {len(done)} in {config.csv} already")
    lock, failures = threading.Lock(), []

    def work(experiment: Experiment, seed: int) -> None:
        try:
            row = _train(config, experiment, seed)
        except CommandError as error:
            with lock:
                failures.append(str(error))
                say(f"failed: {error}")
            return
        with lock:
            append_row(config.csv, row)
            say(f"{row['table']}, {row['name']}, random seed {seed}: {row['held_out']} {row['monitor']}")

    with ThreadPoolExecutor(config.at_once) as pool:
        for future in [pool.submit(work, *job) for job in wanted]:
            future.result()
    if failures:
        raise CommandError(f"{len(failures)} of {len(wanted)} failed; the rest is in {config.csv}.")


def main() -> None:
    """Run `python -m jobs.experiments`."""
    run_command(ExperimentsConfig, run_experiments, "python -m jobs.experiments")


if __name__ == "__main__":
    main()
