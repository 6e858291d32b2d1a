"""Shards -> what Lightning feeds training and validation with.

1. A split's recordings are read whole into memory as levels, two bytes a field: 16 hours are 46 MB. Or that memory is
   a file beside the shards, which all processes of a machine share. Or nothing is held, and the training split is read
   as it is needed (streaming.py).
2. Windows or streams of them are dealt to the ranks (loaders.py).
3. Validation gets whole held-out recordings.
"""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from babble.codec.frames import Mode
from babble.data.loaders import DataConfig, Held, Loader, StreamLoader, WindowLoader, count_pieces, window_starts
from babble.data.shards import MANIFEST, Manifest, Segment, read_manifest, read_recordings
from babble.data.streaming import ShardStreams, ShardWindowLoader, find_spans, sample_recordings
from babble.files import write_bytes


class SpeechData(pl.LightningDataModule):
    """Training windows or streams, and held-out recordings, of a folder of shards.

    Args:
        config: where and how.
        seed: of the windows' order.

    Raises:
        FileNotFoundError, ValueError: as `read_manifest`; no shards named; no window fits; nothing held out.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.folder, self.manifest = open_shards(config.shards)
        self.spans = find_spans(self.manifest, "train") if config.holding == "shards" else []
        self._frames = np.empty((0, self.mode.num_fields), np.int16)
        self.train_recordings: list[Segment] = []
        self.validation_recordings: list[Segment] = []
        self._loader: Loader | None = None
        self._resumed: dict[str, int] | None = None

    @property
    def mode(self) -> Mode:
        """The Codec 2 mode of every frame."""
        return self.manifest.mode

    def setup(self, stage: str | None = None) -> None:
        """Read both splits into memory, once; of a training split that is not held, a sample for the baselines."""
        if self.train_recordings:
            return
        if self.spans:
            self.train_recordings = sample_recordings(self.folder, self.manifest, "train")
        else:
            read = map_split if self.config.holding == "mapped" else read_split
            self._frames, self.train_recordings = read(self.folder, self.manifest, "train")
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
        if self.spans:
            return [span.frames for span in self.spans]
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
        recordings = "recordings" if not self.spans else "recordings and parts of them, read as they are needed"
        return (
            f"{sum(lengths) / hour:.2f} hours to learn from in {len(lengths)} {recordings}, {self._count_windows():,} "
            f"{what} of {window}; "
            f"{sum(too_short) / hour:.3f} hours unused, in {len(too_short)} recordings shorter than that; "
            f"{held_out / hour:.2f} hours held out for validation"
        )

    def train_dataloader(self) -> Loader:
        """Return this rank's windows or streams."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self._loader = self._make_loader(rank, ranks)
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def _make_loader(self, rank: int, ranks: int) -> Loader:
        order = (self.config, self.seed, rank, ranks)
        if self.spans:
            paths = [self.folder / shard.name for shard in self.manifest.shards if shard.split == "train"]
            if self.config.reading == "streams":
                return StreamLoader(ShardStreams(paths, self.spans, self.mode), self._lengths(), *order)
            return ShardWindowLoader(paths, self.spans, self.mode, *order)
        if self.config.reading == "streams":
            return StreamLoader(Held(self._frames), self._lengths(), *order)
        return WindowLoader(self._frames, self._lengths(), *order)

    def count_batches(self, ranks: int) -> int:
        """Return how many batches an epoch has on each of so many processes."""
        return len(self._make_loader(0, ranks))

    @property
    def frames_given(self) -> int:
        """How many frames this process has been given to learn from, before a resume too."""
        batches = self._loader.batches_given if self._loader else 0
        return batches * self.config.batch_size * self.config.window_frames

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


def read_split(folder: Path, manifest: Manifest, split: str) -> tuple[np.ndarray, list[Segment]]:
    """Return a split's levels end to end, int16 (N, F), and its recordings: views of them.

    Raises:
        ValueError: as `read_recordings`.
    """
    recordings = read_recordings(folder, manifest, split)
    frames = np.concatenate(
        [np.empty((0, manifest.mode.num_fields), np.int16), *(recording.frames for recording in recordings)],
        dtype=np.int16,
        casting="unsafe",
    )
    ends = np.cumsum([len(recording.frames) for recording in recordings])
    return frames, [
        replace(r, frames=frames[end - len(r.frames) : end]) for r, end in zip(recordings, ends, strict=True)
    ]


def map_split(folder: Path, manifest: Manifest, split: str) -> tuple[np.ndarray, list[Segment]]:
    """Return the same, of a file beside the shards that is in memory once, however many processes read it.

    Whoever comes first writes it, two bytes a field; it belongs to this manifest alone and may be deleted at any time.

    Raises:
        ValueError: as `read_recordings`.
        OSError: the file can't be written: the folder is another's, or the disk is full.
    """
    of = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
    path = folder / f".{split}-{of}.npy"
    if not path.is_file():
        unpacked = io.BytesIO()
        np.save(unpacked, read_split(folder, manifest, split)[0])
        write_bytes(path, unpacked.getvalue())
    frames = np.load(path, mmap_mode="r")
    facts = [recording for recording in manifest.recordings if recording["split"] == split]
    ends = np.cumsum([recording["frames"] for recording in facts])
    return frames, [
        Segment(fact["name"], fact["first_frame"], frames[end - fact["frames"] : end])
        for fact, end in zip(facts, ends, strict=True)
    ]
