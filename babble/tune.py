"""Train many configurations and compare them: a sweep over units, depth, cell, learning rate, ...

    babble tune --config tune --data.shards shards/tale [--name NAME] [--stop.epochs 20 ...]
    babble tune --resume NAME [--runs runs] [--address HOST:PORT]
    babble tune --report NAME [--runs runs]

All settings of `babble train` are accepted too, and shared by all trials.

1. The whole space is validated before the first trial: `plan_sweep` in sweeps/plan.py.
2. Ray Tune chooses values and runs as many trials at once as there are cores or GPUs: sweeps/tuner.py. A trial is
   `babble train` in a process of its own (sweeps/trial.py), so that it can be repeated alone.
3. A crashed trial is continued from its own checkpoint, up to `trial.retries` times. A sweep that was stopped or killed
   is continued by `--resume NAME`, or by the same command again.
4. Results are in runs/NAME at any time: trials.csv, and at the end, or after --report, answer.txt, answer.png,
   best.yaml and best/ (sweeps/folder.py).
"""

import shlex
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from babble.cli import CommandError, Interrupted, build_config, config_to_dict, flatten, run_command
from babble.command_line import INLINED, CommandLine
from babble.data.shards import Manifest, open_shards
from babble.data.training_split import map_training
from babble.files import check_writable
from babble.sweeps.folder import SweepFolder, write_answer
from babble.sweeps.plan import SweepConfig, SweepPlan, plan_sweep
from babble.sweeps.ranking import ENDED
from babble.sweeps.space import read_space
from babble.training.config import TrainConfig, default_name

PROG = "babble tune"


@dataclass(frozen=True)
class TuneConfig:
    """Train many configurations and compare them on the validation split.

    Attributes:
        sweep: settings of the sweep.
        training: settings of `babble train` that all trials share; name and runs are those of the sweep.
        resume: name of a sweep to continue, with the settings that it was started with; besides it only --runs and
            --address are accepted.
        report: name of a sweep whose results so far are printed and written; besides it only --runs is accepted.
    """

    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=INLINED)
    training: TrainConfig = field(default_factory=TrainConfig, metadata=INLINED)
    # For --help: `main` reads these flags as `ResumeConfig` and `ReportConfig`.
    resume: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        """Refuse in a config file what only the command line can ask for."""
        for key in ("resume", "report"):
            if (name := getattr(self, key)) is not None:
                raise ValueError(f"{key}={name}: not a setting of a sweep; type {PROG} --{key} {name} instead.")


@dataclass(frozen=True)
class ResumeConfig:
    """Continue a sweep that was stopped.

    Attributes:
        resume: name of the sweep.
        runs: the folder that holds it.
        address: a running Ray cluster, host:port or "auto"; by default Ray is started on this machine.
    """

    resume: str
    runs: Path = Path("runs")
    address: str | None = None


@dataclass(frozen=True)
class ReportConfig:
    """Print the results of a sweep so far and write answer.txt, answer.png, best.yaml and best/.

    Attributes:
        report: name of the sweep.
        runs: the folder that holds it.
    """

    report: str
    runs: Path = Path("runs")


def plan_training(sweep: SweepConfig, training: TrainConfig) -> SweepPlan:
    """Return the plan of a sweep over a training; raises as `plan_sweep`."""

    def complete(settings: dict[str, Any]) -> dict[str, Any]:
        return config_to_dict(build_config(TrainConfig, settings))

    return plan_sweep(sweep, config_to_dict(training), complete)


def tune(config: TuneConfig) -> SweepFolder:
    """Run, or continue, the sweep that the config describes; return its folder when all trials have ended.

        folder = tune(read_config(TuneConfig, ["--config", "configs/tune.yaml", "--data.shards", "shards/tale"]))

    Raises:
        FileNotFoundError, ValueError: settings, shards or a folder that don't fit; nothing has been created then.
        CommandError: another sweep is running in the folder, Ray can't be used, or every trial has failed.
        Interrupted: stopped by a signal; the same call continues the sweep.
    """
    training = config.training
    # Without a --config file the default name would be that of a training.
    if training.recipe == TrainConfig.recipe:
        has_default_name = training.name == default_name(training.recipe)
        training = replace(training, recipe="tune", name=None if has_default_name else training.name)
    folder = SweepFolder(training.run.path)
    return _run(plan_training(config.sweep, training), folder, is_resumed=False)


def resume(config: ResumeConfig) -> SweepFolder:
    """Continue a sweep with the settings that it was started with; return and raise as `tune`."""
    folder = SweepFolder(config.runs / config.resume)
    settings = folder.read_settings()
    del settings["monitor"], settings["mode"]
    own = {"name": config.resume, "runs": str(config.runs), "address": config.address}
    started = build_config(TuneConfig, folder.read_base() | settings | own)
    return _run(plan_training(started.sweep, started.training), folder, is_resumed=True)


