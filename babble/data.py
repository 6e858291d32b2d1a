"""Shards -> windows: what training and validation are fed with.

1. A split's recordings are read whole into memory as levels, a byte or two a field: 16 hours are 23 MB.
2. Every window start is known at once (`window_starts`): `window_frames` long, a new one every `hop_frames`, never
   across two recordings.
3. One global order of windows, a shuffled pass after another from the random seed, is dealt to the ranks batch by
   batch (`WindowLoader`). The loader's only state is how many batches it has given, so it goes on anywhere.
4. Validation gets whole held-out recordings.

A window of n frames carries n + 1, so that every one of its n steps has a next frame to learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from babble.frames import Mode
from babble.shards import Manifest, Stretch, read_manifest, read_recordings


@dataclass(frozen=True)
class DataConfig:
    """Where windows come from and how they are cut.

    Attributes:
        shards: the folder that `python -m jobs.preprocess` wrote.
        window_frames: length of a window; 200 frames are 8 s in mode 1300.
        hop_frames: a window starts every so many frames.
        batch_size: windows a step, on each process.
        windows_per_epoch: windows in an epoch, over all processes; None for one pass over all of them. Epochs take up
            the order where the last one stopped, so a small epoch leaves nothing out.
    """

    shards: Path | None = None
    window_frames: int = 200
    hop_frames: int = 20
    batch_size: int = 64
    windows_per_epoch: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        for key in ("window_frames", "hop_frames", "batch_size", "windows_per_epoch"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.{key}={value}: at least 1 is needed.")


def window_starts(lengths: list[int], window_frames: int, hop_frames: int) -> np.ndarray:
    """Return where windows start in recordings laid end to end, int64 (N,).

    Args:
        lengths: frames of each recording.
        window_frames: steps of a window; it takes one frame more, the last target.
        hop_frames: a window starts every so many frames of a recording.
    """
    starts, offset = [np.empty(0, np.int64)], 0
    for length in lengths:
        starts.append(offset + np.arange(0, length - window_frames, hop_frames))
        offset += length
    return np.concatenate(starts)


class WindowLoader:
    """Batches of windows, int16 (B, window_frames + 1, F), this rank's share of one global order.

    Args:
        frames: levels (N, F) of recordings laid end to end.
        starts: where windows start.
        config: window length, batch size, windows an epoch.
        random_seed: the order is drawn from it and from the number of the pass alone.
        rank: this process's number.
        ranks: how many processes there are.

    Raises:
        ValueError: fewer windows than one step of all processes takes.
    """

    def __init__(
        self,
        frames: np.ndarray,
        starts: np.ndarray,
        config: DataConfig,
        random_seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.frames = frames.astype(np.int16)
        self.starts = starts
        self.batch_size = config.batch_size
        self.offsets = np.arange(config.window_frames + 1)
        self.random_seed = random_seed
        self.rank, self.ranks = rank, ranks
        step_windows = config.batch_size * ranks
        epoch_windows = config.windows_per_epoch or len(starts)
        if epoch_windows < step_windows:
            raise ValueError(
                f"an epoch has {epoch_windows} windows, but one step takes {step_windows} (data.batch_size="
                f"{config.batch_size} on {ranks} processes): make data.batch_size smaller, or "
                "data.windows_per_epoch or the corpus larger."
            )
        self.batches_per_epoch = epoch_windows // step_windows
        self.batches_given = 0
        self._pass_number, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches from where the order stands to the end of that epoch."""
        while True:
            windows = self._windows_of(self.batches_given)
            self.batches_given += 1
            yield torch.from_numpy(self.frames[self.starts[windows][:, None] + self.offsets])
            if self.batches_given % self.batches_per_epoch == 0:
                return

    def _windows_of(self, batch: int) -> np.ndarray:
        """Return which windows this rank takes in the global order's given batch."""
        first = (batch * self.ranks + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        pass_numbers = places // len(self.starts)
        return np.concatenate(
            [
                self._order_of(number)[places[pass_numbers == number] % len(self.starts)]
                for number in np.unique(pass_numbers)
            ]
        )

    def _order_of(self, pass_number: int) -> np.ndarray:
        if pass_number != self._pass_number:
            order = np.random.default_rng([self.random_seed, pass_number]).permutation(len(self.starts))
            self._pass_number, self._order = pass_number, order
        return self._order

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs to go on with the next batch; Lightning keeps it in the checkpoint."""
        return {"batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a saved run stopped, in the middle of an epoch too."""
        self.batches_given = state["batches_given"]


class SpeechData(pl.LightningDataModule):
    """Training windows and held-out recordings of a folder of shards.

    Args:
        config: where and how.
        random_seed: of the windows' order.

    Raises:
        FileNotFoundError, ValueError: as `read_manifest`; no shards named; no window fits; nothing held out.
    """

    def __init__(self, config: DataConfig, random_seed: int) -> None:
        super().__init__()
        self.config = config
        self.random_seed = random_seed
        self.folder, self.manifest = open_shards(config.shards)
        self.train_recordings: list[Stretch] = []
        self.validation_recordings: list[Stretch] = []
        self._loader: WindowLoader | None = None
        self._resumed: dict[str, int] | None = None

    @property
    def mode(self) -> Mode:
        """The Codec 2 mode of every frame."""
        return self.manifest.mode

    def setup(self, stage: str | None = None) -> None:
        """Read both splits into memory, once."""
        if self.train_recordings:
            return
        self.train_recordings = read_recordings(self.folder, self.manifest, "train")
        self.validation_recordings = read_recordings(self.folder, self.manifest, "validation")
        if not any(len(recording.frames) > 1 for recording in self.validation_recordings):
            raise ValueError(
                f"{self.folder} holds no validation recordings, so no honest figure could be given. Preprocess again "
                "with a validation split."
            )
        if len(self._starts()) == 0:
            raise ValueError(
                f"{self.folder}: no recording is longer than data.window_frames={self.config.window_frames}. Choose a "
                "shorter window."
            )

    def _starts(self) -> np.ndarray:
        lengths = [len(recording.frames) for recording in self.train_recordings]
        return window_starts(lengths, self.config.window_frames, self.config.hop_frames)

    def describe(self) -> str:
        """Return one line: hours, windows, and the hours in recordings too short for a window."""
        hour = self.mode.frames_per_second * 3600
        lengths = [len(recording.frames) for recording in self.train_recordings]
        too_short = [length for length in lengths if length <= self.config.window_frames]
        held_out = sum(len(recording.frames) for recording in self.validation_recordings)
        window = f"{self.config.window_frames} frames ({self.config.window_frames / self.mode.frames_per_second:g} s)"
        return (
            f"{sum(lengths) / hour:.2f} hours to learn from in {len(lengths)} recordings, {len(self._starts()):,} "
            f"windows of {window}; "
            f"{sum(too_short) / hour:.3f} hours unused, in {len(too_short)} recordings shorter than a window; "
            f"{held_out / hour:.2f} hours held out for validation"
        )

    def train_dataloader(self) -> WindowLoader:
        """Return this rank's windows."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        frames = np.concatenate([recording.frames for recording in self.train_recordings])
        self._loader = WindowLoader(frames, self._starts(), self.config, self.random_seed, rank, ranks)
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def state_dict(self) -> dict[str, int]:
        """Return where the order of windows stands.

        Lightning keeps it for the loader itself too, but does not hand it back after a save at an epoch's end.
        """
        return self._loader.state_dict() if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keep the place for the next loader."""
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return this rank's held-out recordings, each one a batch (1, T, F), int16."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        held_out = [recording.frames for recording in self.validation_recordings if len(recording.frames) > 1]
        mine = held_out[rank::ranks]
        # Lightning wants as many on every rank: of a single frame, nothing is predicted.
        mine += [held_out[0][:1]] * (-(-len(held_out) // ranks) - len(mine))
        recordings = [torch.from_numpy(frames.astype(np.int16))[None] for frames in mine]
        return DataLoader(recordings, batch_size=None)  # type: ignore[arg-type]


def open_shards(folder: Path | None) -> tuple[Path, Manifest]:
    """Return a folder of shards and its manifest; raises as `read_manifest`, or if there is no folder named."""
    if folder is None:
        raise ValueError("data.shards is not set: name the folder that python -m jobs.preprocess wrote.")
    return folder, read_manifest(folder)
