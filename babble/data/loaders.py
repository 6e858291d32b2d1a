"""Training batches: a plan (which frames) and a frame source (where to read them) -> tensors.

    share = Share(config.batch_size, seed, rank, world_size)
    plan = WindowPlan(lengths, config.window_frames, config.frames_between_windows, share)
    loader = Loader(plan, HeldFrames(frames), config.window_frames + 1, config.windows_per_epoch)
    for batch in loader: ...    # one epoch

plans.py has the orders of windows and streams, streaming.py the source for training splits larger than memory.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from babble.data.plans import Plan

# Number of shards whose windows are shuffled together by default: some hours of speech.
SHUFFLE_SHARDS = 8


class Batch(NamedTuple):
    """The input of one training step.

    Attributes:
        frames: int16 (B, window_frames + 1, F).
        starts: bool (B,): whether each row starts from a fresh recurrent state; if not, from the state with which the
            same row of the previous batch ended.
    """

    frames: Tensor
    starts: Tensor


class FrameSource(Protocol):
    """Where a loader reads frames, counted through all segments of the split placed end to end."""

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return `num_frames` frames from each start on, int16 (B, num_frames, F)."""
        ...


class HeldFrames:
    """Frames of a whole split in memory, or in a memory-mapped file.

    Args:
        frames: levels (N, F).
    """

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames.astype(np.int16, copy=False)

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return `num_frames` frames from each start on, int16 (B, num_frames, F)."""
        return self.frames[starts_B[:, None] + np.arange(num_frames)]


def count_batches(plan: Plan, windows_per_epoch: int | None) -> int:
    """Return the number of batches per epoch of each process.

    Args:
        plan: the plan of any of the processes.
        windows_per_epoch: windows or chunks per epoch of all processes; None for one pass over all of them.

    Raises:
        ValueError: an epoch is smaller than one step of all processes.
    """
    share = plan.share
    epoch_windows = windows_per_epoch or plan.num_windows
    if min(epoch_windows, plan.num_windows) < share.step_size:
        raise ValueError(
            f"an epoch has {epoch_windows} windows of {plan.num_windows}, but one step takes {share.step_size} "
            f"(data.batch_size={share.batch_size} on {share.world_size} processes): decrease data.batch_size, or "
            "increase data.windows_per_epoch or the corpus."
        )
    return epoch_windows // share.step_size


class Loader:
    """The batches of one process, epoch after epoch; the only state is how many it has given.

    Args:
        plan: which frames each batch has.
        source: where they are read.
        num_frames: frames of each row.
        windows_per_epoch: as in `count_batches`, whose errors it raises.
    """

    def __init__(self, plan: Plan, source: FrameSource, num_frames: int, windows_per_epoch: int | None = None) -> None:
        self.plan, self.source, self.num_frames = plan, source, num_frames
        self.batches_per_epoch = count_batches(plan, windows_per_epoch)
        self.batches_given = 0

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the next batches, to the end of the epoch that they belong to."""
        left = self.batches_per_epoch - self.batches_given % self.batches_per_epoch
        for starts_B, is_fresh_B in islice(self.plan.batches(self.batches_given), left):
            frames = torch.from_numpy(self.source.read(starts_B, self.num_frames))
            self.batches_given += 1
            yield Batch(frames, torch.from_numpy(is_fresh_B))

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs to continue with the next batch; Lightning keeps it in the checkpoint."""
        return {"batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where a saved run stopped, possibly in the middle of an epoch."""
        self.batches_given = state["batches_given"]