def _run(plan: SweepPlan, folder: SweepFolder, *, is_resumed: bool) -> SweepFolder:
    shards = plan.base["data"]["shards"]
    path, manifest = open_shards(Path(shards) if shards else None)
    settings = plan.settings | {"mode": manifest.mode.name}
    if not is_resumed:
        folder.check(settings, plan.base)
    if folder.count_ended() == plan.num_trials:
        print(f"{folder.path} is finished: all {plan.num_trials} trials have ended. Nothing to do.")
    else:
        check_writable(folder.settings, "--runs")
        # Imported here: Ray takes seconds, and neither --help nor --report nor a rejected setting needs it.
        from babble.sweeps import tuner

        with tuner.connect(plan.config.address):
            resources = tuner.find_resources(plan)
            with folder.locked():
                if not folder.settings.is_file():
                    folder.claim(settings, _share_memory(plan, path, manifest))
                signal_number = tuner.run_trials(plan, folder, resources)
        if folder.count_ended() < plan.num_trials:
            message = f"stopped; {folder.resume_flags} continues the sweep."
            raise Interrupted(message, signal_number or signal.SIGUSR1)
    _check_results(folder)
    return folder


def _check_results(folder: SweepFolder) -> None:
    """Raise if all trials have ended and none has a result."""
    rows = folder.read_rows()
    if not rows or any(row.best is not None or row.state not in ENDED for row in rows):
        return
    if all("diverged" in row.reason for row in rows):
        raise CommandError(
            f"every trial has diverged before its first result, so none of the {len(rows)} can be ranked. Start a "
            f"sweep of another --name with smaller values of optim.lr, or with optim.clip_norm. Logs: {folder.trials}."
        )
    raise CommandError(f"every trial has failed, the last one with: {rows[-1].reason}. See {folder.trials}.")


def _share_memory(plan: SweepPlan, shards: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the trials' settings with the training split held in memory once for all of them, where possible."""
    base = plan.base
    # Networks that receive tokens accept no other holding than memory.
    has_tokens = base["data"]["tokens"] or any("data.tokens" in axis.varied for axis in plan.axes)
    if base["data"]["holding"] != "memory" or has_tokens:
        return base
    try:
        map_training(shards, manifest)
    except OSError as error:
        print(f"Each trial holds the shards in its own memory, because they can't be mapped: {error}.", flush=True)
        return base
    return base | {"data": base["data"] | {"holding": "mapped"}}


def report(folder: SweepFolder) -> str:
    """Write the results of a sweep so far, as text, picture, config and run; return the text.

    Raises:
        FileNotFoundError: there is no sweep, or none of its trials has been validated.
        CommandError: every trial has failed.
    """
    from babble.reporting.plots.figures import save_figure
    from babble.reporting.plots.sweep import plot_sweep

    _check_results(folder)
    text = write_answer(folder)
    measured = [row.to_columns() for row in folder.read_rows() if row.best is not None]
    metric = folder.read_settings()["monitor"].removeprefix("val/")
    save_figure(plot_sweep(measured, metric, folder.read_axes()[0]), folder.path / "answer.png")
    return text


def _print_report(folder: SweepFolder) -> None:
    print(f"\n{report(folder)}\n\nWritten to {folder.path}: answer.txt, answer.png, trials.csv, best.yaml.")
    words = shlex.join(["--config", f"{folder.path}/best.yaml", "--name", f"best-of-{folder.path.name}"])
    print(f"Train the best again: babble train {words}")
    if folder.best.path.is_dir():
        best = shlex.quote(str(folder.best.path))
        print(f"Listen to it:         babble generate {best} --seconds 60 --out babble.wav")


def check_flags(config: TuneConfig, argv: list[str]) -> None:
    """Raise if a flag sets what the space varies. A config file may: it can be that of a training.

    Args:
        config: of the sweep.
        argv: the words from which it was read.

    Raises:
        ValueError: names the flag.
    """
    words = CommandLine(TuneConfig, None)
    words.rewrite(argv)
    given = {key.removesuffix("+") for key in words.given}
    for axis in read_space(config.sweep.space, flatten(config_to_dict(config.training))):
        # The mode of the sweep is that of --data.shards.
        for key in sorted((axis.varied - {"data.shards"}) & given):
            flag = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"{flag} has no effect, as the space varies it: remove the flag, or {axis.key} from the space."
            )


def _start(config: TuneConfig) -> None:
    check_flags(config, sys.argv[1:])
    _print_report(tune(config))


def main() -> None:
    """Run `babble tune`."""
    flags = {word.partition("=")[0] for word in sys.argv[1:]}
    if "--report" in flags:
        run_command(ReportConfig, lambda config: _print_report(SweepFolder(config.runs / config.report)), PROG)
    elif "--resume" in flags:
        run_command(ResumeConfig, lambda config: _print_report(resume(config)), PROG)
    else:
        run_command(TuneConfig, _start, PROG)


if __name__ == "__main__":
    main()
