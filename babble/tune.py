"""Sweep over what a training can be: which units, depth, cell, head.

    python -m babble.tune --config configs/tune.yaml --data.shards shards/tale [--name NAME]
    python -m babble.tune --resume NAME
    python -m babble.tune --report NAME

1. Whatever of the space training would refuse is refused, before any trial.
2. Ray Tune chooses values and gives each trial its cores and GPUs; a trial is `python -m babble.train` in a process of
   its own (trial.py), so that run alone it learns the same.
3. A trial that dies goes on from its own checkpoint, some times; a sweep that is stopped or dies goes on with
   `--resume`, or with the same command again.
4. The answer lies in the sweep's folder, at any time (sweep.py).
"""

import logging
import math
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch

from babble.cli import (
    CommandError,
    Interrupted,
    build_config,
    config_to_dict,
    describe_changes,
    flatten,
    run_command,
    to_yaml,
    unflatten,
)
from babble.data.shards import map_split, open_shards
from babble.files import write_bytes
from babble.model.heads import HEADS
from babble.run_folder import RunFolder
from babble.sweeps.folder import ENDED, SweepFolder, write_answer
from babble.sweeps.space import Axis, apply_values, check_space, every_combination, one_at_a_time, read_space
from babble.sweeps.trial import Trial, Watch
from babble.train import TrainConfig

SEARCHES = ("grid", "random", "optuna")
SCHEDULERS = ("none", "asha")
# What Ray keeps of its own beside the frames, which it never sees; it wants 80 MB at least.
OBJECT_STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class TrialConfig:
    """What each trial gets.

    Attributes:
        cores: CPU cores; its processes' threads share them.
        gpus: GPUs, each for one process; a part of one is shared with other trials. None: one where there are any.
        memory_gb: memory that has to be free on its node; None asks for none.
        retries: how often a trial that died goes on from its last checkpoint.
    """

    cores: int = 1
    gpus: float | None = None
    memory_gb: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        """Refuse what no node could give."""
        if self.cores < 1:
            raise ValueError(f"trial.cores={self.cores}: at least 1 is needed.")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ValueError(f"trial.gpus={self.gpus}: a part of one, or a whole number.")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"trial.memory_gb={self.memory_gb}: above 0 is needed.")
        if self.retries < 0:
            raise ValueError(f"trial.retries={self.retries}: at least 0 is needed.")


