"""The settings of a sweep, and the plan made from them before the first trial.

    plan = plan_sweep(SweepConfig(space={"model.units": {"choice": [8, 16]}}), training, complete)

1. `SweepConfig`: what the user sets.
2. `plan_sweep`: validates it together with the settings of `babble train` and returns an immutable `SweepPlan`.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from babble.cli import config_to_dict, flatten, unflatten
from babble.model.config import HEADS_WITH_LIKELIHOOD
from babble.sweeps.ranking import COLUMNS
from babble.sweeps.space import (
    Axis,
    Values,
    apply_values,
    describe,
    every_combination,
    one_at_a_time,
    read_space,
)

# Settings that the sweep sets for each trial.
OWN_SETTINGS = ("name", "runs", "recipe")


@dataclass(frozen=True)
class TrialConfig:
    """Resources of each trial.

    Attributes:
        cores: CPU cores; shared by the threads of its processes.
        gpus: GPUs, one per process; below 1, trials share a GPU; if omitted, one if the cluster has GPUs.
        memory_gb: memory to reserve on its node; if omitted, none.
        retries: how often a crashed trial is continued from its last checkpoint.
    """

    cores: int = 1
    gpus: float | None = None
    memory_gb: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        """Validate ranges."""
        if self.cores < 1:
            raise ValueError(f"trial.cores={self.cores}: must be at least 1.")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ValueError(f"trial.gpus={self.gpus}: must be a whole number, or between 0 and 1 to share a GPU.")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"trial.memory_gb={self.memory_gb}: must be above 0.")
        if self.retries < 0:
            raise ValueError(f"trial.retries={self.retries}: must be at least 0.")


@dataclass(frozen=True)
class AshaConfig:
    """Early stopping by ASHA (Li et al., 2018: A System for Massively Parallel Hyperparameter Tuning).

    Attributes:
        grace_epochs: epochs before which no trial is stopped; if omitted, the first epoch in which all layers are
            unfrozen, in the slowest unfreezing of the space.
        factor: the best 1/factor of the trials continue at each rung; rungs are `factor` times further apart each.
    """

    grace_epochs: int | None = None
    factor: float = 3.0

    def __post_init__(self) -> None:
        """Validate ranges."""
        if self.grace_epochs is not None and self.grace_epochs < 1:
            raise ValueError(f"asha.grace_epochs={self.grace_epochs}: must be at least 1.")
        if self.factor <= 1:
            raise ValueError(f"asha.factor={self.factor}: must be above 1.")


@dataclass(frozen=True)
class SweepConfig:
    """Settings of the sweep itself.

    Attributes:
        space: what is varied, by keys of `babble train`, e.g. model.units: {choice: [40, 160, 320]}; ranges are
            uniform, loguniform, randint and lograndint: [from, to].
        search: "grid" trains all combinations of choices, in an order shuffled by `seed`; "random" samples
            combinations; "optuna" samples where results are promising (TPE).
        configurations: number of combinations that random and optuna sample.
        seeds: random seeds; each configuration is trained once with each.
        scheduler: "none" trains all trials to their end; "asha" stops trials with worse results early.
        asha: settings of the scheduler asha.
        trial: resources of each trial.
        keep_best: number of best configurations whose best trial keeps its checkpoints on disk.
        address: a running Ray cluster, host:port or "auto"; by default Ray is started on this machine.
    """

    space: dict[str, Any] = field(default_factory=dict)
    search: Literal["grid", "random", "optuna"] = "grid"
    configurations: int = 20
    seeds: tuple[int, ...] = (0,)
    scheduler: Literal["none", "asha"] = "none"
    asha: AshaConfig = field(default_factory=AshaConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    keep_best: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        """Validate ranges."""
        for key in ("configurations", "keep_best"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: must be at least one seed, and none twice.")


@dataclass(frozen=True)
class SweepPlan:
    """All that a sweep does, known before its first trial.

    Attributes:
        config: the settings of the sweep.
        seed: seeds the search.
        base: the settings of `babble train` that all trials share, nested: what base.yaml holds.
        axes: of the space.
        points: of a grid all combinations, in the order in which they are trained; otherwise none.
        num_trials: configurations times seeds.
        monitor: the metric that configurations are compared by; bits per frame where all heads have a likelihood.
        grace_epochs: epochs before which ASHA stops no trial.
    """

    config: SweepConfig
    seed: int
    base: dict[str, Any]
    axes: tuple[Axis, ...]
    points: tuple[Values, ...]
    num_trials: int
    monitor: str
    grace_epochs: int

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the sweep, as sweep.yaml holds them."""
        settings = config_to_dict(self.config)
        del settings["address"]
        return settings | {"seed": self.seed, "monitor": self.monitor}


