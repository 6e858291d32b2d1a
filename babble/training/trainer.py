"""Config -> callbacks, Trainer, and the training itself.

training = build_training(config, find_topology(None, None), StopRequest())    # creates nothing
steps = fit(training)
result = finish(training, steps)
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, Timer
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from babble.cli import config_to_dict, flatten
from babble.codec.frames import TOKENS
from babble.codec.token_sequences import name_frame
from babble.data.datamodule import SpeechData
from babble.data.shards import MANIFEST, verify_shards
from babble.evaluation.baselines import baseline_lines, measure_baselines
from babble.files import read_json, write_json
from babble.model.checkpoint import load_checkpoint
from babble.processes import StopRequest
from babble.run_folder import RunFolder, git_revision, locate_checkpoint
from babble.training.checkpoints import BestCheckpoint, LastCheckpoint, RankState, StageCheckpoints, find_resume
from babble.training.config import TrainConfig
from babble.training.console import ConsoleLogger, DurationWarning, ProgressBar
from babble.training.metrics import LayerLogger, MetricsFile, ThroughputLogger, WandbMetrics
from babble.training.module import BabbleModule
from babble.training.precision import check_precision, choose_precision
from babble.training.samples import SampleWriter
from babble.training.stopping import Consensus, StepLimit, Stopping
from babble.training.topology import Topology, naming_lost_processes
from babble.training.unfreezing import Unfreezing
from babble.training.wandb_run import STEP, WandbRun, describe_wandb, open_wandb

CallbackType = TypeVar("CallbackType", bound=pl.Callback)


@dataclass(frozen=True)
class Training:
    """Everything that a training needs, built and checked before its run folder is touched.

    Attributes:
        config: its settings, with the numbers of processes filled in.
        topology: its processes.
        data: its recordings, in memory.
        module: model, loss and optimizer.
        trainer: with all callbacks, without loggers.
    """

    config: TrainConfig
    topology: Topology
    data: SpeechData
    module: BabbleModule
    trainer: pl.Trainer

    @property
    def run(self) -> RunFolder:
        """Its run folder."""
        return self.config.run

    @property
    def weights(self) -> int:
        """Number of weights of the network."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def find(self, callback_type: type[CallbackType]) -> CallbackType:
        """Return the callback of this type."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(callback for callback in callbacks if isinstance(callback, callback_type))


@dataclass(frozen=True)
class TrainResult:
    """The end of a training.

    Attributes:
        run: its folder.
        monitor: the metric that chooses the best checkpoint, "val/bits_per_frame" or "val/error_levels".
        best: its lowest value on the validation split.
        steps: optimizer steps.
        frames: training frames in them, over all processes.
        weights: number of weights of the network.
        already_finished: whether the run was finished before, so that nothing was done.
    """

    run: Path
    monitor: str
    best: float
    steps: int
    frames: int
    weights: int
    already_finished: bool = False


def is_first_rank() -> bool:
    """Return whether this is the process that writes files and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def build_training(config: TrainConfig, topology: Topology, request: StopRequest) -> Training:
    """Return a training that is ready to start.

    Args:
        config: settings.
        topology: the processes that train together.
        request: notes the signals that ask to stop.

    Raises:
        FileNotFoundError, ValueError: settings, machine and shards do not fit together; nothing has been created.
    """
    # Stored in config.yaml, so that a run is not continued with other numbers.
    compute = replace(config.compute, devices=topology.devices, nodes=topology.nodes)
    if compute.precision == "auto":
        compute = replace(compute, precision=choose_precision(config))
    config = replace(config, compute=compute)
    data = SpeechData(config.data, config.seed)
    if is_first_rank():
        verify_shards(data.folder, data.manifest, with_hashes=config.data.verify == "start")
    data.setup()
    total_steps = _count_steps(config, data, topology.world_size)
    if total_steps and config.optim.warmup_steps >= total_steps:
        raise ValueError(
            f"optim.warmup_steps={config.optim.warmup_steps}: the training has only {total_steps} steps, so it would "
            "never reach its learning rate. Decrease optim.warmup_steps, or increase stop.epochs or stop.steps."
        )
    pl.seed_everything(config.seed, verbose=False)
    module = BabbleModule(config.model, data.mode, config.optim, total_steps)
    if config.compute.precision == "64-true":
        # Before Lightning does: it loads a checkpoint first, and would round its weights to 32 bits.
        module.double()
    if config.init_from and not config.run.has_weights:
        _load_weights(module, config.init_from)
    trainer = build_trainer(config, topology, build_callbacks(config, data, module, request, total_steps))
    return Training(config, topology, data, module, trainer)


