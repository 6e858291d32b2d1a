"""Train a network on shards: TrainConfig and train(config), the only way to train.

    python -m babble.train --config configs/babble.yaml --data.shards shards/tale --name NAME [--model.units 320 ...]

1. Everything that can be refused is refused first: settings, shards, the run folder.
2. The run folder is claimed; a run of that name and the same settings goes on from its last checkpoint, bit for bit
   as if it had never stopped; a finished one says so.
3. Lightning trains; callbacks unfreeze, listen, keep checkpoints and metrics. At the end a page shows it: report.html.
4. Ctrl-C, SIGTERM or SIGUSR1: the step at hand is finished, a checkpoint written, and the command ends with code 128 +
   the signal's number.

On one machine the first process starts the others; on several, Slurm's `srun` does (slurm/train.sh).
"""

import contextlib
import json
import logging
import signal
import sys
import warnings
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer, TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from babble.cli import Interrupted, config_to_dict, run_command
from babble.data.datamodule import SpeechData
from babble.data.loaders import DataConfig
from babble.data.shards import MANIFEST
from babble.evaluation.baselines import baseline_lines, measure_baselines
from babble.files import write_json
from babble.model.babbler import ModelConfig
from babble.model.checkpoint import load_checkpoint
from babble.reporting.render import write_report
from babble.run_folder import RunFolder, git_revision
from babble.training.averaging import make_averaging
from babble.training.checkpoints import Checkpoints, StepLimit, StopRequest, find_resume
from babble.training.metrics import Curves, LayerFigures, MetricsFile, PlainLines, Speed
from babble.training.module import BabbleModule, OptimConfig
from babble.training.samples import SamplesConfig, SampleWriter
from babble.training.topology import Topology, find_topology, job_id
from babble.training.unfreezing import Stage, Unfreezing, check_stages
from babble.training.wandb_run import STEP, WandbConfig, WandbRun, open_wandb