def plan_sweep(
    config: SweepConfig, training: dict[str, Any], complete: Callable[[dict[str, Any]], dict[str, Any]]
) -> SweepPlan:
    """Return the plan of a sweep.

    Every choice and both ends of every range are validated: all combinations of a grid; otherwise each value together
    with the first values of the other axes.

    Args:
        config: the settings of the sweep.
        training: all settings of `babble train`, nested; its name is that of the sweep.
        complete: validates the settings of a training and returns all of them, nested; raises ValueError.

    Raises:
        ValueError: the space is invalid, `babble train` rejects one of its values, or a setting has no effect.
    """
    flat = flatten(training)
    _check_keys(config.space)
    axes = read_space(config.space, flat)
    combinations = list(every_combination(axes) if config.search == "grid" else one_at_a_time(axes))
    candidates = []
    for values in combinations:
        try:
            candidates.append(complete(unflatten(flat | apply_values(axes, values))))
        except ValueError as error:
            raise ValueError(f"space: `babble train` rejects {describe(values)}: {error}") from None
    last_unfreezing = max(_last_unfreezing(candidate["unfreezing"]) for candidate in candidates)
    grace_epochs = config.asha.grace_epochs or last_unfreezing + 1
    if config.scheduler == "asha":
        _check_grace(config.asha, grace_epochs, last_unfreezing, training)
    _check_threads(config.trial, training["compute"])
    points: list[Values] = []
    if config.search == "grid":
        points = combinations
        # In a grid's own order small networks come first, and ASHA lets each continue as the best so far.
        random.Random(training["seed"]).shuffle(points)
    has_bits = all(candidate["model"]["head"] in HEADS_WITH_LIKELIHOOD for candidate in candidates)
    return SweepPlan(
        config=config,
        seed=training["seed"],
        base=_share_settings(training, config.trial),
        axes=axes,
        points=tuple(points),
        num_trials=(len(points) or config.configurations) * len(config.seeds),
        monitor="val/bits_per_frame" if has_bits else "val/error_levels",
        grace_epochs=grace_epochs,
    )


def _check_keys(space: dict[str, Any]) -> None:
    for key in space:
        if key == "seed":
            raise ValueError("space: the seed is not a setting to optimize: set `seeds` instead.")
        if key in OWN_SETTINGS:
            raise ValueError(f"space: {key} is set by the sweep for each trial: remove it from the space.")
        if key in COLUMNS:
            raise ValueError(
                f"space: {key} is a column of trials.csv (they are {', '.join(COLUMNS)}): choose another name for it."
            )


def _check_grace(asha: AshaConfig, grace_epochs: int, last_unfreezing: int, training: dict[str, Any]) -> None:
    if grace_epochs <= last_unfreezing:
        raise ValueError(
            f"asha.grace_epochs={asha.grace_epochs}: the last layer is unfrozen after {last_unfreezing} epochs, and "
            f"results before that don't compare: set at least {last_unfreezing + 1}, or omit it."
        )
    last, every = training["stop"]["epochs"] or math.inf, training["validate_every_epochs"]
    if max(grace_epochs, every) >= last:
        raise ValueError(
            f"scheduler=asha would stop no trial: none before epoch {grace_epochs}, validation every {every} epochs, "
            f"and trials end after {last}: train longer, or set scheduler=none."
        )


def _last_unfreezing(stages: list[dict[str, Any]]) -> int:
    """Return the epoch, counted from 0, in which the last layer is unfrozen."""
    begins = [0, *accumulate(stage["epochs"] or 0 for stage in stages[:-1])]
    unfrozen: set[int] = set()
    last = 0
    for begin, stage in zip(begins, stages, strict=False):
        if not set(stage["layers"]) <= unfrozen:
            last = begin
        unfrozen |= set(stage["layers"])
    return last


def _check_threads(trial: TrialConfig, compute: dict[str, Any]) -> None:
    processes, threads = compute["devices"] or 1, compute["threads"]
    if threads and threads * processes > trial.cores:
        raise ValueError(
            f"compute.threads={threads} in {processes} process{'es' * (processes > 1)}: more than "
            f"trial.cores={trial.cores}, so trials would compete for cores."
        )


def _share_settings(training: dict[str, Any], trial: TrialConfig) -> dict[str, Any]:
    """Return the settings that all trials share: everything but name, folder and seed; numbers of processes are set."""
    compute, wandb = training["compute"], training["wandb"]
    processes = compute["devices"] or max(1, int(trial.gpus or 0))
    threads = compute["threads"] or max(1, trial.cores // processes)
    shared = {key: value for key, value in training.items() if key not in ("name", "runs", "seed")}
    return shared | {
        "compute": compute | {"nodes": 1, "devices": processes, "threads": threads},
        "wandb": wandb | {"group": wandb["group"] or training["name"]},
    }
