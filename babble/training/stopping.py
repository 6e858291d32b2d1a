"""When a training stops: on a signal, after a number of steps.

1. A signal handler only notes the signal (`babble.processes.StopRequest`). A checkpoint written inside it could be one
   of half a step, and deadlocks with several processes.
2. `Consensus`: all processes agree on a step after which to save or stop.
3. `Stopping` raises `Interrupted` there, after `LastCheckpoint` has saved. The same command resumes from there.
"""

import signal
import time
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from babble.cli import Interrupted
from babble.processes import StopRequest

# About this often, several processes ask each other whether to save or stop. Slurm leaves a job 120 s to stop.
CONSENSUS_SECONDS = 1.0
MAX_STEPS_APART = 100


class Consensus:
    """Decides for all processes together, after the same step, whether to save and whether to stop.

    One process decides after each step. Several need a reduction, which blocks until all of them have arrived, so they
    decide about once a second. The number of steps until the next decision comes from the slowest process, hence it is
    the same for all.

    Args:
        request: notes the signals that ask this process to stop.

    Attributes:
        signal: the signal by which a process was asked to stop, once all have agreed to stop; 0 before.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.signal = 0
        self._next_step = 0
        self._last: tuple[int, float] | None = None

    def poll(self, trainer: pl.Trainer, wants_to_save: bool) -> bool:
        """Return whether to save after this step; before the next common decision, False."""
        if trainer.world_size > 1 and trainer.global_step < self._next_step:
            return False
        return self.decide(trainer, wants_to_save)

    def decide(self, trainer: pl.Trainer, wants_to_save: bool) -> bool:
        """Return whether to save: some process wants to, or was asked to stop. All processes must call this."""
        now, step = time.monotonic(), trainer.global_step
        step_seconds = 0.0
        if self._last and step > self._last[0]:
            step_seconds = (now - self._last[1]) / (step - self._last[0])
        wishes = [float(wants_to_save), float(self.request.number or 0), step_seconds]
        should_save, number, step_seconds = _max_over_ranks(trainer, wishes)
        self.signal = int(number)
        self._last = step, now
        # Without a measurement yet, the next step.
        steps = int(CONSENSUS_SECONDS / step_seconds) if step_seconds else 1
        self._next_step = step + max(1, min(steps, MAX_STEPS_APART))
        return bool(should_save or self.signal)


def _max_over_ranks(trainer: pl.Trainer, numbers: list[float]) -> list[float]:
    if trainer.world_size == 1:
        return numbers
    mine = torch.tensor(numbers, device=trainer.strategy.root_device)
    return cast(torch.Tensor, trainer.strategy.reduce(mine, reduce_op="max")).tolist()


class Stopping(Checkpoint):
    """Stops the training when all processes have agreed to; must come after the callback that saves.

    It is a `Checkpoint` because Lightning calls those after all other callbacks.
    """

    def __init__(self, consensus: Consensus) -> None:
        self.consensus = consensus

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch for Ctrl-C and SIGTERM; not before, because Lightning installs its own SIGTERM handler."""
        self.consensus.request.watch(signal.SIGINT, signal.SIGTERM)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Stop within an epoch."""
        if self.consensus.signal:
            # Lightning logs the metrics of a step after this hook, which does not return.
            trainer._logger_connector.update_train_step_metrics()
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop at the end of an epoch."""
        if self.consensus.signal:
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        name = signal.Signals(self.consensus.signal).name
        raise Interrupted(
            f"stopped at step {trainer.global_step} by {name}; the same command resumes from there.",
            self.consensus.signal,
        )


class StepLimit(pl.Callback):
    """Ends the training after a number of optimizer steps.

    With Lightning's own `max_steps`, a run that resumes at the end of an epoch counts that epoch twice, so that stages
    and validations are late.

    Args:
        steps: over all starts of the run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End a run at once that was stopped after its last step."""
        self._end_if_done(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """End the training after its last step."""
        self._end_if_done(trainer)

    def _end_if_done(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True
