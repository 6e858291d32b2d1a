"""Which layers are trained in an epoch: pure functions of the epoch, and the callback that applies them.

    unfreezing: [{layers: [1], epochs: 60}, {layers: [1, 2], epochs: 180}, {layers: [3]}]    # as in 2017

A layer that no stage has trained yet is either frozen, i.e. in the forward pass with its initial weights, or bypassed,
i.e. left out of it. Input layer and head are always trained.

Freezing with `requires_grad` before DDP wraps the model, and unfreezing later, lets the ranks drift apart silently.
Here every parameter requires a gradient all the time. Gradients of frozen layers are set to None after the all-reduce
and before clipping, so that the optimizer skips them and keeps no moments.
"""

from itertools import accumulate
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from babble.model.babbler import Babbler
from babble.training.config import BeforeUnfreezing, Stage
from babble.training.module import is_logged


def stage_at(epoch: int, stages: tuple[Stage, ...]) -> int:
    """Return the number of an epoch's stage, counted from 1; epochs are counted from 0. Without stages it is 1."""
    ends = list(accumulate(stage.epochs or 0 for stage in stages[:-1]))
    return 1 + sum(epoch >= end for end in ends)


def ends_stage(epoch: int, stages: tuple[Stage, ...]) -> bool:
    """Return whether an epoch, counted from 0, is the last one of its stage; False in the last stage."""
    return stage_at(epoch, stages) != stage_at(epoch + 1, stages)


def unfrozen_layers(epoch: int, stages: tuple[Stage, ...], num_layers: int) -> tuple[int, ...]:
    """Return the layers that are trained in an epoch, counted from 1 at the bottom; without stages all of them."""
    if not stages:
        return tuple(range(1, num_layers + 1))
    return stages[stage_at(epoch, stages) - 1].layers


def bypassed_layers(epoch: int, stages: tuple[Stage, ...], num_layers: int) -> frozenset[int]:
    """Return the layers, counted from 1, that no stage up to this epoch has trained."""
    if not stages:
        return frozenset()
    trained = {layer for stage in stages[: stage_at(epoch, stages)] for layer in stage.layers}
    return frozenset(range(1, num_layers + 1)) - trained


class Unfreezing(pl.Callback):
    """Trains only the layers of `unfrozen_layers`: drops the gradients of the others before the optimizer step.

    Args:
        stages: validated by `check_stages`.
        model: the network; its `layers` are the stack, lowest first.
        before_unfreezing: "frozen" or "bypassed".
    """

    def __init__(self, stages: tuple[Stage, ...], model: Babbler, before_unfreezing: BeforeUnfreezing) -> None:
        self.stages = stages
        self.model = model
        self.layers = model.layers
        self.before_unfreezing = before_unfreezing

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of frozen layers."""
        trained = unfrozen_layers(trainer.current_epoch, self.stages, len(self.layers))
        for number, layer in enumerate(self.layers, 1):
            if number not in trained:
                for parameter in layer.parameters():
                    parameter.grad = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Bypass layers if asked to; log the stage."""
        # Not at the start of an epoch: a run that resumes within an epoch has no such event.
        if self.before_unfreezing == "bypassed":
            self.model.bypassed = bypassed_layers(trainer.current_epoch, self.stages, len(self.layers))
        if self.stages and is_logged(trainer):
            pl_module.log("train/stage", float(stage_at(trainer.current_epoch, self.stages)))
