"""The settings of a training."""

from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Literal

from babble.codec.frames import TOKENS
from babble.data.loaders import DataConfig
from babble.model.babbler import ModelConfig
from babble.run_folder import RunFolder
from babble.training.module import OptimConfig
from babble.training.samples import SamplesConfig
from babble.training.topology import job_id
from babble.training.unfreezing import BeforeUnfreezing, Stage, check_stages
from babble.training.wandb_run import WandbConfig


@dataclass(frozen=True)
class StopConfig:
    """When a training ends: at the first of these limits.

    Attributes:
        epochs: Number of epochs.
        steps: Number of optimizer steps.
        hours: Hours of training, over all starts of the run.
        patience: Number of validations without an improvement.
    """

    epochs: int | None = None
    steps: int | None = None
    hours: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Validate the limits."""
        for key in ("epochs", "steps", "hours", "patience"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"stop.{key}={value}: must be above 0.")


@dataclass(frozen=True)
class ComputeConfig:
    """Processes, devices and precision.

    Attributes:
        accelerator: auto: a GPU if there is one, else the CPU.
        devices: Processes per node, each on its own GPU or sharing the CPU; if omitted, the number that Slurm started,
            else 1.
        nodes: Number of nodes; if omitted, the number that Slurm started on, else 1.
        precision: Number format of weights and computation; mixed formats compute in 16 bits where that is safe.
        accumulate_batches: Batches of each process per optimizer step, for large steps with little memory.
        threads: CPU threads per process; chosen by PyTorch if omitted.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = None
    nodes: int | None = None
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate_batches: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        """Validate the numbers."""
        for key in ("devices", "nodes", "accumulate_batches", "threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"compute.{key}={value}: must be at least 1.")


@dataclass(frozen=True)
class TrainConfig:
    """Train a network on shards of speech.

    Attributes:
        name: Name of the run, a folder in `runs`; recipe and date if omitted, under Slurm recipe and job id.
        recipe: First part of the default name, and the default W&B group; the name of the config file if omitted.
        runs: Folder of all runs.
        data: Dataset and windowing settings.
        model: Network architecture.
        optim: Optimizer settings.
        unfreezing: Stages, a list of {layers, epochs}; if empty, all layers are trained from the start.
        before_unfreezing: Layers that no stage has trained yet are in the forward pass with their initial weights
            (frozen, as in 2017), or left out of it (bypassed).
        stop: When the training ends.
        validate_every_epochs: Epochs between two validations; a training also validates at its end.
        samples: Audio generated during training.
        checkpoint_minutes: Minutes between two saves of last.ckpt, which is also saved at the end of each epoch.
        log_every_steps: Optimizer steps between two rows of metrics.jsonl.
        init_from: Run folder or checkpoint to take the initial weights from; unfreezing starts at its first stage.
        token_model: Run folder or checkpoint of a network trained on `data.tokens`, which chooses the tokens when this
            one generates.
        seed: Random seed of the initial weights and of the order of windows.
        compute: Processes, devices and precision.
        wandb: W&B settings.
    """

    name: str | None = None
    recipe: str = "train"
    runs: Path = Path("runs")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    unfreezing: tuple[Stage, ...] = ()
    before_unfreezing: BeforeUnfreezing = "frozen"
    stop: StopConfig = field(default_factory=StopConfig)
    validate_every_epochs: int = 1
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    checkpoint_minutes: float = 10.0
    log_every_steps: int = 50
    init_from: Path | None = None
    token_model: Path | None = None
    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        """Validate settings that depend on each other; fix the default name, and paths that depend on the folder."""
        check_stages(self.unfreezing, self.model.num_layers, self.before_unfreezing)
        if self.stop == StopConfig():
            raise ValueError("the training has no end: set stop.epochs, stop.steps, stop.hours or stop.patience.")
        if self.optim.schedule == "cosine" and not (self.optim.schedule_steps or self.stop.epochs or self.stop.steps):
            raise ValueError("optim.schedule=cosine needs an end: set optim.schedule_steps, stop.steps or stop.epochs.")
        if (self.data.tokens is None) != (self.token_model is None):
            raise ValueError("data.tokens and token_model belong together: set both, or neither.")
        if self.model.tokens and not self.data.tokens:
            raise ValueError(f"model.tokens={self.model.tokens} has no effect without data.tokens.")
        if self.data.tokens:
            object.__setattr__(self, "model", replace(self.model, tokens=int(TOKENS.levels[0])))
        if self.model.frames_ahead > 1 and self.optim.loss_steps == "last":
            raise ValueError(
                f"model.frames_ahead={self.model.frames_ahead} needs optim.loss_steps=all: only one frame follows the "
                "last step of a window."
            )
        for key in ("validate_every_epochs", "log_every_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1.")
        if self.name is None:
            # Once, not whenever it is asked for: a sweep or a long start may cross midnight.
            object.__setattr__(self, "name", default_name(self.recipe))
        elif not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"--name {self.name!r} can't be the name of a folder.")
        # Absolute, so that a run can be used from any folder.
        if self.data.shards:
            object.__setattr__(self, "data", replace(self.data, shards=self.data.shards.absolute()))
        if self.data.tokens:
            object.__setattr__(self, "data", replace(self.data, tokens=self.data.tokens.absolute()))
        for key in ("init_from", "token_model"):
            if path := getattr(self, key):
                object.__setattr__(self, key, path.absolute())

    @property
    def run(self) -> RunFolder:
        """The run's folder, runs/NAME."""
        return RunFolder(self.runs / str(self.name))


def default_name(recipe: str) -> str:
    """Return the name of a run or sweep without `--name`: recipe and Slurm job id, stable over requeues, or date."""
    return f"{recipe}-{job_id() or date.today().isoformat()}"
