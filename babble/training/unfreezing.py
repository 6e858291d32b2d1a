"""Which layers learn at an epoch: a pure function, and the callback that obeys it.

2017 trained layer 1 for 60 epochs, layers 1 and 2 for the next 180, and layer 3 only from then on. A waiting layer
stays in the path, with the weights it has, or is left out until it wakes; input and head always learn.

The trap: freezing by `requires_grad` before DDP wraps the model and thawing later lets the ranks drift apart without a
word. Here every parameter requires grad all the time, and a waiting layer's gradients are dropped after the
all-reduce and before clipping. The optimizer then skips it and keeps no moments for it.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from babble.model.babbler import Babbler


@dataclass(frozen=True)
class Stage:
    """A part of the training in which the same layers learn.

    Attributes:
        layers: the recurrent layers that learn, counted from 1 at the bottom.
        epochs: how long; None, in the last stage only, for the rest of the training.
    """

    layers: tuple[int, ...]
    epochs: int | None = None


WAITING = ("frozen", "bypassed")


def check_stages(stages: tuple[Stage, ...], num_layers: int, waiting: str = "frozen") -> None:
    """Raise if no training can go by these stages.

    Args:
        stages: what the user typed.
        num_layers: how many layers there are.
        waiting: "frozen", a layer that has not woken yet is in the path with its first weights, as 2017; or "bypassed".

    Raises:
        ValueError: names the stage and what is wrong with it.
    """
    for number, stage in enumerate(stages, 1):
        unknown = [layer for layer in stage.layers if not 1 <= layer <= num_layers]
        if unknown or not stage.layers:
            raise ValueError(
                f"unfreezing: stage {number} has layers {list(stage.layers)}, but model.num_layers={num_layers}: name "
                f"at least one of 1 to {num_layers}."
            )
        is_last = number == len(stages)
        if (stage.epochs is None) != is_last or (stage.epochs is not None and stage.epochs < 1):
            raise ValueError(
                f"unfreezing: stage {number} of {len(stages)} has epochs={stage.epochs}: every stage but the last "
                "needs at least 1, and the last has none, as it lasts until the training stops."
            )
    if waiting not in WAITING:
        raise ValueError(f"before_unfreezing={waiting!r} is none of {', '.join(WAITING)}.")
    if waiting == "bypassed" and not (stages and 1 in stages[0].layers):
        raise ValueError(
            "before_unfreezing=skipped needs unfreezing stages of which the first has layer 1: without them no layer "
            "waits, and without the lowest layer nothing hears the input."
        )


def stage_at(epoch: int, stages: tuple[Stage, ...]) -> int:
    """Return the number of the stage, counted from 1, that an epoch, counted from 0, is in; 1 without stages."""
    ends = list(accumulate(stage.epochs or 0 for stage in stages[:-1]))
    return 1 + sum(epoch >= end for end in ends)


def unfrozen_layers(epoch: int, stages: tuple[Stage, ...], num_layers: int) -> tuple[int, ...]:
    """Return the layers that learn in an epoch, counted from 1 at the bottom; all of them without stages."""
    if not stages:
        return tuple(range(1, num_layers + 1))
    return stages[stage_at(epoch, stages) - 1].layers


def bypassed_layers(epoch: int, stages: tuple[Stage, ...], num_layers: int) -> frozenset[int]:
    """Return the layers, counted from 1, that have not learned in any stage up to an epoch's."""
    if not stages:
        return frozenset()
    woken = {layer for stage in stages[: stage_at(epoch, stages)] for layer in stage.layers}
    return frozenset(range(1, num_layers + 1)) - woken


class Unfreezing(pl.Callback):
    """Obeys `unfrozen_layers`: lets a waiting layer's gradients go before the optimizer sees them.

    Args:
        stages: what `check_stages` has let pass.
        model: the network; its `layers` are the stack, lowest first.
        waiting: "frozen" or "bypassed", see `check_stages`.
    """

    def __init__(self, stages: tuple[Stage, ...], model: Babbler, waiting: str) -> None:
        self.stages = stages
        self.model = model
        self.layers = model.layers
        self.waiting = waiting

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of every layer that waits."""
        learning = unfrozen_layers(trainer.current_epoch, self.stages, len(self.layers))
        for number, layer in enumerate(self.layers, 1):
            if number not in learning:
                for parameter in layer.parameters():
                    parameter.grad = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Leave out the layers that have not woken, where asked to; log the stage, to read every curve beside it."""
        # Not at an epoch's start: a run that goes on in the middle of one sees none.
        if self.waiting == "bypassed":
            self.model.bypassed = bypassed_layers(trainer.current_epoch, self.stages, len(self.layers))
        if self.stages:
            pl_module.log("train/stage", float(stage_at(trainer.current_epoch, self.stages)))
