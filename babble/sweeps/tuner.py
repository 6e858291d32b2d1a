"""Ray Tune's part in a sweep: the resources of a trial, Tune's search and scheduler, and running all trials.

with connect(address=None):
    signal_number = run_trials(plan, folder, find_resources(plan))
"""

import json
import logging
import os
import re
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch

from babble.cli import CommandError
from babble.processes import StopRequest
from babble.ray_cluster import start_ray
from babble.sweeps.folder import SweepFolder
from babble.sweeps.plan import SweepPlan
from babble.sweeps.space import Axis
from babble.sweeps.trial import SweepCallback, Trial

TUNE_ENVIRONMENT = {
    # trials.csv and the run folders have what Tune's own loggers would write.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A sweep that is killed loses at most this many seconds of Tune's state.
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    # Tune's newer output prints a table even with verbose=0.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C is noted by StopRequest and passed to Tune as SIGUSR1, which it takes too.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

_STATE_FILE = re.compile(r"(?P<kind>.+)-(?P<start>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)\.(json|pkl)")


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine; shut it down at the end.

    Raises:
        CommandError: the cluster can't be reached, or Ray can't be started.
    """
    start_ray(address)
    try:
        yield
    finally:
        ray.shutdown()


def find_resources(plan: SweepPlan) -> dict[str, float]:
    """Return what each trial reserves, by Ray's names: CPU, GPU, memory in bytes.

    Raises:
        CommandError: no node of the cluster has that much.
    """
    trial, accelerator = plan.config.trial, plan.base["compute"]["accelerator"]
    gpus = trial.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") and accelerator != "cpu" else 0.0
    wanted = {"CPU": float(trial.cores), "GPU": gpus, "memory": (trial.memory_gb or 0) * 1e9}
    wanted = {name: amount for name, amount in wanted.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        found = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in wanted) for node in nodes)
        needed = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
        raise CommandError(
            f"a trial needs {needed}, and no node has that: {found}. Reduce trial.cores, trial.gpus or trial.memory_gb."
        )
    return wanted


def count_concurrent(resources: dict[str, float]) -> int:
    """Return how many trials with these resources the cluster can run at once."""
    cluster = ray.cluster_resources()
    return max(1, int(min(cluster.get(name, 0) // amount for name, amount in resources.items())))


def run_trials(plan: SweepPlan, folder: SweepFolder, resources: dict[str, float]) -> int | None:
    """Train all trials that have not ended yet.

        with connect(plan.config.address):
            signal_number = run_trials(plan, folder, find_resources(plan))

    Ctrl-C or SIGTERM stops all trials; each keeps a checkpoint.

    Returns:
        the number of the signal that stopped the sweep, or None.
    """
    print(_describe_start(plan, folder, resources), flush=True)
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Tune logs many lines about each failed trial; trials.csv has one.
    for logger in ("ray", "ray.tune"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    tuner = _make_tuner(plan, folder, tune.with_resources(Trial, resources), count_concurrent(resources))
    request = StopRequest("stopping all trials; each writes a checkpoint")
    with request.watching(signal.SIGINT, signal.SIGTERM, on_request=_stop_tune):
        try:
            tuner.fit()
        except KeyboardInterrupt:
            if request.number is None:
                raise
    return request.number


def _stop_tune() -> None:
    """Pass a request to stop to Tune, inside a signal handler."""
    # Until Tune has a handler of its own, no trial runs, and SIGUSR1 would end the process without a message.
    if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGUSR1)


def _describe_start(plan: SweepPlan, folder: SweepFolder, resources: dict[str, float]) -> str:
    config = plan.config
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    begins = f"continued, {folder.count_ended()} trials have ended" if folder.ray.is_dir() else "new sweep"
    ends = "every trial is trained to its end"
    if config.scheduler == "asha":
        ends = f"asha stops trials with worse results early, from epoch {plan.grace_epochs} on"
    return (
        f"{folder.path}: {begins}\n"
        f"  trials     {plan.num_trials}: {config.search} search, seeds {', '.join(map(str, config.seeds))}; "
        f"{each} each, {count_concurrent(resources)} at once\n"
        f"  space      {'; '.join(f'{axis.key} ({axis.kind} of {list(axis.values)})' for axis in plan.axes)}\n"
        f"  scheduler  {ends}"
    )


def _make_tuner(plan: SweepPlan, folder: SweepFolder, trainable: Any, num_concurrent: int) -> tune.Tuner:
    state = folder.ray.resolve()
    _remove_damaged_state(state)
    if tune.Tuner.can_restore(str(state)):
        return tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True)
    searcher, space, num_samples = _make_search(plan, num_concurrent)
    return tune.Tuner(
        trainable,
        # Relative paths in the settings start from the folder in which the user typed them.
        param_space=space | {"sweep": str(folder.path.resolve()), "directory": os.getcwd()},
        tune_config=tune.TuneConfig(
            metric="best",
            mode="min",
            search_alg=searcher,
            scheduler=_make_scheduler(plan),
            num_samples=num_samples,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=tune.FailureConfig(max_failures=plan.config.trial.retries),
            # Trainings keep their own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[SweepCallback(folder.path.resolve(), plan.num_trials)],
            verbose=0,
        ),
    )


def _remove_damaged_state(folder: Path) -> None:
    """Remove what a full disk cut short of Tune's state, so that Tune continues from what it had saved before.

    It saves one state per start of the sweep, in one file of each kind. From a damaged one it would start again with an
    empty space, which it only logs.
    """
    starts: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in folder.glob("*"):
        if match := _STATE_FILE.fullmatch(path.name):
            starts[match["start"]][match["kind"]] = path
    num_kinds = max(map(len, starts.values()), default=0)
    for start in sorted(starts, reverse=True):
        files = starts[start].values()
        if len(files) == num_kinds and all(map(_is_readable, [*files, folder / "tuner.pkl"])):
            return
        for path in files:
            path.unlink()
    if starts:
        print(f"{folder}: no whole state of Ray Tune is left, so every trial is trained again.", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)


def _is_readable(path: Path) -> bool:
    try:
        content = path.read_bytes()
        (json.loads if path.name.startswith("experiment_state") else cloudpickle.loads)(content)
    # Depending on the byte at which it ends, a pickle raises almost anything.
    except Exception:
        return False
    return True


def _make_domain(axis: Axis) -> Any:
    if axis.kind == "choice":
        return tune.choice(list(axis.values))
    low, high = axis.values
    # Tune's whole-number ranges exclude their end.
    return getattr(tune, axis.kind)(low, high + 1 if axis.kind.endswith("int") else high)


def _make_search(plan: SweepPlan, num_concurrent: int) -> tuple[Any, dict[str, Any], int]:
    """Return Tune's searcher, its space, and its number of samples."""
    seeds = list(plan.config.seeds)
    domains = {"values": {axis.key: _make_domain(axis) for axis in plan.axes}}
    if plan.config.search == "optuna":
        searcher: Searcher = OptunaSearch(seed=plan.seed)
        if len(seeds) > 1:
            searcher = Repeater(searcher, repeat=len(seeds))
        # Optuna learns from ended trials: no trial is sampled before it can run.
        searcher = ConcurrencyLimiter(searcher, max_concurrent=num_concurrent)
        return searcher, domains if len(seeds) > 1 else domains | {"seed": seeds[0]}, plan.num_trials
    # Each sampled configuration is combined with all seeds.
    generator = BasicVariantGenerator(constant_grid_search=True, random_state=plan.seed)
    every_seed = {"seed": tune.grid_search(seeds)}
    if plan.config.search == "grid":
        return generator, {"values": tune.grid_search(list(plan.points))} | every_seed, 1
    return generator, domains | every_seed, plan.config.configurations


def _make_scheduler(plan: SweepPlan) -> TrialScheduler | None:
    if plan.config.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr="epoch",
        # Trials end by themselves. A rung at the last epoch would call a trial stopped that has trained to its end.
        max_t=(plan.base["stop"]["epochs"] or 10**6) - 1,
        grace_period=plan.grace_epochs,
        reduction_factor=plan.config.asha.factor,
        stop_last_trials=False,
    )
