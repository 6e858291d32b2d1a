"""Share of generated speech that is a copy of the training recordings.

shares = measure_copies({"babble": babble_clips}, train, mode)
"""

import numpy as np

from babble.codec.frames import Mode

# Segments of this length do not occur twice in hours of real speech, even with spectra in quarters of each field.
COPY_SECONDS = 0.32


def measure_copies(clips: dict[str, list[np.ndarray]], train: list[np.ndarray], mode: Mode) -> dict[str, float]:
    """Return for each set of clips the share of its segments that also occur in the training recordings.

    A segment has `COPY_SECONDS` of frames. Two segments are equal if every field of their spectra is in the same
    quarter of its levels (labels: is equal); energy, pitch and voicing may differ. No segment of part 13 of "A Tale of
    Two Cities" occurs in the ten hours before it.

    Args:
        clips: clips (T, F) by name of the set.
        train: training recordings (T, F).
        mode: the mode of all frames.
    """
    known = np.unique(np.concatenate([_hash_segments(frames, mode) for frames in train]))
    return {
        name: float(np.isin(np.concatenate([_hash_segments(clip, mode) for clip in own]), known).mean())
        for name, own in clips.items()
    }


def _hash_segments(frames: np.ndarray, mode: Mode) -> np.ndarray:
    """Return a hash for each segment of n frames, equal if their coarse spectra are equal, uint64 (T - n + 1,)."""
    columns = mode.group_indices("lsp")
    coarse = [mode.fields[f].levels // 4 if mode.fields[f].kind == "ordered" else 1 for f in columns]
    n = round(COPY_SECONDS * mode.frames_per_second)
    # Random odd weights: the hashes of different segments collide once in 2**64.
    weights = np.random.default_rng(0).integers(1, 2**63, (n, len(columns)), dtype=np.uint64) * 2 + 1
    level = frames[:, columns].astype(np.uint64) // np.array(coarse, np.uint64)
    length = max(0, len(frames) - n + 1)
    hashes = np.zeros(length, np.uint64)
    for i in range(n):
        hashes += (level[i : i + length] * weights[i]).sum(axis=1, dtype=np.uint64)
    return hashes