@dataclass(frozen=True)
class StopConfig:
    """When a training ends: at whatever comes first.

    Attributes:
        epochs: after so many epochs.
        steps: after so many optimizer steps.
        hours: after so many hours of training, all starts of the run together.
        patience: after so many validations without a better figure.
    """

    epochs: int | None = None
    steps: int | None = None
    hours: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuse a training that never starts."""
        for key in ("epochs", "steps", "hours", "patience"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"stop.{key}={value}: above 0 is needed.")


@dataclass(frozen=True)
class ComputeConfig:
    """What the training runs on.

    Attributes:
        accelerator: "auto" takes a GPU when there is one; "cpu", "gpu".
        devices: processes on each machine, one for each GPU or share of the cores; None for as many as Slurm has
            started, else 1.
        nodes: machines; None for as many as Slurm has started on, else 1.
        precision: Lightning's name for it: "32-true", "bf16-mixed" (on a GPU), "64-true".
        accumulate_batches: an optimizer step takes so many batches of every process: large steps where memory is small.
        threads: CPU threads of each process; None leaves it to torch.
    """

    accelerator: str = "auto"
    devices: int | None = None
    nodes: int | None = None
    precision: str = "32-true"
    accumulate_batches: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers of nothing."""
        for key in ("devices", "nodes", "accumulate_batches", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"compute.{key}={value}: at least 1 is needed.")


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on shards of speech.

    Attributes:
        name: the run's name, a folder in `runs`; by default recipe and date, under Slurm recipe and job.
        recipe: what the default name starts with; the config file's name.
        runs: the folder that holds run folders.
        data: what is heard.
        model: the network.
        optim: how its weights are moved.
        unfreezing: stages from the bottom up, a list of {layers, epochs}; empty lets all layers learn at once.
        before_unfreezing: a layer that has not woken yet is in the path with its first weights ("frozen", as 2017), or
            left out until it wakes ("bypassed").
        stop: when it ends.
        validate_every_epochs: how often the held-out recordings are heard; they are at the end in any case.
        samples: what is heard and seen of it meanwhile.
        checkpoint_minutes: the last checkpoint is renewed this often, and at every epoch's end.
        log_every_steps: a row of metrics.jsonl and a point of a curve every so many steps.
        init_from: start from another run's weights (its folder, or a checkpoint file); stages start anew.
        seed: of the first weights and of the order of windows.
        compute: on what it runs.
        wandb: dashboards.
    """

    name: str | None = None
    recipe: str = "train"
    runs: Path = Path("runs")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    unfreezing: tuple[Stage, ...] = ()
    before_unfreezing: str = "frozen"
    stop: StopConfig = field(default_factory=StopConfig)
    validate_every_epochs: int = 1
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint_minutes: float = 10.0
    log_every_steps: int = 50
    init_from: Path | None = None
    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        """Refuse what only shows between the parts."""
        check_stages(self.unfreezing, self.model.num_layers, self.before_unfreezing)
        if self.stop == StopConfig():
            raise ValueError("nothing says when to stop: set stop.epochs, stop.steps, stop.hours or stop.patience.")
        if self.optim.schedule == "cosine" and not (self.optim.schedule_steps or self.stop.epochs or self.stop.steps):
            raise ValueError("optim.schedule=cosine needs an end: set optim.schedule_steps, stop.steps or stop.epochs.")
        if self.model.frames_ahead > 1 and self.optim.loss_steps == "last":
            raise ValueError(
                f"model.frames_ahead={self.model.frames_ahead} needs optim.loss_steps=all: behind a window's last step "
                "is only one frame."
            )
        for key in ("validate_every_epochs", "log_every_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: at least 1 is needed.")
        if self.name is not None and (not self.name or "/" in self.name or self.name.startswith(".")):
            raise ValueError(f"--name {self.name!r} can't be a folder's name.")

    @property
    def run_name(self) -> str:
        """The name, or what stands for it: the same all day, or all through a Slurm job and its requeues."""
        return self.name or f"{self.recipe}-{job_id() or date.today().isoformat()}"


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _open_dashboards(
    config: TrainConfig, data: SpeechData, run: RunFolder, baselines: dict[str, dict[str, Any]]
) -> WandbRun | None:
    """Return the W&B run, or none, with what it shows from the start."""
    wandb = replace(config.wandb, group=config.wandb.group or config.recipe)
    settings = {**config_to_dict(config), "mode": data.mode.name}
    opened = open_wandb(wandb, run.path, config.run_name, settings, job_type="train", notes=run.read_notes())
    if opened:
        opened.log({**baseline_lines(baselines), STEP: 0})
        opened.log_file(data.folder / MANIFEST, f"corpus-{data.folder.name}", "dataset")
    return opened


def _close_dashboards(wandb: WandbRun, config: TrainConfig, run: RunFolder, monitor: str, best: float) -> None:
    """Say how good it has become, send the best checkpoint where it is sent at once, and end W&B's process."""
    if run.checkpoint("best").is_file():
        wandb.summarize({monitor.replace("val/", "best/"): best})
        # Offline it would go with a later `wandb sync`, when a sweep may have removed it.
        if wandb.is_online:
            wandb.log_file(run.checkpoint("best"), f"{config.run_name}-best", "model")
    wandb.close(run.read_notes())


def _start_weights(module: BabbleModule, init_from: Path) -> None:
    """Load another run's weights into the module.

    Raises:
        FileNotFoundError, ValueError: no such run or checkpoint, or one of another shape.
    """
    path = init_from if init_from.is_file() else RunFolder(init_from).find_checkpoint("best")
    checkpoint = load_checkpoint(path)
    theirs, ours = checkpoint.get("hyper_parameters"), dict(module.hparams)
    if theirs != ours:
        raise ValueError(f"--init-from {init_from}: {path} is of another shape: {theirs} there, {ours} here.")
    module.load_state_dict(checkpoint["state_dict"], strict=False)


