"""Checkpoints of a run: which file is saved when, and what a resume restores.

    last.ckpt      all that a resume needs: every `checkpoint_minutes`, at the end of each epoch, and before a stop
    previous.ckpt  the last.ckpt before that, in case a kill damages last.ckpt
    best.ckpt      the weights with the lowest monitor
    stage-N.ckpt   the weights at the end of unfreezing stage N

A resumed run restores weights, optimizer, counters, the position in the order of windows (SpeechData), and each rank's
random and recurrent states. It ends with the same weights as an uninterrupted run; on a GPU, with
`compute.deterministic`.

Each file is replaced atomically, so a kill at any moment leaves a valid one. All callbacks are `Checkpoint`s because
Lightning calls those after the others, whose state is then saved too.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, WeightAveraging
from torch.optim import Optimizer

from babble.cli import CommandError
from babble.files import replacing
from babble.model.checkpoint import load_checkpoint
from babble.run_folder import RunFolder
from babble.training.config import Stage
from babble.training.stopping import Consensus
from babble.training.unfreezing import ends_stage, stage_at


def find_resume(run: RunFolder) -> tuple[Path | None, int]:
    """Return the checkpoint to resume from and its step; None and 0 for a new run.

    It is last.ckpt, or if that is missing or damaged, previous.ckpt. A damaged file is reported on stderr.

    Raises:
        CommandError: there are checkpoints, but all are damaged.
    """
    damaged = []
    for path in (run.checkpoint("last"), run.checkpoint("previous")):
        if not path.is_file():
            continue
        try:
            return path, load_checkpoint(path)["global_step"]
        except ValueError as error:
            damaged.append(str(error))
            print(f"{error}; the previous checkpoint is used.", file=sys.stderr, flush=True)
    if damaged:
        raise CommandError(f"{'; '.join(damaged)}. No valid checkpoint left; delete {run.path} to start over.")
    return None, 0


def save_checkpoint(trainer: pl.Trainer, path: Path, previous: Path | None = None, weights_only: bool = False) -> None:
    """Save a checkpoint atomically. All ranks must call this; the first one writes.

    Args:
        trainer: saves its own state.
        path: the file.
        previous: where the old file at `path` is kept; None to replace it.
        weights_only: save only what `build_model` needs: the averaged weights, if the training keeps an average.
    """
    # Lightning itself puts the average into a checkpoint that has everything, but not into one of weights only.
    weights = averaged_weights(trainer) if weights_only else contextlib.nullcontext()
    with weights, replacing(path) if trainer.is_global_zero else contextlib.nullcontext(path) as target:
        trainer.save_checkpoint(target, weights_only=weights_only)
        if previous and trainer.is_global_zero and path.is_file():
            path.replace(previous)


@contextlib.contextmanager
def averaged_weights(trainer: pl.Trainer) -> Iterator[None]:
    """Use the averaged weights inside the block, if the training keeps an average."""
    averagings = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for averaging in averagings:
        averaging._swap_models(trainer.lightning_module)
    yield
    for averaging in averagings:
        averaging._swap_models(trainer.lightning_module)


class RankState(Checkpoint):
    """Saves and restores the random states and the carried recurrent state of every rank, which Lightning does not."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Gather the states of all ranks."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        carried = pl_module.carried and [[tensor.cpu() for tensor in layer] for layer in pl_module.carried]
        mine = {"cpu": torch.get_rng_state(), "cuda": cuda, "carried": carried}
        states: list[Any] = [mine]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rank_states"] = states

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state until the training starts."""
        self.state = checkpoint["rank_states"][trainer.global_rank]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Restore this rank's state, after everything that uses random numbers before the first step."""
        if self.state is None:
            return
        for optimizer in trainer.optimizers:
            keep_numbers_on_host(optimizer)
        torch.set_rng_state(self.state["cpu"])
        if self.state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.state["cuda"])
        if self.state["carried"] is not None:
            device = pl_module.device
            pl_module.carried = [tuple(tensor.to(device) for tensor in layer) for layer in self.state["carried"]]


def keep_numbers_on_host(optimizer: Optimizer) -> None:
    """Move single numbers of the optimizer's state, such as NAdam's `mu_product`, to where a new optimizer has them.

    Lightning restores them on the GPU, where each read would wait for all that the GPU has still to do.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() == 0:
                state[key] = value.cpu()


class BestCheckpoint(Checkpoint):
    """Saves best.ckpt after each validation with a new lowest monitor.

    Attributes:
        best: lowest monitor so far.
        validated_step: step of the last validation, -1 before the first.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.best = math.inf
        self.validated_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return both attributes."""
        return {"best": self.best, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both attributes."""
        self.best, self.validated_step = state_dict["best"], state_dict["validated_step"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save a new best.

        Raises:
            CommandError: the monitor is not a number: the training diverged.
        """
        value = float(trainer.callback_metrics[pl_module.monitor])
        if not math.isfinite(value):
            raise CommandError(
                f"{pl_module.monitor} is not a number at step {trainer.global_step}: training diverged. Start over "
                "under another --name with a smaller optim.lr, or with optim.clip_norm."
            )
        self.validated_step = trainer.global_step
        if value < self.best:
            self.best = value
            save_checkpoint(trainer, self.run.checkpoint("best"), weights_only=True)


class StageCheckpoints(Checkpoint):
    """Saves stage-N.ckpt at the end of every unfreezing stage but the last."""

    def __init__(self, run: RunFolder, stages: tuple[Stage, ...]) -> None:
        self.run, self.stages = run, stages

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save if the stage ends with this epoch."""
        if ends_stage(trainer.current_epoch, self.stages):
            path = self.run.checkpoint(f"stage-{stage_at(trainer.current_epoch, self.stages)}")
            save_checkpoint(trainer, path, weights_only=True)


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt regularly, at the end of each epoch, and when the processes agree to stop.

    Lightning can resume within an epoch and at its end, but not between the last step and the validation: what is due
    there waits for the end of the epoch.

    Args:
        run: the run's folder.
        minutes: time between two saves within an epoch.
        consensus: decides for all processes.
    """

    def __init__(self, run: RunFolder, minutes: float, consensus: Consensus) -> None:
        self.run = run
        self.seconds = 60 * minutes
        self.consensus = consensus
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Save if it is time, or before a stop."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        is_last = batches >= trainer.num_training_batches or trainer.should_stop
        if is_last or batches % trainer.accumulate_grad_batches:
            return
        if self.consensus.poll(trainer, time.monotonic() - self.saved_at > self.seconds):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save, and ask whether to stop."""
        self.consensus.decide(trainer, wants_to_save=True)
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        save_checkpoint(trainer, self.run.checkpoint("last"), previous=self.run.checkpoint("previous"))
        self.saved_at = time.monotonic()
