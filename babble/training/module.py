"""The LightningModule: joins model, loss and optimizer."""

import math
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from babble.codec.frames import Mode
from babble.data.loaders import Batch
from babble.model.babbler import Babbler
from babble.model.cells import State
from babble.model.config import ModelConfig
from babble.model.likelihood import name_losses, sum_losses
from babble.training.config import OptimConfig

# Predictions of the autoregressive head are made field by field: for all windows they would take as long as the loss.
PREDICTED_WINDOWS = 4
# Weight of the loss of each frame further ahead, relative to the next frame's.
AHEAD_WEIGHT = 0.1


_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "nadam": torch.optim.NAdam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def is_logged(trainer: pl.Trainer) -> bool:
    """Return whether the metrics of the current step are logged; some are computed only then."""
    return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def lr_factor(step: int, config: OptimConfig, total_steps: int | None) -> float:
    """Return the factor of the learning rate at a step, counted from 0.

    Args:
        step: optimizer steps done.
        config: schedule and warm-up.
        total_steps: where a cosine reaches zero; not needed for a constant schedule.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "constant":
        return warmup
    assert total_steps is not None
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * done))


class BabbleModule(pl.LightningModule):
    """Trains a Babbler.

    Logs `train/loss`, in bits per field or in levels. At validation, over whole recordings with the state carried from
    the first frame on: `val/error_levels` and `val/error/GROUP`, and for heads with a likelihood `val/bits_per_frame`
    and `val/bits/GROUP`. The same of the training batch as `train/...`, and `train/lr`, every `log_every_n_steps`.

    Args:
        model: network architecture.
        mode: Codec 2 mode of the frames.
        optim: optimizer settings.
        total_steps: last step of the training, where a cosine schedule ends; None if unknown.
    """

    def __init__(self, model: ModelConfig, mode: Mode, optim: OptimConfig, total_steps: int | None = None) -> None:
        super().__init__()
        # Only plain values: torch loads checkpoints with weights_only. `build_model` reads them.
        self.save_hyperparameters({"model": asdict(model), "mode": mode.name})
        self.model = Babbler(model, mode)
        self.mode = mode
        self.optim = optim
        self.total_steps = optim.schedule_steps or total_steps
        # The recurrent state after the last batch, its loss in this process, and the sums of this validation. Not
        # buffers: they are not weights.
        self.carried: list[State] | None = None
        self.latest_loss: Tensor | None = None
        self.loss_sums = torch.empty(0)

    @property
    def monitor(self) -> str:
        """The name of the metric that chooses the best checkpoint; lower is better."""
        return "val/bits_per_frame" if self.model.head.has_likelihood else "val/error_levels"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss per field of a batch of windows, or of one chunk of every stream."""
        inputs_BTF, context_BTC, targets_BTF = self.model.split(batch.frames.long())
        inputs_BTF = replace_levels(inputs_BTF, self.optim.input_noise)
        hidden_BTH, after = self.model(inputs_BTF, self._state_before(batch.starts), context_BTC)
        self.carried = [tuple(tensor.detach() for tensor in layer) for layer in after]
        if self.optim.loss_steps == "last":
            hidden_BTH, targets_BTF = hidden_BTH[:, -1:], targets_BTF[:, -1:]
        loss_BTF = self.model.head.loss(hidden_BTH, targets_BTF)
        loss = loss_BTF.mean()
        losses = {"train/loss": loss}
        self.latest_loss = loss.detach()
        for further, head in enumerate(self.model.heads_ahead, 1):
            loss_ahead = head.loss(hidden_BTH[:, :-further], targets_BTF[:, further:]).mean()
            losses[f"train/loss_ahead_{further + 1}"] = loss_ahead
            loss = loss + AHEAD_WEIGHT * loss_ahead
        if is_logged(self.trainer):
            # Over all processes, so that the loss curve does not depend on their number.
            self.log_dict(losses, sync_dist=True)
            self._log_batch(hidden_BTH, targets_BTF, loss_BTF)
        return loss

    @torch.no_grad()
    def _log_batch(self, hidden_BTH: Tensor, targets_BTF: Tensor, loss_BTF: Tensor) -> None:
        """Log learning rate, and losses in total and by group over all processes; the error only of a few windows."""
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        head, few = self.model.head, slice(PREDICTED_WINDOWS)
        # If the training diverges, the next validation reports it.
        with np.errstate(all="ignore"):
            error_F = (head.predict(hidden_BTH[few]) - targets_BTF[few]).abs().mean(dim=(0, 1))
        bits_F = loss_BTF.mean(dim=(0, 1)) if head.has_likelihood else torch.zeros_like(error_F)
        sums = torch.stack([error_F, bits_F, torch.ones_like(error_F)])
        sums = cast(Tensor, self.trainer.strategy.reduce(sums, reduce_op="sum"))
        for name, value in name_losses(sums, self.model, self.mode).items():
            self.log(f"train/{name}", value)

    def _state_before(self, starts_B: Tensor) -> list[State] | None:
        """Return the recurrent state before a batch: the one after the last batch, except for rows that start anew."""
        if self.carried is None:
            return None
        # Also if all rows start anew: to ask whether they do would wait for a GPU.
        fresh = self.model.initial_state(len(starts_B))
        return [
            tuple(torch.where(starts_B[:, None], new, old) for new, old in zip(new_layer, old_layer, strict=True))
            for new_layer, old_layer in zip(fresh, self.carried, strict=True)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the bypassed layers: without them, the same weights are another network."""
        checkpoint["bypassed_layers"] = sorted(self.model.bypassed)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        self.loss_sums = torch.zeros(3, self.mode.num_fields, dtype=torch.float64, device=self.device)

    def validation_step(self, recording_BTF: Tensor, batch_idx: int) -> None:
        """Add one whole recording (1, T, F) to the sums, with the state carried through it."""
        self.loss_sums += sum_losses(self.model, recording_BTF.long())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all ranks together."""
        sums = cast(Tensor, self.trainer.strategy.reduce(self.loss_sums, reduce_op="sum"))
        for name, value in name_losses(sums, self.model, self.mode).items():
            self.log(f"val/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule as a function of the step."""
        arguments: dict[str, Any] = {} if self.optim.lr is None else {"lr": self.optim.lr}
        optimizer = _OPTIMIZERS[self.optim.name](self.model.parameters(), **arguments)
        if self.optim.schedule == "constant" and not self.optim.warmup_steps:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, self.optim, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def replace_levels(frames_BTF: Tensor, share: float) -> Tensor:
    """Return frames with this share of the levels replaced by the same field's level in a random frame of the batch."""
    if not share:
        return frames_BTF
    flat_NF = frames_BTF.flatten(0, 1)
    other_NF = flat_NF[torch.randint(len(flat_NF), (len(flat_NF),), device=flat_NF.device)]
    is_replaced = torch.rand(flat_NF.shape, device=flat_NF.device) < share
    return torch.where(is_replaced, other_NF, flat_NF).view_as(frames_BTF)
