"""Shards -> the batches of training and validation that Lightning asks for.

1. The training split is read into memory, two bytes per field: 16 hours, encoded twelve times, are 550 MB. Or it is a
   memory-mapped file next to the shards, which all processes of a machine share. Or it stays in the shards and is read
   as it is needed.
2. Windows or streams of it are split over the ranks (plans.py, loaders.py).
3. Validation reads whole held-out recordings.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from babble.codec.frames import TOKENS, Mode
from babble.codec.token_sequences import make_context
from babble.data.config import DataConfig
from babble.data.loaders import SHUFFLE_SHARDS, FrameSource, HeldFrames, Loader, count_batches
from babble.data.plans import Plan, ShardWindowPlan, Share, StreamPlan, WindowPlan
from babble.data.shards import (
    MANIFEST,
    SEGMENT_FRAMES,
    SHIFTED,
    SPLITS,
    Segment,
    open_shards,
    read_manifest,
    read_recordings,
)
from babble.data.streaming import ShardFrames, find_segments, sample_recordings
from babble.data.training_split import map_training, read_training


def _read_contexts(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """Return the context of each frame (T, C) of all recordings, by name and first frame.

    Raises:
        FileNotFoundError, ValueError: there are no tokens.
    """
    if not (folder / MANIFEST).is_file():
        # Not as `read_manifest`, which advises to preprocess recordings.
        raise FileNotFoundError(f"data.tokens {folder} has no {MANIFEST}: name a folder that babble tokens wrote.")
    manifest = read_manifest(folder)
    if manifest.mode != TOKENS:
        raise ValueError(f"data.tokens {folder} holds frames, not tokens: name a folder that babble tokens wrote.")
    recordings = [recording for split in (*SPLITS, SHIFTED) for recording in read_recordings(folder, manifest, split)]
    return {(one.recording, one.first_frame): make_context(one.frames) for one in recordings}


class SpeechData(pl.LightningDataModule):
    """Training windows or streams, and validation recordings, of a folder of shards.

    Args:
        config: dataset and windowing settings.
        seed: fixes the order of windows.

    Raises:
        FileNotFoundError, ValueError: as `open_shards`; nothing to train on or to validate on; no window fits. This is
            known from the manifest, before anything is read.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.folder, manifest = open_shards(config.shards)
        self.manifest = manifest if config.shifted else manifest.without_shifted()
        self._train_recordings: list[Segment] = []
        self.validation_recordings: list[Segment] = []
        # What is trained on. Baselines and descriptions are of the recordings themselves.
        self._training = self.manifest.with_shifted()
        self._segments = find_segments(self._training, "train") if config.holding == "shards" else None
        self._lengths = self._segments.frames if self._segments else np.array(self._training.split_lengths("train"))
        self._source: FrameSource | None = None
        self._loader: Loader | None = None
        self._resumed: dict[str, int] | None = None
        self._check_splits()
        self._contexts = _read_contexts(config.tokens) if config.tokens else {}

    def _check_splits(self) -> None:
        if not len(self._lengths):
            raise ValueError(
                f"{self.folder} has no training recordings: it can be used for evaluation only. Preprocess to a new "
                "folder, with recordings that are in neither split.validation nor split.test."
            )
        if max(self.manifest.split_lengths("validation"), default=0) < 2:
            raise ValueError(
                f"{self.folder} has no validation recordings, on which the metrics are measured. Preprocess to a new "
                "folder, with a validation split."
            )
        if self._make_plan().num_windows == 0:
            raise ValueError(
                f"{self.folder}: no recording is longer than data.window_frames={self.config.window_frames}. Choose "
                "shorter windows."
            )

    @property
    def mode(self) -> Mode:
        """The Codec 2 mode of every frame."""
        return self.manifest.mode

    def setup(self, stage: str | None = None) -> None:
        """Read both splits into memory, once; a training split may stay in the shards."""
        if self._source:
            return
        if self.config.holding == "shards":
            self._source = self._open_shard_frames()
        else:
            frames, recordings = self._read_training_split()
            self._train_recordings = recordings[: len(self.manifest.split_lengths("train"))]
            self._source = HeldFrames(self._add_context(frames, recordings))
        self.validation_recordings = read_recordings(self.folder, self.manifest, "validation")

    @property
    def train_recordings(self) -> Iterable[Segment]:
        """What the baselines are counted in: the training recordings, or a sample of those that stay in the shards.

        The sample is read while it is iterated over: only the first rank needs it, and once.
        """
        if self.config.holding == "shards":
            return sample_recordings(self.folder, self.manifest, "train")
        return self._train_recordings

    def _add_context(self, frames: np.ndarray, recordings: list[Segment]) -> np.ndarray:
        """Return frames (N, F) of recordings, end to end, with the context of each frame after it if there are tokens.

        Raises:
            ValueError: the tokens are of other recordings.
        """
        if not self._contexts:
            return frames
        context = []
        for recording in recordings:
            found = self._contexts.get((recording.recording, recording.first_frame))
            if found is None or len(found) != len(recording.frames):
                raise ValueError(
                    f"{self.config.tokens} has not the tokens of recording {recording.recording}: it was made from "
                    "other shards. Run babble tokens on these, to a new folder."
                )
            context.append(found)
        return np.concatenate([frames, np.concatenate(context)], axis=1, dtype=np.int16, casting="unsafe")

    def _read_training_split(self) -> tuple[np.ndarray, list[Segment]]:
        if self.config.holding == "mapped":
            try:
                return map_training(self.folder, self.manifest)
            except OSError as error:
                # The same frames, in more memory: no reason to refuse a read-only folder.
                print(
                    f"data.holding=mapped: no file can be written next to the shards ({error}), so each process holds "
                    "them in its own memory. Copy the shards to a writable folder to share it.",
                    file=sys.stderr,
                )
        return read_training(self.folder, self.manifest)

    def _open_shard_frames(self) -> ShardFrames:
        assert self._segments
        shards = [shard for shard in self._training.shards if shard.split == "train"]
        if self.config.reading == "windows":
            max_entries = self._shuffle_shards * max(shard.entries for shard in shards)
        else:
            max_entries = self.config.batch_size * (2 + self.config.window_frames // SEGMENT_FRAMES)
        return ShardFrames(self.folder, [shard.name for shard in shards], self._segments, self.mode, max_entries)

    @property
    def _shuffle_shards(self) -> int:
        return self.config.shuffle_shards or SHUFFLE_SHARDS

    def _make_plan(self, rank: int = 0, world_size: int = 1) -> Plan:
        config, share = self.config, Share(self.config.batch_size, self.seed, rank, world_size)
        if config.reading == "streams":
            return StreamPlan(self._lengths, config.window_frames, share)
        windows = (config.window_frames, config.frames_between_windows)
        if not self._segments:
            return WindowPlan(self._lengths, *windows, share)
        return ShardWindowPlan(self._lengths, self._segments.shards, *windows, self._shuffle_shards, share)

    def _make_loader(self, rank: int, world_size: int) -> Loader:
        assert self._source, "setup was not called"
        plan = self._make_plan(rank, world_size)
        return Loader(plan, self._source, self.config.window_frames + 1, self.config.windows_per_epoch)

    def describe(self) -> str:
        """Return one line: hours, windows or chunks, and the hours in recordings too short for one."""
        config, frames_per_second = self.config, self.mode.frames_per_second
        hour = frames_per_second * 3600
        unused = int(self._lengths[self._lengths <= config.window_frames].sum()) / hour
        segments = "segments, read from the shards" if self._segments else "recordings"
        again = f" and, shifted, {self.manifest.split_frames(SHIFTED) / hour:.2f} h" if self.manifest.shifted else ""
        chunks = "chunks" if config.reading == "streams" else "windows"
        return (
            f"{self.manifest.split_frames('train') / hour:.2f} h of training speech{again} ({len(self._lengths)} "
            f"{segments}), "
            f"{self._make_plan().num_windows:,} {chunks} of {config.window_frames} frames "
            f"({config.window_frames / frames_per_second:g} s)"
            + (f", {unused:.3f} h unused because shorter" if unused else "")
            + f"; {self.manifest.split_frames('validation') / hour:.2f} h of validation speech"
        )

    def train_dataloader(self) -> Loader:
        """Return this rank's windows or streams."""
        self._loader = self._make_loader(*self._find_rank())
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def _find_rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def count_batches(self, world_size: int) -> int:
        """Return the batches per epoch of each of `world_size` processes; raises ValueError if there are none."""
        return count_batches(self._make_plan(0, world_size), self.config.windows_per_epoch)

    @property
    def frames_given(self) -> int:
        """How many frames this process has been given to train on, including those before a resume."""
        batches = self._loader.batches_given if self._loader else 0
        return batches * self.config.batch_size * self.config.window_frames

    def state_dict(self) -> dict[str, int]:
        """Return the position in the order of windows.

        Lightning keeps it for the loader itself too, but does not hand it back after a save at an epoch's end.
        """
        return self._loader.state_dict() if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keep the position for the next loader."""
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return this rank's validation recordings, each one a batch (1, T, F), int16."""
        rank, world_size = self._find_rank()
        held_out = [
            self._add_context(recording.frames, [recording])
            for recording in self.validation_recordings
            if len(recording.frames) > 1
        ]
        mine = held_out[rank::world_size]
        # Lightning needs the same number on every rank; in a single frame nothing is predicted.
        mine += [held_out[0][:1]] * (-(-len(held_out) // world_size) - len(mine))
        recordings = [torch.from_numpy(frames.astype(np.int16))[None] for frames in mine]
        return DataLoader(recordings, batch_size=None)  # type: ignore[arg-type]
