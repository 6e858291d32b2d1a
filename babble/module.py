"""The LightningModule: joins model, cost and optimizer, and does nothing else."""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from babble.frames import Mode
from babble.model import Babbler, ModelConfig

SCHEDULES = ("constant", "cosine")
# Validation walks a recording in pieces of this many frames, state carried, so that memory stays flat.
PIECE_FRAMES = 1000


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are moved.

    Attributes:
        name: "nadam" (2017), "adamw", "rmsprop" or "sgd", each with PyTorch's defaults but for what is set here.
        lr: learning rate; None takes the optimizer's own default (nadam 0.002, adamw 0.001, rmsprop and sgd 0.01 and
            0.001).
        clip_norm: gradients are scaled down to this norm; None leaves them.
        schedule: "constant", or "cosine": falling to nothing at `schedule_steps`.
        warmup_steps: steps in which the learning rate rises from nothing.
        schedule_steps: where the cosine ends; None takes the training's last step, if epochs or steps say which.
        loss_steps: "all" learns from every step of a window; "last" only from its last, as 2017 did.
    """

    name: str = "nadam"
    lr: float | None = None
    clip_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    schedule_steps: int | None = None
    loss_steps: str = "all"

    def __post_init__(self) -> None:
        """Refuse unknown names and settings that nothing would obey."""
        choices = {"name": tuple(_OPTIMIZERS), "schedule": SCHEDULES, "loss_steps": ("all", "last")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"optim.{key}={getattr(self, key)!r} is none of {', '.join(allowed)}.")
        if self.schedule == "constant" and self.schedule_steps is not None:
            raise ValueError("optim.schedule_steps has no effect while optim.schedule=constant.")
        for key in ("lr", "clip_norm"):
            if getattr(self, key) is not None and getattr(self, key) <= 0:
                raise ValueError(f"optim.{key}={getattr(self, key)}: above 0 is needed.")


_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "nadam": torch.optim.NAdam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def lr_factor(step: int, config: OptimConfig, total_steps: int | None) -> float:
    """Return what the learning rate is multiplied with at a step counted from 0.

    Args:
        step: optimizer steps done.
        config: schedule and warm-up.
        total_steps: where a cosine reaches nothing; needed by "cosine" alone.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return warmup
    assert total_steps is not None
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * done))


class BabbleModule(pl.LightningModule):
    """Trains a Babbler.

    Logs `train/loss` in levels or bits a field; at validation `val/error_levels` and `val/error/GROUP`, and, where the
    head has a likelihood, `val/bits_per_frame` and `val/bits/GROUP`: over whole held-out recordings, state carried
    from each one's first frame, every frame but that first one counted.
    """

    cost_sums: Tensor

    def __init__(self, model: ModelConfig, mode: Mode, optim: OptimConfig, total_steps: int | None = None) -> None:
        super().__init__()
        # Plain values only: torch loads checkpoints with weights_only. It is what `load_model` builds from.
        self.save_hyperparameters({"model": asdict(model), "mode": mode.name})
        self.model = Babbler(model, mode)
        self.mode = mode
        self.optim = optim
        self.total_steps = optim.schedule_steps or total_steps
        self.register_buffer("cost_sums", torch.zeros(3, mode.num_fields, dtype=torch.float64), persistent=False)

    @property
    def headline(self) -> str:
        """The name of the figure that says which checkpoint is best."""
        return "val/bits_per_frame" if self.model.typed_head.has_likelihood else "val/error_levels"

    def training_step(self, windows_BTF: Tensor, batch_idx: int) -> Tensor:
        """Return the mean cost a field of one batch of windows."""
        frames_BTF = windows_BTF.long()
        hidden_BTH, _ = self.model(frames_BTF[:, :-1])
        targets_BTF = frames_BTF[:, 1:]
        if self.optim.loss_steps == "last":
            hidden_BTH, targets_BTF = hidden_BTH[:, -1:], targets_BTF[:, -1:]
        loss = self.model.typed_head.cost(hidden_BTH, targets_BTF).mean()
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's sums."""
        self.cost_sums.zero_()

    def validation_step(self, recording_BTF: Tensor, batch_idx: int) -> None:
        """Add one whole recording (1, T, F) to the sums, state carried through it."""
        self.cost_sums += sum_costs(self.model, recording_BTF.long())

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all ranks together."""
        sums = cast(Tensor, self.trainer.strategy.reduce(self.cost_sums, reduce_op="sum"))
        for name, value in held_out_figures(sums, self.model, self.mode).items():
            self.log(f"val/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule as a function of the step alone."""
        arguments: dict[str, Any] = {} if self.optim.lr is None else {"lr": self.optim.lr}
        optimizer = _OPTIMIZERS[self.optim.name](self.model.parameters(), **arguments)
        if self.optim.schedule == "constant" and not self.optim.warmup_steps:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.optim, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def sum_costs(model: Babbler, frames_BTF: Tensor) -> Tensor:
    """Return what predicting recordings costs, summed over all their frames but the first, float64 (3, F).

    Row 0 is the absolute error in levels of the head's best guess, row 1 its bits (zeros without a likelihood), row 2
    how many values were predicted. State is carried from the first frame to the last.
    """
    head = model.typed_head
    sums = torch.zeros(3, frames_BTF.shape[-1], dtype=torch.float64, device=frames_BTF.device)
    state = None
    for start in range(0, frames_BTF.shape[1] - 1, PIECE_FRAMES):
        piece = frames_BTF[:, start : start + PIECE_FRAMES + 1]
        hidden_BTH, state = model(piece[:, :-1], state)
        targets = piece[:, 1:]
        sums[0] += (head.guess(hidden_BTH) - targets).abs().double().sum(dim=(0, 1))
        if head.has_likelihood:
            sums[1] += head.cost(hidden_BTH, targets).double().sum(dim=(0, 1))
        sums[2] += targets.shape[0] * targets.shape[1]
    return sums


def held_out_figures(sums: Tensor, model: Babbler, mode: Mode) -> dict[str, float]:
    """Return the named figures of `sum_costs`: mean absolute error a field, bits a frame, and both by group."""
    error_F, bits_F = (sums[:2] / sums[2]).tolist()
    figures = {}
    if not mode.has_labels:
        figures["error_levels"] = sum(error_F) / len(error_F)
        for group in mode.groups:
            columns = mode.group_indices(group)
            figures[f"error/{group}"] = sum(error_F[f] for f in columns) / len(columns)
    if model.typed_head.has_likelihood:
        figures["bits_per_frame"] = sum(bits_F)
        for group in mode.groups:
            figures[f"bits/{group}"] = sum(bits_F[f] for f in mode.group_indices(group))
    return figures
