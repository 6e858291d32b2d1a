"""Recordings -> batches of windows or streams, in one order for all ranks.

1. Windows (`WindowLoader`), as 2017: `window_frames` long, a new one every `hop_frames`, shuffled, each heard from a
   fresh state. Streams (`StreamLoader`): contiguous speech in pieces of `window_frames`, many streams side by side,
   each piece going on where the one before it in its stream stopped. Neither goes across two recordings.
2. One global order of windows or streams, a pass after another from the random seed, is dealt to the ranks batch by
   batch. A loader's only state is how many batches it has given, so it goes on anywhere.

A window or piece of n frames carries n + 1, so that every one of its n steps has a next frame to learn.
Here recordings are in memory; streaming.py reads them from the shards as they are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

READINGS = ("windows", "streams")
HOLDINGS = ("memory", "mapped", "shards")
# Shards whose windows are shuffled together where they are read as they are needed: some hours of speech.
SHUFFLE_SHARDS = 8
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
        holding: "memory", every process holds the training split, 46 MB for 16 hours; "mapped", all processes of a
            machine share it, unpacked into a file beside the shards; or "shards", it is read from the shards as it is
            needed, for corpora of thousands of hours.
        shuffle_shards: so many shards' windows are shuffled together; None for 8. Only for windows from shards.
    """

    shards: Path | None = None
    reading: str = "windows"
    window_frames: int = 200
    hop_frames: int | None = None
    batch_size: int = 64
    windows_per_epoch: int | None = None
    holding: str = "memory"
    shuffle_shards: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes of nothing and settings that nothing would obey."""
        if self.holding not in HOLDINGS:
            raise ValueError(f"data.holding={self.holding!r} is none of {', '.join(HOLDINGS)}.")
        if self.shuffle_shards is not None and (self.reading, self.holding) != ("windows", "shards"):
            raise ValueError("data.shuffle_shards is only for data.reading=windows with data.holding=shards.")
        if self.reading not in READINGS:
            raise ValueError(f"data.reading={self.reading!r} is none of {', '.join(READINGS)}.")
        for key in ("window_frames", "hop_frames", "batch_size", "windows_per_epoch", "shuffle_shards"):
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


class Loader:
    """Batches of one global order, this rank's share: the state is how many it has given.

    Args:
        lengths: frames of each recording; recordings are thought of as laid end to end.
        config: window length, batch size, windows an epoch.
        seed: the order is drawn from it and from the number of the pass alone.
        rank: this process's number.
        ranks: how many processes there are.

    Raises:
        ValueError: fewer windows than one step of all processes takes.
    """

    def __init__(self, lengths: list[int], config: DataConfig, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.batch_size = config.batch_size
        self.window_frames = config.window_frames
        self.seed = seed
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

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs to go on with the next batch; Lightning keeps it in the checkpoint."""
        return {"batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a saved run stopped, in the middle of an epoch too."""
        self.batches_given = state["batches_given"]


class Held:
    """Recordings in memory, laid end to end.

    Args:
        frames: levels (N, F).
    """

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames.astype(np.int16, copy=False)

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return num_frames frames from each start on, (B, num_frames, F)."""
        return self.frames[starts_B[:, None] + np.arange(num_frames)]


class WindowLoader(Loader):
    """Batches of shuffled windows, each heard from a fresh state; see `Loader` for the rest.

    Args:
        frames: levels (N, F) of recordings laid end to end.
        lengths, config, seed, rank, ranks: as `Loader`.
    """

    def __init__(self, frames: np.ndarray, lengths: list[int], *args: Any, **kwargs: Any) -> None:
        super().__init__(lengths, *args, **kwargs)
        self.held = Held(frames)
        self._pass_number, self._order = -1, np.empty(0, np.int64)

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
        frames = self.held.read(self.starts[windows], self.window_frames + 1)
        return Batch(torch.from_numpy(frames), torch.ones(self.batch_size, dtype=torch.bool))

    def _order_of(self, pass_number: int) -> np.ndarray:
        if pass_number != self._pass_number:
            rng = np.random.default_rng([self.seed, pass_number])
            self._pass_number, self._order = pass_number, rng.permutation(len(self.starts))
        return self._order


class Source(Protocol):
    """Where a `StreamLoader` reads frames: recordings laid end to end."""

    def read(self, starts_B: np.ndarray, num_frames: int) -> np.ndarray:
        """Return num_frames frames from each start on, (B, num_frames, F); row b mostly goes on where it stopped."""
        ...


class StreamLoader(Loader):
    """Batches of pieces of contiguous speech: row b of a batch goes on where row b of the last one stopped.

    A pass cuts every recording into pieces from a random first frame on, puts the recordings into a random order, and
    deals the pieces, in that order and from a random one on, to the streams of all ranks: equal shares, each one
    contiguous but where a recording ends. What does not fill a step of all streams is left out of that pass.

    Args:
        source: where frames are read.
        lengths, config, seed, rank, ranks: as `Loader`.
    """

    def __init__(self, source: Source, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source = source
        self._pass_number = -1

    def _cut(self, lengths: list[int], config: DataConfig) -> int:
        self.firsts = np.cumsum([0, *lengths[:-1]])
        self.pieces = count_pieces(lengths, config.window_frames)
        # How late a recording's first piece may start.
        self.spare_frames = np.minimum(
            config.window_frames - 1, np.array(lengths) - 1 - self.pieces * config.window_frames
        ).clip(min=0)
        self.num_pieces = int(self.pieces.sum())
        self.batches_per_pass = self.num_pieces // (self.batch_size * self.ranks)
        return self.num_pieces

    def _read_batch(self, number: int) -> Batch:
        pass_number, step = divmod(number, self.batches_per_pass)
        self._begin(pass_number)
        streams = self.rank * self.batch_size + np.arange(self.batch_size)
        places = streams * self.batches_per_pass + step
        starts = self._starts_of(places)
        # The first piece of a stream in a pass, or one that does not follow the piece before it.
        follows = starts == self._starts_of(places - 1) + self.window_frames
        is_fresh = np.full(self.batch_size, True) if step == 0 else ~follows
        frames = self.source.read(starts, self.window_frames + 1)
        return Batch(torch.from_numpy(frames), torch.from_numpy(is_fresh))

    def _begin(self, pass_number: int) -> None:
        """Draw the order of a pass: where each recording's first piece starts, the recordings' order, the first piece.

        No more is kept than a few numbers a recording, however many pieces they have.
        """
        if pass_number == self._pass_number:
            return
        self._pass_number = pass_number
        rng = np.random.default_rng([self.seed, pass_number])
        self._shifted = self.firsts + rng.integers(0, self.spare_frames + 1)
        self._recordings = rng.permutation(len(self.pieces))
        self._ends = self.pieces[self._recordings].cumsum()
        self._first_piece = int(rng.integers(self.num_pieces))

    def _starts_of(self, places: np.ndarray) -> np.ndarray:
        """Return the first frames of the pieces that stand at these places of the pass."""
        pieces = (places + self._first_piece) % self.num_pieces
        nth = np.searchsorted(self._ends, pieces, side="right")
        recordings = self._recordings[nth]
        within = pieces - (self._ends[nth] - self.pieces[recordings])
        return self._shifted[recordings] + self.window_frames * within
