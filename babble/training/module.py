"""The LightningModule: joins model, cost and optimizer, and does nothing else."""

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from babble.codec.frames import Mode
from babble.data.loaders import Batch
from babble.model.babbler import Babbler, ModelConfig
from babble.model.cells import State
from babble.model.likelihood import name_losses, sum_losses

SCHEDULES = ("constant", "cosine")
# The guesses of an autoregressive head are made field by field: of all windows they would take as long as the loss.
PREDICTED_WINDOWS = 4
# What each frame further ahead counts beside the next one.
AHEAD_WEIGHT = 0.1


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
        input_noise: share of the levels heard in training that are replaced by those of other frames, each field by
            itself, against drift when the network hears itself.
        ema_decay: also average the weights over the steps, each step's average keeping this share of the one before
            (0.999 or so); what is validated, heard and kept is the average. None for no average.
    """

    name: str = "nadam"
    lr: float | None = None
    clip_norm: float | None = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    schedule_steps: int | None = None
    loss_steps: str = "all"
    input_noise: float = 0.0
    ema_decay: float | None = None

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
        for key in ("input_noise", "ema_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"optim.{key}={value}: 0 or more and below 1 is needed.")


_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "nadam": torch.optim.NAdam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def is_logged(trainer: pl.Trainer) -> bool:
    """Return whether the step at hand is one whose figures are written: what only they need is made then alone."""
    return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


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
    from each one's first frame, every frame but that first one counted. The same of batches, as `train/...`, where a
    row of figures is written.
    """

    def __init__(self, model: ModelConfig, mode: Mode, optim: OptimConfig, total_steps: int | None = None) -> None:
        super().__init__()
        # Plain values only: torch loads checkpoints with weights_only. It is what `load_model` builds from.
        self.save_hyperparameters({"model": asdict(model), "mode": mode.name})
        self.model = Babbler(model, mode)
        self.mode = mode
        self.optim = optim
        self.total_steps = optim.schedule_steps or total_steps
        # The streams' state after the last batch, and the held-out costs so far. No buffers: neither is a weight.
        self.carried: list[State] | None = None
        self.loss_sums = torch.empty(0)

    @property
    def monitor(self) -> str:
        """The name of the figure that says which checkpoint is best."""
        return "val/bits_per_frame" if self.model.head.has_likelihood else "val/error_levels"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cost a field of one batch of windows, or of one piece of every stream."""
        frames_BTF = batch.frames.long()
        heard_BTF = replace_levels(frames_BTF[:, :-1], self.optim.input_noise)
        hidden_BTH, after = self.model(heard_BTF, self._state_before(batch.starts))
        self.carried = [tuple(tensor.detach() for tensor in layer) for layer in after]
        targets_BTF = frames_BTF[:, 1:]
        if self.optim.loss_steps == "last":
            hidden_BTH, targets_BTF = hidden_BTH[:, -1:], targets_BTF[:, -1:]
        loss_BTF = self.model.head.loss(hidden_BTH, targets_BTF)
        loss = loss_BTF.mean()
        # Of all processes: the loss curve does not depend on their number.
        self.log("train/loss", loss, sync_dist=True)
        for further, head in enumerate(self.model.heads_ahead, 1):
            cost = head.loss(hidden_BTH[:, :-further], targets_BTF[:, further:]).mean()
            self.log(f"train/loss_ahead_{further + 1}", cost, sync_dist=True)
            loss = loss + AHEAD_WEIGHT * cost
        if is_logged(self.trainer):
            self._log_losses(hidden_BTH, targets_BTF, loss_BTF)
        return loss

    @torch.no_grad()
    def _log_losses(self, hidden_BTH: Tensor, targets_BTF: Tensor, loss_BTF: Tensor) -> None:
        """Log what the batch costs in total and by group, of all processes; the error of its first windows alone."""
        head, few = self.model.head, slice(PREDICTED_WINDOWS)
        # Of weights that run away the validation tells.
        with np.errstate(all="ignore"):
            error_F = (head.predict(hidden_BTH[few]) - targets_BTF[few]).abs().mean(dim=(0, 1))
        bits_F = loss_BTF.mean(dim=(0, 1)) if head.has_likelihood else torch.zeros_like(error_F)
        sums = torch.stack([error_F, bits_F, torch.ones_like(error_F)])
        sums = cast(Tensor, self.trainer.strategy.reduce(sums, reduce_op="sum"))
        for name, value in name_losses(sums, self.model, self.mode).items():
            self.log(f"train/{name}", value)

    def _state_before(self, starts_B: Tensor) -> list[State] | None:
        """Return the state that a batch goes on from: the last batch's, afresh where the batch says so."""
        if self.carried is None or bool(starts_B.all()):
            return None
        fresh = self.model.initial_state(len(starts_B))
        return [
            tuple(torch.where(starts_B[:, None], new, old) for new, old in zip(new_layer, old_layer, strict=True))
            for new_layer, old_layer in zip(fresh, self.carried, strict=True)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the layers that are left out, without which the weights say something else."""
        checkpoint["bypassed_layers"] = sorted(self.model.bypassed)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's sums."""
        self.loss_sums = torch.zeros(3, self.mode.num_fields, dtype=torch.float64, device=self.device)

    def validation_step(self, recording_BTF: Tensor, batch_idx: int) -> None:
        """Add one whole recording (1, T, F) to the sums, state carried through it."""
        self.loss_sums += sum_losses(self.model, recording_BTF.long())

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all ranks together."""
        sums = cast(Tensor, self.trainer.strategy.reduce(self.loss_sums, reduce_op="sum"))
        for name, value in name_losses(sums, self.model, self.mode).items():
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


def replace_levels(frames_BTF: Tensor, share: float) -> Tensor:
    """Return frames in which this share of the levels are those of random other frames of the batch, same field."""
    if not share:
        return frames_BTF
    flat_NF = frames_BTF.flatten(0, 1)
    other_NF = flat_NF[torch.randint(len(flat_NF), (len(flat_NF),), device=flat_NF.device)]
    is_replaced = torch.rand(flat_NF.shape, device=flat_NF.device) < share
    return torch.where(is_replaced, other_NF, flat_NF).view_as(frames_BTF)
