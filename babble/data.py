"""Shards -> windows or streams: what training and validation are fed with.

1. A split's recordings are read whole into memory as levels, a byte or two a field: 16 hours are 23 MB.
2. Windows (`WindowLoader`), as 2017: `window_frames` long, a new one every `hop_frames`, shuffled, each heard from a
   fresh state. Streams (`StreamLoader`): contiguous speech in pieces of `window_frames`, many streams side by side,
   each piece going on where the one before it in its stream stopped. Neither goes across two recordings.
3. One global order of windows or streams, a pass after another from the random seed, is dealt to the ranks batch by
   batch. A loader's only state is how many batches it has given, so it goes on anywhere.
4. Validation gets whole held-out recordings.

A window or piece of n frames carries n + 1, so that every one of its n steps has a next frame to learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from babble.frames import Mode
from babble.shards import Manifest, Stretch, read_manifest, read_recordings

READINGS = ("windows", "streams")
# Windows overlap as in 2017: ten of them share a frame.
HOPS_PER_WINDOW = 10


@dataclass(frozen=True)
class DataConfig:
    """What is heard, and how it is cut.

    Attributes:
        shards: the folder that `python -m jobs.preprocess` wrote.
        reading: "windows", shuffled and each heard from a fresh state, as 2017; or "streams", contiguous speech with
            the state carried from piece to piece (truncated back-propagation through time).
        window_frames: length of a window, or of a stream's piece; 200 frames are 8 s in mode 1300.
        hop_frames: a window starts every so many frames; None for a tenth of its length. Only for windows.
        batch_size: windows, or streams side by side, a step, on each process.
        windows_per_epoch: windows or pieces in an epoch, over all processes; None for one pass over all of them.
            Epochs take up the order where the last one stopped, so a small epoch leaves nothing out.
    """

    shards: Path | None = None
    reading: str = "windows"
    window_frames: int = 200
    hop_frames: int | None = None
    batch_size: int = 64
    windows_per_epoch: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes of nothing and settings that nothing would obey."""
        if self.reading not in READINGS:
            raise ValueError(f"data.reading={self.reading!r} is none of {', '.join(READINGS)}.")
        for key in ("window_frames", "hop_frames", "batch_size", "windows_per_epoch"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.{key}={value}: at least 1 is needed.")
        if self.reading == "streams" and self.hop_frames is not None:
            raise ValueError("data.hop_frames has no effect while data.reading=streams: pieces follow one another.")

    @property
    def frames_between_windows(self) -> int:
        """How many frames after a window the next one starts."""
        return self.hop_frames or max(1, self.window_frames // HOPS_PER_WINDOW)


class Batch(NamedTuple):
    """What one training step hears.

    Attributes:
        frames: int16 (B, window_frames + 1, F).
        starts: bool (B,), where the state starts afresh; elsewhere it is the one that the last batch's row ended with.
    """

    frames: Tensor
    starts: Tensor


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


def count_pieces(lengths: list[int], piece_frames: int) -> np.ndarray:
    """Return how many pieces each recording gives, int64 (N,): the same wherever in its first piece they start.

    A recording that is long enough for only one piece gives that one; a shorter one none.
    """
    frames = np.array(lengths, np.int64)
    return np.maximum((frames - piece_frames) // piece_frames, np.minimum(1, (frames - 1) // piece_frames))


class _Loader:
    """Batches of one global order, this rank's share: the state is how many it has given.

    Args:
        frames: levels (N, F) of recordings laid end to end.
        lengths: frames of each recording.
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
        lengths: list[int],
        config: DataConfig,
        random_seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.frames = frames.astype(np.int16)
        self.batch_size = config.batch_size
        self.offsets = np.arange(config.window_frames + 1)
        self.random_seed = random_seed
        self.rank, self.ranks = rank, ranks
        num_windows = self._cut(lengths, config)
        step_windows = config.batch_size * ranks
        epoch_windows = config.windows_per_epoch or num_windows
        if min(epoch_windows, num_windows) < step_windows:
            raise ValueError(
                f"an epoch has {epoch_windows} windows of {num_windows}, but one step takes {step_windows} "
                f"(data.batch_size={config.batch_size} on {ranks} processes): make data.batch_size smaller, or "
                "data.windows_per_epoch or the corpus larger."
            )
        self.batches_per_epoch = epoch_windows // step_windows
        self.batches_given = 0
        self._pass_number, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from where the order stands to the end of that epoch."""
        while True:
            batch = self._read_batch(self.batches_given)
            self.batches_given += 1
            yield batch
            if self.batches_given % self.batches_per_epoch == 0:
                return

    def _cut(self, lengths: list[int], config: DataConfig) -> int:
        """Find where windows or pieces lie; return how many of them a pass has."""
        raise NotImplementedError

    def _read_batch(self, number: int) -> Batch:
        raise NotImplementedError

    def _frames_at(self, starts: np.ndarray) -> Tensor:
        return torch.from_numpy(self.frames[starts[:, None] + self.offsets])

    def _order_of(self, pass_number: int) -> np.ndarray:
        if pass_number != self._pass_number:
            rng = np.random.default_rng([self.random_seed, pass_number])
            self._pass_number, self._order = pass_number, self._draw_order(rng)
        return self._order

    def _draw_order(self, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs to go on with the next batch; Lightning keeps it in the checkpoint."""
        return {"batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a saved run stopped, in the middle of an epoch too."""
        self.batches_given = state["batches_given"]


class WindowLoader(_Loader):
    """Batches of shuffled windows, each heard from a fresh state; see `_Loader` for the rest."""

    def _cut(self, lengths: list[int], config: DataConfig) -> int:
        self.starts = window_starts(lengths, config.window_frames, config.frames_between_windows)
        return len(self.starts)

    def _read_batch(self, number: int) -> Batch:
        first = (number * self.ranks + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        pass_numbers = places // len(self.starts)
        windows = np.concatenate(
            [
                self._order_of(pass_number)[places[pass_numbers == pass_number] % len(self.starts)]
                for pass_number in np.unique(pass_numbers)
            ]
        )
        return Batch(self._frames_at(self.starts[windows]), torch.ones(self.batch_size, dtype=torch.bool))

    def _draw_order(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.starts))


class StreamLoader(_Loader):
    """Batches of pieces of contiguous speech: row b of a batch goes on where row b of the last one stopped.

    A pass cuts every recording into pieces from a random first frame on, puts the recordings into a random order, and
    deals the pieces, in that order and from a random one on, to the streams of all ranks: equal shares, each one
    contiguous but where a recording ends. What does not fill a step of all streams is left out of that pass.
    """

    def _cut(self, lengths: list[int], config: DataConfig) -> int:
        self.piece_frames = config.window_frames
        self.firsts = np.cumsum([0, *lengths[:-1]])
        self.pieces = count_pieces(lengths, config.window_frames)
        # How late a recording's first piece may start.
        self.spare_frames = np.minimum(
            config.window_frames - 1, np.array(lengths) - 1 - self.pieces * config.window_frames
        ).clip(min=0)
        self.batches_per_pass = int(self.pieces.sum()) // (self.batch_size * self.ranks)
        return int(self.pieces.sum())

    def _read_batch(self, number: int) -> Batch:
        pass_number, step = divmod(number, self.batches_per_pass)
        order = self._order_of(pass_number)
        streams = self.rank * self.batch_size + np.arange(self.batch_size)
        places = streams * self.batches_per_pass + step
        starts = order[places]
        # The first piece of a stream in a pass, or one that does not follow the piece before it.
        is_fresh = np.full(self.batch_size, True) if step == 0 else starts != order[places - 1] + self.piece_frames
        return Batch(self._frames_at(starts), torch.from_numpy(is_fresh))

    def _draw_order(self, rng: np.random.Generator) -> np.ndarray:
        shifts = rng.integers(0, self.spare_frames + 1)
        starts = [
            first + shift + self.piece_frames * np.arange(pieces)
            for first, shift, pieces in zip(self.firsts, shifts, self.pieces, strict=True)
        ]
        order = np.concatenate([starts[recording] for recording in rng.permutation(len(starts))])
        return np.roll(order, -int(rng.integers(len(order))))


class SpeechData(pl.LightningDataModule):
    """Training windows or streams, and held-out recordings, of a folder of shards.

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
        self._loader: WindowLoader | StreamLoader | None = None
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
        if self._count_windows() == 0:
            raise ValueError(
                f"{self.folder}: no recording is longer than data.window_frames={self.config.window_frames}. Choose a "
                "shorter window."
            )

    def _lengths(self) -> list[int]:
        return [len(recording.frames) for recording in self.train_recordings]

    def _count_windows(self) -> int:
        if self.config.reading == "streams":
            return int(count_pieces(self._lengths(), self.config.window_frames).sum())
        return len(window_starts(self._lengths(), self.config.window_frames, self.config.frames_between_windows))

    def describe(self) -> str:
        """Return one line: hours, windows or pieces, and the hours in recordings too short for one."""
        hour = self.mode.frames_per_second * 3600
        lengths = self._lengths()
        too_short = [length for length in lengths if length <= self.config.window_frames]
        held_out = sum(len(recording.frames) for recording in self.validation_recordings)
        window = f"{self.config.window_frames} frames ({self.config.window_frames / self.mode.frames_per_second:g} s)"
        what = "pieces of streams" if self.config.reading == "streams" else "windows"
        return (
            f"{sum(lengths) / hour:.2f} hours to learn from in {len(lengths)} recordings, {self._count_windows():,} "
            f"{what} of {window}; "
            f"{sum(too_short) / hour:.3f} hours unused, in {len(too_short)} recordings shorter than that; "
            f"{held_out / hour:.2f} hours held out for validation"
        )

    def train_dataloader(self) -> WindowLoader | StreamLoader:
        """Return this rank's windows or streams."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        frames = np.concatenate([recording.frames for recording in self.train_recordings])
        loader = StreamLoader if self.config.reading == "streams" else WindowLoader
        self._loader = loader(frames, self._lengths(), self.config, self.random_seed, rank, ranks)
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
