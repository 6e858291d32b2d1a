"""A trial of a sweep: `python -m babble.train` in a process of its own, watched by Ray Tune.

1. Tune gives values; with what all trials share they are the trial's config file.
2. The training runs as anyone would start it, so it crashes, resumes and is heard like any other. It dies with its
   watcher, and the watcher's end is a signal to it to keep its state.
3. Every held-out figure of its metrics.jsonl is reported once.

No torch here: a watcher takes little of a core and of memory.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from babble.cli import CommandError, build_config
from babble.codec.frames import get_mode
from babble.files import read_json_lines
from babble.run_folder import RunFolder
from babble.sweeps.folder import (
    ENDED,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    Board,
    SweepFolder,
    prune,
    trial_name,
)
from babble.sweeps.space import Values

POLL_SECONDS = 0.2
# A training that is to end finishes its step and writes a checkpoint.
STOP_SECONDS = 120.0
LOG_LINES = 12
# Source: linux/prctl.h.
_PR_SET_PDEATHSIG = 1
# Who started what, of Slurm's srun and torch's own launcher: a trial's training is neither's.
FOREIGN = ("SLURM_", "PMI", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_")


def own_environment(gpus: float) -> dict[str, str]:
    """Return the environment of a trial's training: nothing of Slurm's or of other launchers', no GPU that is not its.

    Args:
        gpus: how many Ray has given the trial.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return environment if gpus else {**environment, "CUDA_VISIBLE_DEVICES": ""}


def read_figures(metrics: Path, figure: str) -> list[dict[str, float]]:
    """Return what a run's metrics.jsonl has of a held-out figure: {step, epoch, stage, figure}, in order of steps."""
    rows, stage = [], 1.0
    for row in read_json_lines(metrics):
        stage = row.get("train/stage", stage)
        if figure in row:
            rows.append({"step": row["step"] + 1, "epoch": row["epoch"] + 1, "stage": stage, "figure": row[figure]})
    return rows


def read_values(config: dict[str, Any], seeds: list[int]) -> tuple[Values, int]:
    """Return the values of the axes and the random seed, of the config that Ray Tune keeps of a trial."""
    return config["values"], seeds[config[TRIAL_INDEX]] if TRIAL_INDEX in config else config["seed"]


class Trial(tune.Trainable):
    """One training of a sweep, as Ray Tune runs it on some node."""

    def setup(self, config: dict[str, Any]) -> None:
        """Write the trial's config file and start its training, or let it go on."""
        sweep = SweepFolder(Path(config["sweep"]))
        settings = sweep.read_settings()
        values, seed = read_values(config, settings["seeds"])
        self.name = trial_name(self.trial_id, values, seed)
        self.run = RunFolder(sweep.trials / self.name)
        self.figure = settings["figure"]
        self.log = sweep.log(self.name)
        path = sweep.write_config(self.name, values, seed)
        whole = sweep.trial_settings(values, seed, self.name)
        data, compute = whole["data"], whole["compute"]
        self.frames_per_step = (
            data["batch_size"] * data["window_frames"] * compute["accumulate_batches"] * compute["devices"]
        )
        self.reported = 0.0
        resources = self.trial_resources
        assert resources is not None
        self._await_free()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "babble.train", "--config", str(path)],
                cwd=config["directory"],
                env=own_environment(resources.required_resources.get("GPU", 0)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the sweep, which stops its trials itself.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial: starting a watcher takes seconds."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _await_free(self) -> None:
        """Wait until the training of a watcher that was killed has written its checkpoint and ended."""
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
        """Wait for the next held-out figure, or for the training's end, and report it.

        Raises:
            CommandError: the training has failed; with the last lines of its log.
        """
        while True:
            code = self.process.poll()
            rows = read_figures(self.run.metrics, self.figure)
            new = [row for row in rows if row["step"] > self.reported]
            if new:
                self.reported = new[0]["step"]
                return self._result(rows[: rows.index(new[0]) + 1], is_finished=code == 0 and len(new) == 1)
            if code == 0 and rows:
                return self._result(rows, is_finished=True)
            if code is not None:
                lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
                raise CommandError(f"{self.name} ended with exit code {code}; the end of {self.log}:\n{lines}")
            time.sleep(POLL_SECONDS)

    def _result(self, rows: list[dict[str, float]], is_finished: bool) -> dict[str, Any]:
        last = rows[-1]
        return {
            "best": min(row["figure"] for row in rows),
            "held_out": last["figure"],
            "epoch": int(last["epoch"]),
            "stage": int(last["stage"]),
            "frames": int(last["step"] * self.frames_per_step),
            "is_finished": is_finished,
            "done": is_finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: the run folder has all that a resume needs."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Do nothing, likewise."""

    def cleanup(self) -> None:
        """End the training, if it has not ended; it keeps a checkpoint."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _end_with_parent() -> None:
    # The training takes SIGTERM as a wish to go on later.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


STATES = {"TERMINATED": FINISHED, "ERROR": FAILED, "RUNNING": RUNNING}


class Watch(tune.Callback):
    """Keeps trials.csv, shows how the sweep stands, and removes checkpoints that are not among the best.

    Args:
        folder: the sweep's.
        total: how many trials there will be.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.sweep, self.total = SweepFolder(folder), total
        self.axes, self.settings = self.sweep.read_axes(), self.sweep.read_settings()
        self.rows: list[dict[str, Any]] = []
        self.board: Board | None = None
        self.weights: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the board: Tune keeps its callbacks, and a terminal can't be kept."""
        return self.__dict__ | {"board": None}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at all trials. Not at the very end: a sweep that is stopped has ended its running trials by then."""
        rows = [self._row(trial) for trial in trials]
        self.board = self.board or Board(self.sweep.path.name, self.total)
        if rows:
            self.board.show(rows, self.settings["figure"])
        if [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in self.rows]:
            return
        self.sweep.write_rows(rows)
        if any(row["state"] in ENDED for row in rows):
            prune(self.sweep, rows, self.axes, self.settings["keep_best"], len(self.settings["seeds"]))
        self.rows = rows

    def _row(self, trial: Any) -> dict[str, Any]:
        values, seed = read_values(trial.config, self.settings["seeds"])
        result, state = trial.last_result or {}, STATES.get(trial.status, WAITING)
        name = trial_name(trial.trial_id, values, seed)
        if state == FINISHED and not result.get("is_finished"):
            state = STOPPED
        return {
            "trial": name,
            "state": state,
            **values,
            "seed": seed,
            "best": result.get("best", ""),
            "stage": result.get("stage", ""),
            "epoch": result.get("epoch", ""),
            "frames": result.get("frames", 0),
            "weights": self._count_weights(name, values, seed),
            "seconds": round(result.get("time_total_s", 0.0), 1),
            "retries": trial.num_failures - (state == FAILED),
            "reason": self._last_words(name) if state == FAILED else "",
        }

    def _count_weights(self, name: str, values: Values, seed: int) -> int:
        if name not in self.weights:
            from babble.model.babbler import ModelConfig, count_weights

            shape = build_config(ModelConfig, self.sweep.trial_settings(values, seed, name)["model"])
            self.weights[name] = count_weights(shape, get_mode(self.settings["mode"]))
        return self.weights[name]

    def _last_words(self, name: str) -> str:
        log = self.sweep.log(name)
        lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it left no log: its node was lost")
