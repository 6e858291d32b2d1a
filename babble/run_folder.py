"""The run folder: what lies where, read and written here alone.

runs/NAME/
    config.yaml        every setting of the training
    environment.json   git revision, versions, machine, when it was started and each time it was continued
    metrics.csv        every figure that was logged, a row a step
    baselines.json     what the held-out figures stand beside
    checkpoints/       last.ckpt and previous.ckpt (all that a resume needs), best.ckpt, stage-N.ckpt (weights)
    samples/         prompts/N.c2, real/, epoch-NNNN/: what one can hear and see
    wandb/ wandb_id    the W&B run, offline without a key
    notes.md           what one wants to remember of it; written by hand, shown in W&B
    report.html        all of it on one page
    finished.json      written at the end: its best figure and how many steps it took
"""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from babble.cli import CommandError, flatten, to_yaml
from babble.files import write_bytes, write_json

PACKAGES = ("babble", "torch", "pytorch-lightning", "webdataset", "numpy", "pycodec2", "wandb", "ray")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    Attributes:
        path: the folder, runs/NAME.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting of the training, as YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Every figure that was logged."""
        return self.path / "metrics.csv"

    @property
    def baselines(self) -> Path:
        """The baselines of the held-out figures."""
        return self.path / "baselines.json"

    @property
    def finished(self) -> Path:
        """The mark of a training that has ended by itself."""
        return self.path / "finished.json"

    @property
    def report(self) -> Path:
        """All of it on one page."""
        return self.path / "report.html"

    @property
    def samples(self) -> Path:
        """What one can hear and see."""
        return self.path / "samples"

    @property
    def prompts(self) -> Path:
        """The prompt frames that every samples continues: N.c2, counted from 1."""
        return self.samples / "prompts"

    def read_notes(self) -> str | None:
        """Return what somebody has written in notes.md; None without any."""
        notes = self.path / "notes.md"
        return notes.read_text() if notes.is_file() else None

    def checkpoint(self, which: str) -> Path:
        """Return where the checkpoint of that name lies: "last", "previous", "best", "stage-2"."""
        return self.path / "checkpoints" / f"{which}.ckpt"

    def find_checkpoint(self, which: str) -> Path:
        """Return the checkpoint that a user names: "best", "last", another of the run's, or a path.

        Raises:
            FileNotFoundError: there is none; the message lists those that there are.
        """
        candidates = (self.checkpoint(which), Path(which))
        for path in candidates:
            if path.is_file():
                return path
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} does not exist: name the folder of a run, as in runs/NAME.")
        there = sorted(path.stem for path in self.checkpoint("any").parent.glob("*.ckpt"))
        raise FileNotFoundError(
            f"{self.path} has no checkpoint {which!r}; it has {', '.join(there) or 'none yet'}. "
            "A path of a checkpoint file is taken too."
        )

    def read_config(self) -> dict[str, Any]:
        """Return the settings as nested values.

        Raises:
            FileNotFoundError: no run is in this folder.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.yaml.")
        values: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return values

    def claim(self, settings: dict[str, Any]) -> None:
        """Make the folder this training's, or see that it is.

        Raises:
            ValueError: the folder holds a run of other settings; each is named with both values.
        """
        if self.config.is_file():
            changed = changed_settings(self.read_config(), settings)
            if changed:
                raise ValueError(
                    f"{self.path} is a run of other settings, so it is not continued:\n" + "\n".join(changed) + "\n"
                    "Give the same settings to continue it, or another --name to start a new one."
                )
            return
        for folder in (self.checkpoint("any").parent, self.prompts):
            folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.config, to_yaml(settings))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            CommandError: another process trains in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CommandError(f"{self.path} is in use by another training: wait for it or stop it.") from None
            yield

    def note_start(self) -> None:
        """Add this start's time, git revision and versions to environment.json."""
        path = self.path / "environment.json"
        starts = json.loads(path.read_text()) if path.is_file() else []
        write_json(path, [*starts, environment()])


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each setting that a run had otherwise, by key with both values."""
    old, new = flatten(before), flatten(now)
    return [
        f"  {key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def environment() -> dict[str, Any]:
    """Return when, where and with what this process runs: for the run folder, a year later."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": git_revision(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "versions": versions,
    }


def git_revision() -> str | None:
    """Return the source's git revision, with "-dirty" where it was changed since; None outside a checkout."""
    source = Path(__file__).parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