def _count_steps(config: TrainConfig, data: SpeechData, world_size: int) -> int | None:
    """Return the last step of the training, if epochs or steps limit it."""
    epoch_steps = -(-data.count_batches(world_size) // config.compute.accumulate_batches)
    by_epochs = config.stop.epochs and config.stop.epochs * epoch_steps
    ends = [end for end in (by_epochs, config.stop.steps) if end]
    return min(ends) if ends else None


def _load_weights(module: BabbleModule, init_from: Path) -> None:
    """Load the weights of another run's best checkpoint, or of a checkpoint file.

    Raises:
        FileNotFoundError, ValueError: there is no such run or checkpoint, or it has another architecture.
    """
    _, path = locate_checkpoint(init_from)
    checkpoint = load_checkpoint(path)
    theirs, ours = (flatten(some) for some in (checkpoint.get("hyper_parameters", {}), dict(module.hparams)))
    # Dropout has no weights: another voice may need more of it. What a network receives of tokens is zero at first, and
    # can be left out.
    has_both = theirs.get("model.tokens") and ours.get("model.tokens")
    free = {"model.dropout"} | (set() if has_both else {"model.tokens"})
    different = [key for key in sorted(theirs | ours) if theirs.get(key) != ours.get(key) and key not in free]
    if different:
        values = ", ".join(f"{key}={theirs.get(key)}, here {ours.get(key)}" for key in different)
        raise ValueError(f"--init-from {init_from}: {path} has another architecture: {values}.")
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def build_callbacks(
    config: TrainConfig, data: SpeechData, module: BabbleModule, request: StopRequest, total_steps: int | None
) -> list[pl.Callback]:
    """Return the callbacks of a training, in the order in which Lightning calls them."""
    run, stages, stop, held_out = config.run, config.unfreezing, config.stop, data.validation_recordings
    consensus = Consensus(request)
    timer = Timer({"hours": stop.hours}, verbose=False) if stop.hours else None  # type: ignore[dict-item]
    callbacks: list[pl.Callback] = [
        Unfreezing(stages, module.model, config.before_unfreezing),
        LayerLogger(stages),
        *([EMAWeightAveraging(decay=config.optim.ema_decay, use_buffers=False)] if config.optim.ema_decay else []),
        ThroughputLogger(config.log_every_steps),
        # Tokens have no sound.
        *([] if data.mode == TOKENS else [SampleWriter(config.samples, run, held_out, data.mode, stages)]),
        ProgressBar() if sys.stdout.isatty() else ConsoleLogger(stages, stop.epochs, total_steps, timer),
    ]
    if total_steps and not timer:
        callbacks.append(DurationWarning(total_steps))
    if stop.steps:
        callbacks.append(StepLimit(stop.steps))
    if stop.patience:
        callbacks.append(EarlyStopping(module.monitor, patience=stop.patience, check_on_train_epoch_end=False))
    if timer:
        callbacks.append(timer)
    return [
        *callbacks,
        RankState(),
        BestCheckpoint(run),
        StageCheckpoints(run, stages),
        LastCheckpoint(run, config.checkpoint_minutes, consensus),
        Stopping(consensus),
    ]


def build_trainer(config: TrainConfig, topology: Topology, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Return Lightning's Trainer, without loggers.

    Raises:
        ValueError: this machine does not have what `compute` asks for.
    """
    # No buffer changes in training, so none has to be sent before each step.
    ddp = DDPStrategy(broadcast_buffers=False, find_unused_parameters=config.before_unfreezing == "bypassed")
    # Lightning's own requeueing saves inside the signal handler, which deadlocks: slurm/train.sh requeues.
    environment = SLURMEnvironment(auto_requeue=False) if topology.is_started_by_srun else LightningEnvironment()
    check_precision(config.compute, config.model.cell)
    precision = config.compute.precision
    assert precision != "auto", "build_training has replaced it"
    try:
        return pl.Trainer(
            accelerator=config.compute.accelerator,
            devices=topology.devices,
            num_nodes=topology.nodes,
            plugins=[environment],
            strategy=ddp if topology.world_size > 1 else "auto",
            precision=precision,
            max_epochs=config.stop.epochs or -1,
            check_val_every_n_epoch=config.validate_every_epochs,
            log_every_n_steps=config.log_every_steps,
            accumulate_grad_batches=config.compute.accumulate_batches,
            gradient_clip_val=config.optim.clip_norm,
            # Not False: torch would spend seconds on importing its compiler.
            deterministic=config.compute.deterministic or None,
            logger=False,
            callbacks=callbacks,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # SpeechData splits the windows over the ranks.
            use_distributed_sampler=False,
            default_root_dir=config.run.path,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        if config.compute.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError(
                "compute.accelerator=gpu: PyTorch finds no GPU on this machine. Use --compute.accelerator cpu."
            ) from None
        raise ValueError(f"compute: {' '.join(str(error).split())}") from None


def fit(training: Training) -> int:
    """Train to the end, from the last checkpoint if there is one; return the number of optimizer steps.

    Raises:
        CommandError: no checkpoint is valid, the training diverged, or another of its processes was lost.
        Interrupted: stopped on request; the same training can be continued.
    """
    config, run, module, trainer = training.config, training.run, training.module, training.trainer
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    # Vanishing gradients are denormal numbers, with which a step takes a CPU eight times as long.
    torch.set_flush_denormal(True)
    resumed_from, resumed_step = find_resume(run)
    metrics = MetricsFile(run.metrics)
    metrics.resume(resumed_step if resumed_from else 0)
    trainer.loggers = [metrics]
    wandb = _start(training, resumed_step if resumed_from else None) if is_first_rank() else None
    best = training.find(BestCheckpoint)
    try:
        with naming_lost_processes():
            trainer.fit(module, datamodule=training.data, ckpt_path=resumed_from, weights_only=True)
            # Lightning does not call it when a run resumes after its last step.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, SampleWriter):
                    callback.on_train_end(trainer, module)
            steps = trainer.global_step
            if best.validated_step != steps:
                # A kill may have come after this validation.
                metrics.resume(steps - 1, "val/")
                _validate_last_step(training)
    finally:
        if wandb:
            _close_wandb(wandb, training)
    return steps


def _validate_last_step(training: Training) -> None:
    """Validate at the end of the training, logged with its last step and epoch, as any other validation."""
    trainer = training.trainer
    # Lightning has counted on to those that would follow.
    trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
    trainer.fit_loop.epoch_progress.current.completed -= 1
    trainer.validate(training.module, datamodule=training.data, verbose=False)


def _start(training: Training, resumed_step: int | None) -> WandbRun | None:
    """Measure the baselines, open W&B and print the start table; return the W&B run."""
    config, data, run = training.config, training.data, training.run
    baselines = measure_baselines(
        (recording.frames for recording in data.train_recordings),
        [recording.frames for recording in data.validation_recordings],
        data.mode,
    )
    write_json(run.baselines, baselines)
    wandb = open_wandb(
        replace(config.wandb, group=config.wandb.group or config.recipe),
        run.path,
        run.path.name,
        {**config_to_dict(config), "mode": data.mode.name},
        job_type="train",
        notes=run.read_notes(),
        tags=(config.model.cell, config.model.head, f"mode {data.mode.name}"),
    )
    # After W&B is open, so that its Logs tab has the table too.
    print(describe_start(training, baselines, resumed_step, describe_wandb(wandb, run.path)), flush=True)
    if wandb:
        lines = baseline_lines(baselines)
        wandb.log({**lines, STEP: 0})
        wandb.log_file(data.folder / MANIFEST, f"corpus-{data.folder.name}", "dataset")
        training.trainer.loggers = [*training.trainer.loggers, WandbMetrics(wandb, lines)]
    return wandb


def describe_start(
    training: Training, baselines: dict[str, dict[str, Any]], resumed_step: int | None, wandb: str
) -> str:
    """Return the table that a training prints at its start.

    Args:
        training: the training.
        baselines: what `measure_baselines` returned.
        resumed_step: the step from which the run resumes; None for a new run.
        wandb: where W&B logs.
    """
    config, topology, data = training.config, training.topology, training.data
    model, metric = config.model, training.module.monitor.removeprefix("val/")
    processes = f"{topology.world_size} process{'es' * (topology.world_size > 1)}"
    nodes = f" on {topology.nodes} nodes" * (topology.nodes > 1)
    layers = f"{model.num_layers} {model.cell} layer{'s' * (model.num_layers > 1)} of {model.units} units"
    values = ", ".join(
        f"{name.removesuffix(' baseline')} {values[metric]:.3f}"
        for name, values in baselines.items()
        if metric in values
    )
    unit = f"bits per {name_frame(data.mode.name)}" if metric == "bits_per_frame" else "levels of error"
    rows = {
        "data": f"{data.folder}: {data.describe()}",
        "model": f"{layers}, {model.head} head, {training.weights:,} weights",
        "baselines": f"{values} {unit} in validation",
        "compute": f"{processes}{nodes}, {training.trainer.strategy.root_device.type}, {config.compute.precision}",
        "git": git_revision() or "unknown revision",
        "W&B": wandb,
    }
    if config.unfreezing:
        *stages, last = config.unfreezing
        steps = [f"layers {list(stage.layers)} for {stage.epochs} epoch{'s' * (stage.epochs != 1)}" for stage in stages]
        rows["unfreezing"] = ", then ".join([*steps, f"layers {list(last.layers)} to the end"])
    title = f"{training.run.path}: " + ("new run" if resumed_step is None else f"resumes at step {resumed_step}")
    return "\n".join([title, *(f"  {name:<10} {text}" for name, text in rows.items())])


def _close_wandb(wandb: WandbRun, training: Training) -> None:
    """Log the best monitor and, if online, the best checkpoint; end W&B's process."""
    run, checkpoint = training.run, training.run.checkpoint("best")
    if checkpoint.is_file():
        wandb.summarize({training.module.monitor.replace("val/", "best/"): training.find(BestCheckpoint).best})
        # Offline it would be sent by a later `wandb sync`, when a sweep may have removed the file.
        if wandb.is_online:
            wandb.log_file(checkpoint, f"{run.path.name}-best", "model")
    wandb.close(run.read_notes())


def finish(training: Training, steps: int) -> TrainResult:
    """Write finished.json; return its content."""
    result = {
        "monitor": training.module.monitor,
        "best": training.find(BestCheckpoint).best,
        "steps": steps,
        "frames": training.data.frames_given * training.topology.world_size,
        "weights": training.weights,
    }
    if training.trainer.is_global_zero:
        write_json(training.run.finished, result)
    return TrainResult(training.run.path, **result)  # type: ignore[arg-type]


def read_result(run: RunFolder) -> TrainResult:
    """Return the result of a finished run."""
    return TrainResult(run.path, **read_json(run.finished), already_finished=True)
