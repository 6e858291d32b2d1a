"""Checkpoints of a run, and stopping it when asked: what makes a training survive.

1. A signal handler sets a flag (`StopRequest`) and does nothing else.
2. Between two steps `Checkpoints` saves when it is time or when asked, and then stops.
3. A later start takes up weights, moments, counters, the place in the order of windows (data.py), and each rank's
   random state and streams, and ends with the weights of a training that never stopped.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from babble.cli import CommandError, Interrupted
from babble.model.checkpoint import load_checkpoint
from babble.run_folder import RunFolder
from babble.training.unfreezing import Stage, stage_at


class StopRequest:
    """Remembers that somebody asked the training to stop; a signal handler does nothing else.

    A checkpoint written inside a handler could be one of half a step, and under DDP deadlocks.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        # Asked twice from a keyboard: at once, then, and go on from the last checkpoint. Slurm repeats its signals.
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        if self.number is None:
            self.number = number
            more = "; once more to stop at once" if number == signal.SIGINT else ""
            print(f"\n{signal.Signals(number).name}: stopping after this step{more}", file=sys.stderr, flush=True)

    def watch(self, *numbers: signal.Signals) -> None:
        """Watch for these signals from now on, inside `watching`; outside the main thread Python lets nobody."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def watching(self, *numbers: signal.Signals) -> Iterator[None]:
        """Watch for these signals, and put the handlers of before back at the end, those of `watch` too."""
        self.watch(*numbers)
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}


def find_resume(run: RunFolder) -> tuple[Path | None, int]:
    """Return the checkpoint that a run goes on from, and its step; None and 0 for a new run.

    It is last.ckpt, or where that is damaged or was just being replaced, previous.ckpt; a damaged one is told of.

    Raises:
        CommandError: there are checkpoints, but none is whole.
    """
    damaged = []
    for path in (run.checkpoint("last"), run.checkpoint("previous")):
        if not path.is_file():
            continue
        try:
            return path, load_checkpoint(path)["global_step"]
        except ValueError as error:
            damaged.append(str(error))
            print(f"{error}; the one before is taken.", file=sys.stderr, flush=True)
    if damaged:
        raise CommandError(f"{'; '.join(damaged)}. No other is left: delete {run.path} to begin anew.")
    return None, 0


class StepLimit(pl.Callback):
    """Ends the training after so many optimizer steps.

    Not Lightning's own `max_steps`: with it, a run that goes on from an epoch's end counts that epoch twice, and its
    stages and validations come late.

    Args:
        steps: of the run, all its starts together.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End a run at once that had stopped right behind its last step."""
        self._end_if_done(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """End it here if this was the last."""
        self._end_if_done(trainer)

    def _end_if_done(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class Checkpoints(Checkpoint):
    """Keeps last.ckpt, best.ckpt and stage-N.ckpt, and stops the training between two steps when asked to.

    last.ckpt, and previous.ckpt, the last but one, hold all that a resume needs; the others the weights. Each is
    written whole and renamed, so a kill at any moment leaves a good one. Lightning calls a `Checkpoint` after all other
    callbacks, whose state is thus in it.

    Lightning can resume from a save in the middle of an epoch and from one at its end, not from one between the last
    step and the validation: what is due there waits until the epoch's end.

    Args:
        run: the run's folder.
        stages: the unfreezing, whose stages' weights are kept.
        minutes: how often last.ckpt is renewed within an epoch.
        request: where the wish to stop shows.
    """

    def __init__(self, run: RunFolder, stages: tuple[Stage, ...], minutes: float, request: StopRequest) -> None:
        self.run = run
        self.stages = stages
        self.seconds = 60 * minutes
        self.request = request
        self.best = math.inf
        self.validated_step = -1
        self.saved_at = time.monotonic()
        self.rank_state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far."""
        return {"best": self.best, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best figure up."""
        self.best = state_dict["best"]
        self.validated_step = state_dict["validated_step"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add every rank's random state and its streams' state, which Lightning leaves out."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        carried = pl_module.carried and [[tensor.cpu() for tensor in layer] for layer in pl_module.carried]
        mine = {"cpu": torch.get_rng_state(), "cuda": cuda, "carried": carried}
        states: list[Any] = [mine]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rank_states"] = states

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's state for the start."""
        self.rank_state = checkpoint["rank_states"][trainer.global_rank]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch for signals, and set this rank's state, after all that draws random numbers on the way here."""
        # Not before: Lightning sets a SIGTERM handler of its own after `on_fit_start`.
        self.request.watch(signal.SIGINT, signal.SIGTERM)
        if self.rank_state is None:
            return
        torch.set_rng_state(self.rank_state["cpu"])
        if self.rank_state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.rank_state["cuda"])
        if self.rank_state["carried"] is not None:
            device = pl_module.device
            pl_module.carried = [tuple(tensor.to(device) for tensor in layer) for layer in self.rank_state["carried"]]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Save when it is time or when asked to stop; then stop."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        is_last = batches >= trainer.num_training_batches or trainer.should_stop
        if is_last or batches % trainer.accumulate_grad_batches:
            return
        is_asked = self._is_asked(trainer)
        if is_asked or self._agree(trainer, time.monotonic() - self.saved_at > self.seconds):
            self._save(trainer, "last")
        if is_asked:
            # Lightning logs a step's figures after this hook, which is not going to return.
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the best weights.

        Raises:
            CommandError: the figure is not a number: the weights have run away.
        """
        figure = float(trainer.callback_metrics[pl_module.monitor])
        if math.isnan(figure):
            raise CommandError(
                f"{pl_module.monitor} is not a number at step {trainer.global_step}: the weights have run away. Begin "
                "anew with a smaller optim.lr, or with optim.clip_norm."
            )
        self.validated_step = trainer.global_step
        if figure < self.best:
            self.best = figure
            self._save(trainer, "best", weights_only=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the weights of a stage that ends, and save."""
        stages, epoch = self.stages, trainer.current_epoch
        stage = stage_at(epoch, stages)
        if stages and stage != stage_at(epoch + 1, stages):
            self._save(trainer, f"stage-{stage}", weights_only=True)
        self._save(trainer, "last")
        if self._is_asked(trainer):
            self._stop(trainer)

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        return self._agree(trainer, self.request.number is not None)

    @staticmethod
    def _agree(trainer: pl.Trainer, wish: bool) -> bool:
        """Return whether any rank wishes it: saving and stopping are done by all ranks after the same step."""
        return trainer.strategy.reduce_boolean_decision(wish, all=False)

    def _stop(self, trainer: pl.Trainer) -> None:
        # Another process may be the one that was asked.
        mine = torch.tensor(self.request.number or 0, device=trainer.strategy.root_device)
        asked = int(trainer.strategy.reduce(mine, reduce_op="max")) or signal.SIGINT
        raise Interrupted(
            f"stopped at step {trainer.global_step} by {signal.Signals(asked).name}; the same command goes on from "
            "there.",
            asked,
        )

    def _save(self, trainer: pl.Trainer, which: str, weights_only: bool = False) -> None:
        path = self.run.checkpoint(which)
        temporary = path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary, weights_only=weights_only)
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if which == "last" and path.is_file():
                path.replace(self.run.checkpoint("previous"))
            temporary.replace(path)
        self.saved_at = time.monotonic()