def _total_steps(config: TrainConfig, data: SpeechData, processes: int) -> int | None:
    """Return the step that the training ends at where epochs or steps say so, else None."""
    epoch_steps = -(-data.count_batches(processes) // config.compute.accumulate_batches)
    by_epochs = config.stop.epochs and config.stop.epochs * epoch_steps
    ends = [end for end in (by_epochs, config.stop.steps) if end]
    return min(ends) if ends else None


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Attributes:
        run: its folder.
        monitor: the metric that chooses the best checkpoint, "val/bits_per_frame" or "val/error_levels".
        best: its best value on the validation split.
        steps: optimizer steps done.
        frames: frames learned from in them, all processes together.
        weights: how many the network has.
        already_finished: whether there was nothing left to do.
    """

    run: Path
    monitor: str
    best: float
    steps: int
    frames: int
    weights: int
    already_finished: bool = False


def train(config: TrainConfig) -> TrainResult:
    """Train, or continue, the run that the config describes, to its end.

    Raises:
        FileNotFoundError, ValueError: settings, shards or a run folder that don't fit; nothing has been done then.
        CommandError: the run folder is in use, or no checkpoint of it is whole.
        Interrupted: stopped when asked; the same call goes on from there.
    """
    request = StopRequest()
    with request.watching(signal.SIGUSR1):
        return _train(config, find_topology(config.compute.devices, config.compute.nodes), request)


def _train(config: TrainConfig, topology: Topology, request: StopRequest) -> TrainResult:
    # The run folder names the numbers, so that it is not continued with others.
    compute = replace(config.compute, devices=topology.devices, nodes=topology.nodes)
    config = replace(config, compute=compute)
    data = SpeechData(config.data, config.seed)
    data.setup()
    pl.seed_everything(config.seed, verbose=False)
    module = BabbleModule(config.model, data.mode, config.optim, _total_steps(config, data, topology.world_size))
    if config.init_from:
        _start_weights(module, config.init_from)
    run = RunFolder(config.runs / config.run_name)
    # Other ranks are started by the first one, in the folder that it holds.
    with run.locked() if _is_first_rank() else contextlib.nullcontext():
        if _is_first_rank():
            run.claim(config_to_dict(config))
        if run.finished.is_file():
            return TrainResult(run.path, **json.loads(run.finished.read_text()), already_finished=True)
        if _is_first_rank():
            run.note_start()
        return _fit(config, topology, data, module, run, request)


def _fit(
    config: TrainConfig,
    topology: Topology,
    data: SpeechData,
    module: BabbleModule,
    run: RunFolder,
    request: StopRequest,
) -> TrainResult:
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    # Gradients that have all but vanished are denormal numbers: a CPU took eight times as long over a step of those.
    torch.set_flush_denormal(True)
    resumed_from, resumed_step = find_resume(run)
    metrics = MetricsFile(run.metrics)
    metrics.resume(resumed_step if resumed_from else 0)
    wandb = None
    if _is_first_rank():
        baselines = measure_baselines(
            [recording.frames for recording in data.train_recordings],
            [recording.frames for recording in data.validation_recordings],
            data.mode,
        )
        write_json(run.baselines, baselines)
        _say_what_starts(config, topology, data, module, run, baselines, resumed_step if resumed_from else None)
        wandb = _open_dashboards(config, data, run, baselines)

    checkpoints = Checkpoints(run, config.unfreezing, config.checkpoint_minutes, request)
    total_steps = _total_steps(config, data, topology.world_size)
    is_terminal = sys.stdout.isatty()
    samples = SampleWriter(config.samples, run, data.validation_recordings, data.mode, config.unfreezing, wandb)
    callbacks: list[pl.Callback] = [
        Unfreezing(config.unfreezing, module.model, config.before_unfreezing),
        LayerFigures(config.unfreezing),
        *([make_averaging(config.optim.ema_decay)] if config.optim.ema_decay else []),
        Speed(config.log_every_steps),
        samples,
        TQDMProgressBar() if is_terminal else PlainLines(config.unfreezing, config.stop.epochs, total_steps),
        checkpoints,
    ]
    if config.stop.steps:
        callbacks.append(StepLimit(config.stop.steps))
    if config.stop.patience:
        callbacks.append(EarlyStopping(module.monitor, patience=config.stop.patience, check_on_train_epoch_end=False))
    if config.stop.hours:
        callbacks.append(Timer({"hours": config.stop.hours}, verbose=False))  # type: ignore[dict-item]
    with warnings.catch_warnings():
        # Batches come ready-made from memory (data.py): loader workers would only copy them.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning 2.6 asks torch an old question; gone when it asks the new one.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        # On a login node, or in a batch script, a training may well be meant to be one without srun.
        warnings.filterwarnings("ignore", ".*srun. command is available.*")
        # Small epochs are meant; a row of figures comes every so many steps whatever the epochs.
        warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
        # Its other name is newer than the oldest torch that babble runs on.
        warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")
        # Its banner and tips say nothing of this run; what matters of it is said above.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        trainer = pl.Trainer(
            accelerator=config.compute.accelerator,
            devices=topology.devices,
            num_nodes=topology.nodes,
            # Lightning's own requeueing saves inside the signal handler, which deadlocks: slurm/train.sh requeues.
            plugins=[SLURMEnvironment(auto_requeue=False) if topology.is_started_by_srun else LightningEnvironment()],
            # No buffer changes in training, so none needs to be sent round before each step.
            strategy=DDPStrategy(broadcast_buffers=False, find_unused_parameters=config.before_unfreezing == "bypassed")
            if topology.world_size > 1
            else "auto",
            precision=config.compute.precision,  # type: ignore[arg-type]
            max_epochs=config.stop.epochs or -1,
            check_val_every_n_epoch=config.validate_every_epochs,
            log_every_n_steps=config.log_every_steps,
            accumulate_grad_batches=config.compute.accumulate_batches,
            gradient_clip_val=config.optim.clip_norm,
            logger=[metrics, Curves(wandb, baseline_lines(baselines))] if wandb else metrics,
            callbacks=callbacks,
            enable_progress_bar=is_terminal,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # The windows are dealt to the ranks by data.py.
            use_distributed_sampler=False,
            default_root_dir=run.path,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resumed_from, weights_only=True)
            steps = trainer.global_step
            if checkpoints.validated_step != steps:
                trainer.validate(module, datamodule=data, verbose=False)
            # Lightning does not, where a run goes on that had stopped right behind its last step.
            samples.on_train_end(trainer, module)
        finally:
            if wandb:
                _close_dashboards(wandb, config, run, module.monitor, checkpoints.best)
    weights = sum(parameter.numel() for parameter in module.parameters())
    result = {
        "monitor": module.monitor,
        "best": checkpoints.best,
        "steps": steps,
        "frames": data.frames_given * topology.world_size,
        "weights": weights,
    }
    if trainer.is_global_zero:
        write_json(run.finished, result)
        _report(run)
    return TrainResult(run.path, **result)  # type: ignore[arg-type]


def _report(run: RunFolder) -> None:
    try:
        write_report([run.path], run.report)
    # A page is not worth a training, whatever went wrong with it.
    except Exception as error:
        print(f"{run.report} could not be written: {error}\nTry: python -m babble.report {run.path}", file=sys.stderr)


def _say_what_starts(
    config: TrainConfig,
    topology: Topology,
    data: SpeechData,
    module: BabbleModule,
    run: RunFolder,
    baselines: dict[str, dict[str, float]],
    resumed_step: int | None,
) -> None:
    weights = sum(parameter.numel() for parameter in module.parameters())
    model = config.model
    figure = module.monitor.removeprefix("val/")
    lines = [
        f"{run.path}: " + ("a new run" if resumed_step is None else f"going on at step {resumed_step}"),
        f"  runs on {topology.world_size} process{'es' * (topology.world_size > 1)} on {topology.nodes} "
        f"node{'s' * (topology.nodes > 1)}, git revision {git_revision() or 'unknown'}",
        f"  hears   {data.folder}: {data.describe()}",
        f"  learns  {model.num_layers} {model.cell} layers of {model.units} units, {model.head} head, "
        f"{weights:,} weights",
        "  beside  " + ", ".join(f"{v[figure]:.3f} {name}" for name, v in baselines.items() if figure in v)
        + f" ({figure} of the held-out speech)",
    ]  # fmt: skip
    if config.unfreezing:
        stages = [f"{list(s.layers)} for {s.epochs or 'the rest of the'} epochs" for s in config.unfreezing]
        lines.append(f"  stages  layers {'; then '.join(stages)}")
    print("\n".join(lines), flush=True)


def _work(config: TrainConfig) -> None:
    try:
        result = train(config)
    except Interrupted:
        # All processes stop together, and the first speaks for them. Another's exit code might end it too early.
        if _is_first_rank():
            raise
        return
    if not _is_first_rank():
        return
    best = f"best {result.monitor} {result.best:.4f}"
    if result.already_finished:
        print(f"{result.run} is finished: {result.steps} steps, {best}. Nothing to do.")
    else:
        print(f"{result.run}: done after {result.steps} steps, {best} on held-out speech.")
    print(f"See and hear it: {RunFolder(result.run).report}")
    print(f"Hear more: python -m babble.generate {result.run} --seconds 60 --out babble.wav")


def main() -> None:
    """Run `python -m babble.train`."""
    run_command(TrainConfig, _work, "python -m babble.train")


if __name__ == "__main__":
    main()
