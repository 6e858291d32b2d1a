"""A trial of a sweep: `babble train` in a process of its own, supervised by Ray Tune.

1. Tune chooses the values; with the settings that all trials share they become the trial's config file.
2. `Trial` starts the training as a user would, so it checkpoints and resumes like any other. If the supervising process
   ends, however it ends, the training receives SIGTERM and keeps a checkpoint.
3. Each validation in the run's metrics.jsonl is reported to Tune once.
4. `SweepCallback` keeps trials.csv up to date.

No torch here: supervising takes little memory and CPU time.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from babble.cli import CommandError, build_config
from babble.codec.frames import get_mode
from babble.processes import end_with_parent
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder, prune_checkpoints, trial_name
from babble.sweeps.progress import SweepProgress
from babble.sweeps.ranking import ENDED, State, TrialRow
from babble.sweeps.space import Values

POLL_SECONDS = 1.0
# How long a training that was asked to stop may take to finish its step and write a checkpoint.
STOP_SECONDS = 120.0
# Lines of a failed training's log in the error message.
LOG_LINES = 12
# Variables of Slurm's srun and of torch's launcher, which describe the sweep's own process, not a trial's.
LAUNCHER_VARIABLES = ("SLURM_", "PMI", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_")


def make_environment(gpus: float) -> dict[str, str]:
    """Return the environment of a trial's training: without launcher variables, and without a GPU that it must not use.

    Args:
        gpus: how many GPUs Ray has given to the trial.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_VARIABLES)}
    return environment if gpus else {**environment, "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Validation:
    """One validation of a training.

    Attributes:
        steps: optimizer steps done.
        epoch: epochs begun, counted from 1.
        stage: unfreezing stage, counted from 1.
        value: the monitor.
        best: lowest monitor value so far.
    """

    steps: int
    epoch: int
    stage: int
    value: float
    best: float


class MetricsReader:
    """Reads the validations of a growing metrics.jsonl; each call of `read` reads only what was appended.

    Args:
        path: the file; it need not exist yet.
        monitor: name of the metric.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        self.path, self.monitor = path, monitor
        self._restart(inode=0)

    def _restart(self, inode: int) -> None:
        self._inode, self._offset, self._stage, self._best = inode, 0, 1, math.inf

    def read(self) -> list[Validation]:
        """Return the validations since the last call; all of them if a resumed training replaced the file."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._restart(status.st_ino)
            file.seek(self._offset)
            # A line that is still being written is left for the next call.
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        rows = [json.loads(line) for line in whole.splitlines()]
        return [validation for row in rows for validation in self._take(row)]

    def _take(self, row: dict[str, Any]) -> list[Validation]:
        self._stage = int(row.get("train/stage", self._stage))
        # A training that diverged fails at a validation that is not a number.
        if not math.isfinite(row.get(self.monitor, math.nan)):
            return []
        self._best = min(self._best, row[self.monitor])
        return [Validation(row["step"] + 1, int(row["epoch"]) + 1, self._stage, row[self.monitor], self._best)]


def read_values(config: dict[str, Any], seeds: list[int]) -> tuple[Values, int]:
    """Return the value of each axis and the seed, from the config that Ray Tune keeps of a trial."""
    return config["values"], seeds[config[TRIAL_INDEX]] if TRIAL_INDEX in config else config["seed"]


class Trial(tune.Trainable):
    """One training of a sweep, as Ray Tune runs it on a node."""

    def setup(self, config: dict[str, Any]) -> None:
        """Write the trial's config file and start, or continue, its training."""
        folder = SweepFolder(Path(config["sweep"]))
        settings = folder.read_settings()
        values, seed = read_values(config, settings["seeds"])
        self.name = trial_name(self.trial_id, values, seed)
        self.run = RunFolder(folder.trials / self.name)
        self.log = folder.log(self.name)
        path = folder.write_config(self.name, values, seed)
        own = folder.trial_settings(values, seed, self.name)
        data, compute = own["data"], own["compute"]
        self.frames_per_step = (
            data["batch_size"] * data["window_frames"] * compute["accumulate_batches"] * compute["devices"]
        )
        self.metrics = MetricsReader(self.run.metrics, settings["monitor"])
        self.waiting: deque[Validation] = deque()
        self.reported: Validation | None = None
        self.read_steps = 0
        # Tune counts the time of a continued trial from 0.
        self.earlier_seconds = next((row.seconds for row in folder.read_rows() if row.trial == self.name), 0.0)
        resources = self.trial_resources
        assert resources is not None
        self._await_free()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "babble.train", "--config", str(path)],
                cwd=config["directory"],
                env=make_environment(resources.required_resources.get("GPU", 0)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is meant for the sweep, which stops its trials itself.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process: a new one takes seconds to start."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _await_free(self) -> None:
        """Wait for the training of a killed supervisor to write its checkpoint and end."""
        end = time.monotonic() + STOP_SECONDS
        while True:
            try:
                with self.run.locked():
                    return
            except CommandError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_SECONDS)

    def step(self) -> dict[str, Any]:
        """Return the next validation's result; wait for it.

        Raises:
            CommandError: the training failed; with the last lines of its log.
        """
        while True:
            # Before reading: whatever a process that has ended wrote is there.
            code = self.process.poll()
            self.waiting += [validation for validation in self.metrics.read() if validation.steps > self.read_steps]
            self.read_steps = self.waiting[-1].steps if self.waiting else self.read_steps
            if self.waiting:
                self.reported = self.waiting.popleft()
                return self._result(self.reported, is_finished=code == 0 and not self.waiting)
            if code == 0 and self.reported:
                return self._result(self.reported, is_finished=True)
            if code is not None:
                lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
                raise CommandError(f"{self.name} ended with exit code {code}; the end of {self.log}:\n{lines}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(POLL_SECONDS)

    def _result(self, validation: Validation, is_finished: bool) -> dict[str, Any]:
        return {
            "best": validation.best,
            "latest": validation.value,
            "epoch": validation.epoch,
            "stage": validation.stage,
            "frames": validation.steps * self.frames_per_step,
            "earlier_seconds": self.earlier_seconds,
            "is_finished": is_finished,
            "done": is_finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the run folder has all that a resume needs."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Load nothing, for the same reason."""

    def cleanup(self) -> None:
        """Stop the training if it is running; it keeps a checkpoint."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


STATES: dict[str, State] = {"TERMINATED": "finished", "ERROR": "failed", "RUNNING": "running"}


class SweepCallback(tune.Callback):
    """Keeps trials.csv up to date, shows progress, and removes the checkpoints of all but the best configurations.

    Args:
        folder: the sweep folder.
        num_trials: of the sweep.
    """

    def __init__(self, folder: Path, num_trials: int) -> None:
        self.folder, self.num_trials = SweepFolder(folder), num_trials
        self.axes, self.settings = self.folder.read_axes(), self.folder.read_settings()
        self.rows: list[TrialRow] = []
        self.weights: dict[str, int] = {}
        self.progress: SweepProgress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the progress bar: Tune pickles its callbacks, and a terminal can't be pickled."""
        return self.__dict__ | {"progress": None}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Update trials.csv, the progress and the kept checkpoints from the states of all trials.

        Not at the end of the experiment: by then Tune has marked the running trials of a stopped sweep as ended.
        """
        if not trials:
            return
        rows = [self._row(trial) for trial in trials]
        self.progress = self.progress or self._open_progress()
        self.progress.show(rows)
        if [replace(row, seconds=0.0) for row in rows] == [replace(row, seconds=0.0) for row in self.rows]:
            return
        self.rows = rows
        self.folder.write_rows(rows)
        if any(row.state in ENDED for row in rows):
            num_kept, num_seeds = self.settings["keep_best"], len(self.settings["seeds"])
            prune_checkpoints(self.folder, rows, self.axes, num_kept, num_seeds)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the progress bar."""
        if self.progress:
            self.progress.close()

    def _open_progress(self) -> SweepProgress:
        known = [row for row in self.folder.read_rows() if row.state in ENDED]
        return SweepProgress(self.num_trials, self.settings["monitor"], known)

    def _row(self, trial: Any) -> TrialRow:
        values, seed = read_values(trial.config, self.settings["seeds"])
        result, state = trial.last_result or {}, STATES.get(trial.status, "waiting")
        name = trial_name(trial.trial_id, values, seed)
        if state == "finished" and not result.get("is_finished"):
            state = "stopped"
        return TrialRow(
            trial=name,
            state=state,
            values=values,
            seed=seed,
            best=result.get("best"),
            stage=result.get("stage"),
            epoch=result.get("epoch"),
            frames=result.get("frames", 0),
            weights=self._count_weights(name, values, seed),
            seconds=round(result.get("earlier_seconds", 0.0) + result.get("time_total_s", 0.0), 1),
            retries=trial.num_failures - (state == "failed"),
            reason=self._last_line(name) if state == "failed" else "",
        )

    def _count_weights(self, name: str, values: Values, seed: int) -> int:
        if name not in self.weights:
            # Imported here: Ray's workers import this module, and need no torch.
            from babble.model.babbler import count_weights
            from babble.model.config import ModelConfig

            model = build_config(ModelConfig, self.folder.trial_settings(values, seed, name)["model"])
            self.weights[name] = count_weights(model, get_mode(self.settings["mode"]))
        return self.weights[name]

    def _last_line(self, name: str) -> str:
        log = self.folder.log(name)
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no log: its node was lost")
