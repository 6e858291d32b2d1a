"""The average of the weights over the steps, and hearing it: what `optim.ema_decay` asks for.

Lightning's own callback keeps it, validates it, and puts it into checkpoints as the weights; see `OptimConfig`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging


def make_averaging(decay: float) -> EMAWeightAveraging:
    """Return the callback that averages from the first step on, each step keeping `decay` of the average before."""
    return EMAWeightAveraging(decay=decay, use_buffers=False)


@contextmanager
def averaged_weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Put the average in the weights' place meanwhile, where one is kept."""
    keepers = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for keeper in keepers:
        keeper._swap_models(pl_module)
    yield
    for keeper in keepers:
        keeper._swap_models(pl_module)
