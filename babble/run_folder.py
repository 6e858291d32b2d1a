"""The run folder: which file lies where. Its paths are known to this module alone.

runs/NAME/
    config.yaml        every setting of the training
    corpus.json        sha256 of the manifest of its shards
    environment.json   git revision, versions and machine, one entry per start
    metrics.jsonl      every logged metric, one JSON object per row
    baselines.json     baselines of the validation metrics
    checkpoints/       last.ckpt and previous.ckpt (all that a resume needs), best.ckpt and stage-N.ckpt (weights)
    samples/           prompts/N.c2, real/, epoch-NNNN/: audio generated during training
    wandb/ wandb_id    the W&B run, offline without a key
    notes.md           written by hand; shown in W&B
    report.html        the run on one page
    finished.json      written at the end: monitor, best value, steps
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from babble.cli import describe_changes, flatten, to_yaml
from babble.files import lock, read_json, write_bytes, write_json

PACKAGES = ("babble-speech", "torch", "pytorch-lightning", "webdataset", "numpy", "pycodec2", "wandb", "ray")
# The bundled voice: a run folder that has only a checkpoint.
PRETRAINED = Path(__file__).parent / "pretrained"
# Settings that change nothing in a run: a renamed config file continues the same run.
LABELS = ("name", "runs", "recipe", "data.verify")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run.

    Attributes:
        path: the folder, runs/NAME.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Path of every setting of the training, as YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Path of every logged metric, one JSON object per row."""
        return self.path / "metrics.jsonl"

    @property
    def baselines(self) -> Path:
        """Path of the baselines of the validation metrics."""
        return self.path / "baselines.json"

    @property
    def finished(self) -> Path:
        """Path of the file that marks a finished training."""
        return self.path / "finished.json"

    @property
    def has_weights(self) -> bool:
        """Whether a training has saved its weights here, or finished: it needs none to start from."""
        return any(path.is_file() for path in (self.checkpoint("last"), self.checkpoint("previous"), self.finished))

    @property
    def report(self) -> Path:
        """Path of the report page."""
        return self.path / "report.html"

    @property
    def samples(self) -> Path:
        """Folder of audio and pictures generated during training."""
        return self.path / "samples"

    @property
    def prompts(self) -> Path:
        """Folder of the frames that the samples of every epoch continue: N.c2, N from 1."""
        return self.samples / "prompts"

    def read_notes(self) -> str | None:
        """Return the text of notes.md, or None."""
        notes = self.path / "notes.md"
        return notes.read_text(encoding="utf-8") if notes.is_file() else None

    def checkpoint(self, which: str) -> Path:
        """Return the path of the checkpoint with that name: "last", "previous", "best", "stage-2"."""
        return self.path / "checkpoints" / f"{which}.ckpt"

    @property
    def tokens(self) -> Path:
        """Path of the level above the frame, in runs of networks that receive tokens."""
        return self.path / "tokens.pt"

    def find_checkpoint(self, which: str) -> Path:
        """Return the checkpoint that a user names: "best", "last", "stage-N", or the path of a checkpoint file.

        Raises:
            FileNotFoundError: it does not exist, or this folder is not a run; the message lists the existing ones.
        """
        for path in (self.checkpoint(which), Path(which)):
            if path.is_file():
                return path
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} does not exist: name the folder of a run, e.g. runs/NAME.")
        existing = sorted(path.stem for path in self.checkpoint("any").parent.glob("*.ckpt"))
        if not existing and not self.config.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run: it has no config.yaml. Name a folder such as runs/NAME."
            )
        raise FileNotFoundError(
            f"{self.path} has no checkpoint {which!r}; it has {', '.join(existing) or 'none yet'}. "
            "The path of a checkpoint file is accepted too."
        )

    def read_config(self) -> dict[str, Any]:
        """Return the settings as nested values.

        Raises:
            FileNotFoundError: this folder is not a run.
        """
        if not self.config.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run: it has no config.yaml. Name a folder such as runs/NAME."
            )
        values: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return values

    def claim(
        self,
        settings: dict[str, Any],
        corpus: str = "",
        complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Create the run's folders and config.yaml, or check that it is the same run.

        Args:
            settings: every setting, nested; `LABELS` are not compared, nor is the path of the same shards.
            corpus: sha256 of the manifest of its shards.
            complete: adds the defaults of settings that are newer than the config.yaml of an existing run.

        Raises:
            ValueError: the folder holds a run with other settings, each of which is named with both values, or a run
                that was trained on other shards.
        """
        path = self.path / "corpus.json"
        if self.config.is_file():
            labels: tuple[str, ...] = LABELS
            if path.is_file():
                labels += ("data.shards",)
                if read_json(path)["manifest_sha256"] != corpus:
                    raise ValueError(
                        f"{self.path} was trained on other shards than {settings['data']['shards']} holds now, so it "
                        "is not continued. Give the folder of the same shards, or another --name to start a new run."
                    )
            found = self.read_config()
            try:
                found = complete(found) if complete else found
            except ValueError as error:
                raise ValueError(
                    f"{self.config} was written by another version of babble: {error}. Continue the run with that "
                    "version, or give another --name to start a new run."
                ) from None
            before, now = (
                {key: value for key, value in flatten(values).items() if key not in labels}
                for values in (found, settings)
            )
            if changes := describe_changes(before, now):
                raise ValueError(
                    f"{self.path} is a run with other settings, so it is not continued:\n  "
                    + "\n  ".join(changes)
                    + "\nGive the same settings to continue it, or another --name to start a new run."
                )
            return
        for folder in (self.checkpoint("any").parent, self.prompts):
            folder.mkdir(parents=True, exist_ok=True)
        if corpus:
            write_json(path, {"manifest_sha256": corpus})
        write_bytes(self.config, to_yaml(settings))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that holds the folder for this process alone.

        Raises:
            FileInUse: another process trains in it.
        """
        return lock(self.path / ".lock", f"{self.path} is in use by another training: wait for it or stop it.")

    def remove_leftovers(self) -> None:
        """Remove the temporary files of killed trainings; the folder must be locked."""
        for pattern in (".*.tmp", "checkpoints/.*.tmp", "samples/**/.*.tmp"):
            for left in self.path.glob(pattern):
                left.unlink(missing_ok=True)

    def note_start(self) -> None:
        """Add this start's time, git revision and versions to environment.json."""
        path = self.path / "environment.json"
        starts = read_json(path) if path.is_file() else []
        write_json(path, [*starts, environment()])


def locate_checkpoint(run: Path, which: str = "best") -> tuple[RunFolder, Path]:
    """Return the run and the checkpoint that a user names.

    Args:
        run: a run folder, or a checkpoint file; the run of runs/NAME/checkpoints/best.ckpt is runs/NAME.
        which: the checkpoint if `run` is a folder, see `RunFolder.find_checkpoint`.

    Raises:
        FileNotFoundError: as `RunFolder.find_checkpoint`.
        ValueError: `run` is a checkpoint file and `which` names another one.
    """
    if run.is_file():
        if which != "best":
            raise ValueError(f"{run} is a checkpoint, so --checkpoint {which} has no effect. Remove one of them.")
        return RunFolder(run.parent.parent if run.parent.name == "checkpoints" else run.parent), run
    folder = RunFolder(run)
    return folder, folder.find_checkpoint(which)


def environment() -> dict[str, Any]:
    """Return time, git revision, versions and machine of this process, for environment.json."""
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
    """Return the git revision of the source, with "-dirty" if files were changed; None outside a checkout."""
    source = Path(__file__).parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
