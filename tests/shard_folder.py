"""A folder of shards made of frames, without a codec."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from babble.codec.frames import Mode
from babble.data.shards import Manifest, Segment, write_manifest, write_shards


def write_folder(folder: Path, mode: Mode, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write shards and manifest of the frames (T, F) of each recording of each split."""
    shards, recordings = [], []
    for split, frames_by_name in splits.items():
        segments = [Segment(name, 0, frames.astype(mode.dtype)) for name, frames in frames_by_name.items()]
        shards += write_shards(folder, split, segments, mode, entries_per_shard=16)
        recordings += [
            {"name": s.recording, "split": split, "first_frame": 0, "frames": len(s.frames)} for s in segments
        ]
    write_manifest(folder, Manifest(mode, {}, recordings, shards, []))
