"""The settings of a training."""

from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Literal

from babble.codec.frames import TOKENS
from babble.data.config import DataConfig
from babble.model.config import ModelConfig
from babble.run_folder import RunFolder
from babble.training.topology import job_id
from babble.training.wandb_run import WandbConfig

Precision = Literal["auto", "32-true", "64-true", "bf16-mixed", "16-mixed"]
BeforeUnfreezing = Literal["frozen", "bypassed"]
# A century; Python's and Lightning's clocks end at some length.
MAX_HOURS = 1_000_000


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer settings.

    Attributes:
        name: Optimizer, with PyTorch's defaults except for the settings here. nadam was used in 2017.
        lr: Learning rate; if omitted, the optimizer's own default (nadam 0.002, adamw 0.001, rmsprop 0.01, sgd 0.001).
        clip_norm: Maximum norm of the gradients; null for no clipping.
        schedule: Learning rate after the warm-up. cosine: falls to zero at `schedule_steps`.
        warmup_steps: Steps in which the learning rate rises linearly to `lr`.
        schedule_steps: Step at which the cosine reaches zero; if omitted, the last step of the training.
        loss_steps: Steps of a window that the loss includes. last: only the last one, as in 2017.
        input_noise: Share of the input levels that are replaced in training by levels of the same field from random
            other frames; makes free running more stable.
        ema_decay: Decay of an exponential moving average of the weights, e.g. 0.999. Validation, samples and
            checkpoints use the average. Null for none.
    """

    name: Literal["nadam", "adamw", "rmsprop", "sgd"] = "nadam"
    lr: float | None = None
    clip_norm: float | None = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    schedule_steps: int | None = None
    loss_steps: Literal["all", "last"] = "all"
    input_noise: float = 0.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        """Validate the numbers; reject settings without effect."""
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps={self.warmup_steps}: must be at least 0.")
        if self.schedule_steps is not None:
            if self.schedule == "constant":
                raise ValueError("optim.schedule_steps has no effect with optim.schedule=constant.")
            if self.schedule_steps <= self.warmup_steps:
                raise ValueError(
                    f"optim.schedule_steps={self.schedule_steps}: must be above optim.warmup_steps={self.warmup_steps}."
                )
        for key in ("lr", "clip_norm"):
            if getattr(self, key) is not None and getattr(self, key) <= 0:
                raise ValueError(f"optim.{key}={getattr(self, key)}: must be above 0.")
        for key in ("input_noise", "ema_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"optim.{key}={value}: must be at least 0 and below 1.")


@dataclass(frozen=True)
class Stage:
    """A part of the training with the same trained layers.

    Attributes:
        layers: Trained recurrent layers, counted from 1 at the bottom; none: only input layer and head are trained.
        epochs: Length; omitted in the last stage, and only there.
    """

    layers: tuple[int, ...]
    epochs: int | None = None


def check_stages(stages: tuple[Stage, ...], num_layers: int, before_unfreezing: BeforeUnfreezing = "frozen") -> None:
    """Validate unfreezing stages.

    Raises:
        ValueError: names the stage and what is wrong with it.
    """
    for number, stage in enumerate(stages, 1):
        unknown = [layer for layer in stage.layers if not 1 <= layer <= num_layers]
        if unknown:
            raise ValueError(
                f"unfreezing: stage {number} has layers {list(stage.layers)}, but model.num_layers={num_layers}: "
                f"expected layers from 1 to {num_layers}."
            )
        is_last = number == len(stages)
        if (stage.epochs is None) != is_last or (stage.epochs is not None and stage.epochs < 1):
            raise ValueError(
                f"unfreezing: stage {number} of {len(stages)} has epochs={stage.epochs}: every stage but the last "
                "needs at least 1; the last has none, it lasts to the end of the training."
            )
    if before_unfreezing == "bypassed" and not (stages and 1 in stages[0].layers):
        raise ValueError(
            "before_unfreezing=bypassed needs unfreezing stages, the first of them with layer 1: without stages it has "
            "no effect, and without the lowest layer nothing would receive the input."
        )


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
        if self.hours is not None and not self.hours < MAX_HOURS:
            raise ValueError(f"stop.hours={self.hours}: must be below {MAX_HOURS:,}; omit it for no limit.")


@dataclass(frozen=True)
class SamplesConfig:
    """Audio generated during training.

    Attributes:
        every_epochs: Epochs between two sets of samples; 0 for none. There are always samples at the end of each
            unfreezing stage and of the training.
        prompts: Number of validation prompts that are continued.
        prompt_frames: Length of the prompts. If all validation recordings are shorter, half of the longest one.
        frames: Number of generated frames per prompt.
        temperature: Sampling temperature, for heads with a likelihood; below 1 sharpens, above 1 flattens.
    """

    every_epochs: int = 20
    prompts: int = 3
    prompt_frames: int = 200
    frames: int = 400
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Validate the numbers."""
        # Plots show each frame against the next one.
        for key, least in (("prompts", 1), ("prompt_frames", 1), ("frames", 2)):
            if getattr(self, key) < least:
                raise ValueError(f"samples.{key}={getattr(self, key)}: must be at least {least}.")
        if self.every_epochs < 0:
            raise ValueError(f"samples.every_epochs={self.every_epochs}: must be at least 0.")
        if self.temperature <= 0:
            raise ValueError(f"samples.temperature={self.temperature}: must be above 0.")


@dataclass(frozen=True)
class ComputeConfig:
    """Processes, devices and precision.

    Attributes:
        accelerator: auto: a GPU if there is one, else the CPU.
        devices: Processes per node, each on its own GPU or sharing the CPU; if omitted, the number that Slurm started,
            else 1.
        nodes: Number of nodes; if omitted, the number that Slurm started on, else 1.
        precision: Number format of weights and computation; mixed formats compute in 16 bits where that is safe. auto:
            bf16-mixed where the GPU or the CPU has units for it, else 32-true; config.yaml holds which.
        accumulate_batches: Batches of each process per optimizer step, for large steps with little memory.
        threads: CPU threads per process; chosen by PyTorch if omitted.
        deterministic: On a GPU, only use kernels that give the same bits each time, so that a resumed run ends with the
            weights of an uninterrupted one, as it always does on a CPU. Slower. It matters for the workspaces of
            cuBLAS, which cuDNN's LSTM and GRU use too, and for the mixture head, whose gradient is added atomically.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = None
    nodes: int | None = None
    precision: Precision = "32-true"
    accumulate_batches: int = 1
    threads: int | None = None
    deterministic: bool = False

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
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"checkpoint_minutes={self.checkpoint_minutes}: must be at least 0.")
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