@dataclass(frozen=True)
class AshaConfig:
    """When ASHA stops trials that lag behind (Li et al., 2018: A System for Massively Parallel Hyperparameter Tuning).

    Attributes:
        grace_epochs: none is stopped before it has so many; None for the first epoch of a trial whose layers have all
            woken, in the slowest unfreezing of the space.
        factor: one of so many goes on at each rung, and the rungs are so many times farther apart.
    """

    grace_epochs: int | None = None
    factor: float = 3.0

    def __post_init__(self) -> None:
        """Refuse rungs that lead nowhere."""
        if self.grace_epochs is not None and self.grace_epochs < 1:
            raise ValueError(f"asha.grace_epochs={self.grace_epochs}: at least 1 is needed.")
        if self.factor <= 1:
            raise ValueError(f"asha.factor={self.factor}: above 1 is needed.")


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Sweep over settings of babble.train; whatever that takes is taken here too, and shared by all trials.

    Attributes:
        name: the sweep's name, a folder in `runs`; by default recipe and date, under Slurm recipe and job.
        runs: the folder that holds it.
        space: what is varied, in the words of babble.train, such as model.units: {choice: [40, 160, 320]}; ranges are
            uniform, loguniform, randint and lograndint: [from, to].
        search: "grid" trains all combinations of choices, in an order drawn by `seed`; "random" draws; "optuna"
            draws where it looks promising (TPE).
        configurations: how many random and optuna draw.
        seeds: each configuration is trained once with each.
        scheduler: "none" trains all trials to their end; "asha" stops those that lag behind.
        asha: when.
        trial: what each trial gets.
        keep_best: of so many configurations the best trial's checkpoint stays on the disk.
        address: a Ray cluster to run on, host:port or 'auto'; this machine if left out.
        resume: go on with the sweep of this name.
        report: write and show the answer of the sweep of this name, as far as it is.
    """

    recipe: str = "tune"
    space: dict[str, Any] = field(default_factory=dict)
    search: str = "grid"
    configurations: int = 20
    seeds: tuple[int, ...] = (0,)
    scheduler: str = "none"
    asha: AshaConfig = field(default_factory=AshaConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    keep_best: int = 1
    address: str | None = None
    resume: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no sweep could be made of; what goes on was looked at when it began."""
        if self.resume or self.report:
            return
        super().__post_init__()
        for key, choices in (("search", SEARCHES), ("scheduler", SCHEDULERS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)!r} is none of {', '.join(choices)}.")
        for key in ("configurations", "keep_best"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: at least 1 is needed.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: at least one is needed, and none twice.")
        if "seed" in self.space:
            raise ValueError("space: seed is no choice to find the best of: give seeds.")
        axes = self.axes
        check_space(axes, self.search == "grid", lambda settings: self.training(settings))
        if self.scheduler == "asha":
            self._check_grace()
        processes, threads = self.compute.devices or 1, self.compute.threads
        if threads and threads * processes > self.trial.cores:
            raise ValueError(
                f"compute.threads={threads} in {processes} processes are more than trial.cores={self.trial.cores}: "
                "trials would take each other's cores."
            )

    def _check_grace(self) -> None:
        slowest = self.last_wake
        if self.asha.grace_epochs is not None and self.asha.grace_epochs <= slowest:
            raise ValueError(
                f"asha.grace_epochs={self.asha.grace_epochs}: the last layer wakes after {slowest} epochs, and before "
                "it has, trials can't be compared. Give more, or none."
            )
        last = self.stop.epochs or math.inf
        if max(self.grace_epochs, self.validate_every_epochs) >= last:
            raise ValueError(
                f"scheduler=asha would stop no trial: it first looks after {self.grace_epochs} epochs, held-out speech "
                f"is heard every {self.validate_every_epochs}, and trials end after {last}."
            )

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What is varied."""
        return read_space(self.space, set(flatten(self.shared)))

    @property
    def shared(self) -> dict[str, Any]:
        """The settings of training that all trials share, nested."""
        return config_to_dict(TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)}))

    def training(self, settings: dict[str, Any]) -> TrainConfig:
        """Return the training config of a trial.

        Raises:
            ValueError: training refuses it.
        """
        return build_config(TrainConfig, unflatten(flatten(self.shared) | settings))

    @property
    def candidates(self) -> Iterator[TrainConfig]:
        """Trainings in which every choice and every end of a range occurs; of a grid all."""
        some = every_combination(self.axes) if self.search == "grid" else one_at_a_time(self.axes)
        return (self.training(apply_values(self.axes, values)) for values in some)

    @property
    def last_wake(self) -> int:
        """The epoch, counted from 0, in which the last layer wakes, in the slowest unfreezing of the space."""
        return max(_last_wake(training) for training in self.candidates)

    @property
    def grace_epochs(self) -> int:
        """How many epochs ASHA leaves every trial."""
        return self.asha.grace_epochs or self.last_wake + 1

    @property
    def figure(self) -> str:
        """What trials are compared by: bits per frame where all have a likelihood."""
        has_bits = all(HEADS[training.model.head].has_likelihood for training in self.candidates)
        return "val/bits_per_frame" if has_bits else "val/error_levels"

    @property
    def total(self) -> int:
        """How many trials there will be."""
        drawn = sum(1 for _ in every_combination(self.axes)) if self.search == "grid" else self.configurations
        return drawn * len(self.seeds)


def _last_wake(training: TrainConfig) -> int:
    begins = [0, *accumulate(stage.epochs or 0 for stage in training.unfreezing[:-1])]
    awake: set[int] = set()
    last = 0
    for begin, stage in zip(begins, training.unfreezing, strict=False):
        if not set(stage.layers) <= awake:
            last = begin
        awake |= set(stage.layers)
    return last


# ---- a sweep


def _begin(config: TuneConfig, sweep: SweepFolder) -> None:
    """Make the folder this sweep's, or see that it is.

    Raises:
        ValueError, FileNotFoundError: shards that don't fit; the folder holds another sweep, or a run.
    """
    folder, manifest = open_shards(config.data.shards)
    not_asked = {f.name for f in fields(TrainConfig)} | {"address", "resume", "report"}
    about = {key: value for key, value in config_to_dict(config).items() if key not in not_asked}
    about |= {"figure": config.figure, "mode": manifest.mode.name}
    shared = config.shared
    del shared["name"], shared["runs"], shared["seed"]
    shared["wandb"]["group"] = shared["wandb"]["group"] or sweep.path.name
    processes = config.compute.devices or max(1, int(config.trial.gpus or 0))
    threads = config.compute.threads or max(1, config.trial.cores // processes)
    shared["compute"] |= {"nodes": 1, "devices": processes, "threads": threads}
    if sweep.settings.is_file():
        changed = describe_changes(sweep.read_settings(), about)
        base = sweep.read_base()
        # Whether the trials share memory was found out when the sweep began.
        base["data"]["holding"] = shared["data"]["holding"]
        changed += describe_changes(base, shared)
        if changed:
            raise ValueError(
                f"{sweep.path} is a sweep of other settings, so it is not continued:\n" + "\n".join(changed) + "\n"
                f"Go on with --resume {sweep.path.name}, or give another --name."
            )
        return
    if RunFolder(sweep.path).config.is_file():
        raise ValueError(f"{sweep.path} is a run of babble.train: give the sweep another --name.")
    if shared["data"]["holding"] == "memory":
        try:
            map_split(folder, manifest, "train")
            shared["data"]["holding"] = "mapped"
        except OSError as error:
            print(f"Every trial holds the shards itself, as they can't be shared: {error}.", flush=True)
    sweep.trials.mkdir(parents=True, exist_ok=True)
    write_bytes(sweep.base, to_yaml(shared))
    write_bytes(sweep.settings, to_yaml(about))


def _read(sweep: SweepFolder, config: TuneConfig) -> TuneConfig:
    """Return the config that a sweep was begun with, on the Ray cluster that is asked for now."""
    about = sweep.read_settings()
    del about["figure"], about["mode"]
    own = {"name": sweep.path.name, "runs": str(sweep.path.parent), "address": config.address}
    return build_config(TuneConfig, {**sweep.read_base(), **about, **own})


def start_ray(address: str | None) -> None:
    """Connect to a Ray cluster, or start one on this machine's cores.

    Raises:
        CommandError: it can't be reached or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune's own loggers would write what trials.csv and the run folders have.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # A sweep that dies has lost no more than this of what it knew.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")
    # Its table of a sweep is not ours, and comes whatever one asks.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ctrl-C is caught here, and told to Tune by the signal that it also takes.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cores = len(os.sched_getaffinity(0))
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    except Exception as error:
        if address:
            hint = "If it was started with tokens, set RAY_AUTH_MODE=token here too."
            raise CommandError(f"Ray at {address} can't be used: {error}. {hint}") from None
        raise CommandError(f"Ray can't be started on this machine: {error}") from None


def _resources(config: TuneConfig) -> dict[str, float]:
    """Return what each trial takes.

    Raises:
        CommandError: no node has so much.
    """
    import ray

    gpus = config.trial.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") and config.compute.accelerator != "cpu" else 0.0
    wanted = {"CPU": float(config.trial.cores), "GPU": gpus, "memory": (config.trial.memory_gb or 0) * 1e9}
    wanted = {what: amount for what, amount in wanted.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(what, 0) >= amount for what, amount in wanted.items()) for node in nodes):
        has = "; ".join(", ".join(f"{what} {node.get(what, 0):g}" for what in wanted) for node in nodes)
        asked = ", ".join(f"{what} {amount:g}" for what, amount in wanted.items())
        raise CommandError(
            f"a trial takes {asked}, which no node has: {has}. See trial.cores, trial.gpus, trial.memory_gb."
        )
    return wanted


def _at_once(wanted: dict[str, float]) -> int:
    import ray

    there = ray.cluster_resources()
    return max(1, int(min(there.get(what, 0) // amount for what, amount in wanted.items())))


def _domain(axis: Axis) -> Any:
    if axis.kind == "choice":
        return tune.choice(list(axis.values))
    low, high = axis.values
    # Of Tune's whole numbers the end does not belong to the range.
    return getattr(tune, axis.kind)(low, high + 1 if axis.kind.endswith("int") else high)


def _search(config: TuneConfig, at_once: int) -> tuple[Any, dict[str, Any], int]:
    """Return Tune's searcher, its space, and how many samples it draws."""
    seeds = list(config.seeds)
    drawn = {"values": {axis.key: _domain(axis) for axis in config.axes}}
    if config.search == "optuna":
        searcher: Searcher = OptunaSearch(seed=config.seed)
        if len(seeds) > 1:
            searcher = Repeater(searcher, repeat=len(seeds))
            seed: dict[str, Any] = {}
        else:
            seed = {"seed": seeds[0]}
        # It learns from trials that have ended: none is drawn before it can run.
        searcher = ConcurrencyLimiter(searcher, max_concurrent=at_once)
        return searcher, drawn | seed, config.total
    # With every drawn configuration each random seed.
    generator = BasicVariantGenerator(constant_grid_search=True, random_state=config.seed)
    seed = {"seed": tune.grid_search(seeds)}
    if config.search == "grid":
        points = list(every_combination(config.axes))
        # In a grid's own order small networks come first, and ASHA lets each go on as the best so far.
        random.Random(config.seed).shuffle(points)
        return generator, {"values": tune.grid_search(points)} | seed, 1
    return generator, drawn | seed, config.configurations


def _scheduler(config: TuneConfig) -> TrialScheduler | None:
    if config.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr="epoch",
        # Trials end by themselves: no rung lies behind their end.
        max_t=config.stop.epochs or 10**6,
        grace_period=config.grace_epochs,
        reduction_factor=config.asha.factor,
        stop_last_trials=False,
    )


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Tell Tune of Ctrl-C and SIGTERM by the signal that it takes; yield a list that will hold the signal's number."""
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        signal.raise_signal(signal.SIGUSR1)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep(config: TuneConfig) -> str:
    """Run, or go on with, the sweep that the config describes, to its end; return its answer.

    Raises:
        FileNotFoundError, ValueError: settings, shards or a folder that don't fit; nothing has been done then.
        CommandError: another sweep works in the folder, Ray can't be used, or every trial has failed.
        Interrupted: stopped when asked; the same call goes on from there.
    """
    folder = SweepFolder(config.runs / (config.resume or config.run_name))
    if config.resume:
        config = _read(folder, config)
    # Before anything is made where nothing will be.
    open_shards(config.data.shards)
    with RunFolder(folder.path).locked():
        if not config.resume:
            _begin(config, folder)
        start_ray(config.address)
        import ray

        try:
            wanted = _resources(config)
            _say_what_starts(config, folder, wanted)
            with _told_to_stop() as asked:
                _fit(config, folder, wanted)
        finally:
            ray.shutdown()
    rows = folder.read_rows()
    if len([row for row in rows if row["state"] in ENDED]) < config.total:
        raise Interrupted(f"stopped; go on with --resume {folder.path.name}.", asked[0] if asked else signal.SIGUSR1)
    if not any(row["best"] for row in rows):
        raise CommandError(f"every trial has failed, the last with: {rows[-1]['reason']}. See {folder.trials}.")
    return write_answer(folder)


def _fit(config: TuneConfig, folder: SweepFolder, wanted: dict[str, float]) -> None:
    trainable = tune.with_resources(Trial, wanted)
    state = (folder.ray).resolve()
    # Tune tells of trials that did not complete, and of Ray's ways, in many lines; trials.csv has it in one each.
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if tune.Tuner.can_restore(str(state)):
        tuner = tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True)
    else:
        searcher, space, samples = _search(config, _at_once(wanted))
        tuner = tune.Tuner(
            trainable,
            # Paths of settings are as typed: from here.
            param_space=space | {"sweep": str(folder.path.resolve()), "directory": os.getcwd()},
            tune_config=tune.TuneConfig(
                metric="best",
                mode="min",
                search_alg=searcher,
                scheduler=_scheduler(config),
                num_samples=samples,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=state.name,
                storage_path=str(state.parent),
                failure_config=tune.FailureConfig(max_failures=config.trial.retries),
                # Trainings keep their own.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[Watch(folder.path.resolve(), config.total)],
                verbose=0,
            ),
        )
    tuner.fit()


def _say_what_starts(config: TuneConfig, folder: SweepFolder, wanted: dict[str, float]) -> None:
    rows = folder.read_rows()
    ended = sum(row["state"] in ENDED for row in rows)
    each = ", ".join(f"{amount:g} {what}" for what, amount in wanted.items())
    print(
        f"{folder.path}: {f'going on, {ended} trials have ended' if rows else 'a new sweep'}\n"
        f"  trials  {config.total}: {config.search} search, random seeds {', '.join(map(str, config.seeds))}; "
        f"{each} each, {_at_once(wanted)} at once\n"
        f"  varies  {'; '.join(f'{axis.key} ({axis.kind} of {list(axis.values)})' for axis in config.axes)}\n"
        f"  stops   {_say_scheduler(config)}",
        flush=True,
    )


def _say_scheduler(config: TuneConfig) -> str:
    if config.scheduler == "none":
        return "no trial early"
    return f"trials that lag behind, from epoch {config.grace_epochs} on (ASHA)"


def _work(config: TuneConfig) -> None:
    if config.report:
        answer = write_answer(SweepFolder(config.runs / config.report))
        name = config.report
    else:
        answer = sweep(config)
        name = config.resume or config.run_name
    folder = SweepFolder(config.runs / name)
    print(f"\n{answer}\n\nThe answer is in {folder.path}: answer.txt, answer.png, trials.csv, best.yaml.")
    print(f"Train the best: python -m babble.train --config {folder.path}/best.yaml --name best-of-{name}")
    if folder.best.path.is_dir():
        print(f"Hear it:        python -m babble.generate {folder.best.path} --seconds 60 --out babble.wav")


def main() -> None:
    """Run `python -m babble.tune`."""
    run_command(TuneConfig, _work, "python -m babble.tune")


if __name__ == "__main__":
    main()
