"""Reference speech that needs no network: shuffled frames, a Markov chain and quilts of real speech.

Babble has to be closer to real speech than these.
"""

import numpy as np

from babble.codec.frames import MODES, Mode, lsp_hz, pitch_hz

# Of a quilt: frames between jumps, how far a jump leads at least, kinds of sound, and places that are compared.
QUILT_FRAMES, MIN_JUMP_FRAMES, NUM_KINDS, NUM_PLACES = 4, 250, 192, 30


def shuffle_frames(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the same frames (T, F) in random order: each frame is real, their order is not."""
    return frames[rng.permutation(len(frames))]


def sample_markov_chain(
    recordings: list[np.ndarray], num_frames: int, mode: Mode, rng: np.random.Generator
) -> np.ndarray:
    """Return frames (num_frames, F) in which each field follows a first-order Markov chain of its own.

    Args:
        recordings: recordings (T, F) that transitions are counted in; the first frame is one of their frames.
        num_frames: how many frames to sample.
        mode: the mode of all frames.
        rng: source of randomness.
    """
    widest = int(mode.levels.max())
    counts_FVV = np.zeros((mode.num_fields, widest, widest))
    for f in range(mode.num_fields):
        for frames in recordings:
            level = frames[:, f].astype(np.int64)
            counts_FVV[f] += np.bincount(level[:-1] * widest + level[1:], minlength=widest**2).reshape(widest, widest)
        # A level without a successor, as it only ends a recording, is followed like any other level.
        counts_FVV[f, counts_FVV[f].sum(axis=1) == 0] = counts_FVV[f].sum(axis=0)
    cumulative_FVV = counts_FVV.cumsum(axis=2)
    all_fields = np.arange(mode.num_fields)
    frames = np.empty((num_frames, mode.num_fields), mode.dtype)
    first = recordings[rng.integers(len(recordings))]
    now = first[rng.integers(len(first))].astype(np.int64)
    for t in range(num_frames):
        frames[t] = now
        cumulative_FV = cumulative_FVV[all_fields, now]
        now = (cumulative_FV <= (rng.random(mode.num_fields) * cumulative_FV[:, -1])[:, None]).sum(axis=1)
    return frames


def sample_quilt(frames: np.ndarray, num_frames: int, seed: int) -> np.ndarray:
    """Return frames (num_frames, F) of real speech, cut every 160 ms and joined where the last two frames fit.

    It holds real syllables, but hardly any words.

    Args:
        frames: (T, F) of mode 1300, at least a minute.
        num_frames: how many frames to return.
        seed: random seed of the jumps.
    """
    rng = np.random.default_rng(seed)
    sound = _sound_features(frames)
    # Row i describes frames i and i + 1.
    pairs = np.concatenate([sound[:-1], sound[1:]], axis=1)
    centres = pairs[rng.choice(len(pairs), NUM_KINDS, replace=False)]
    for _ in range(8):
        kind = _nearest(pairs, centres)
        centres = np.stack(
            [
                pairs[kind == k if (kind == k).any() else [rng.integers(len(pairs))]].mean(axis=0)
                for k in range(NUM_KINDS)
            ]
        )
    last = len(pairs) - QUILT_FRAMES - 1
    places = [np.flatnonzero(kind == k) for k in range(NUM_KINDS)]
    places = [some[some < last] for some in places]
    now, chosen = int(rng.integers(last)), list[int]()
    while len(chosen) < num_frames:
        chosen.extend(range(now + 2, now + 2 + QUILT_FRAMES))
        now += QUILT_FRAMES
        near = places[kind[now]]
        near = near[abs(near - now) > MIN_JUMP_FRAMES]
        if len(near):
            some = rng.choice(near, min(NUM_PLACES, len(near)))
            now = int(some[((pairs[some] - pairs[now]) ** 2).sum(axis=1).argmin()])
        elif now >= last:
            now = int(rng.integers(last))
    return frames[chosen[:num_frames]]


def _sound_features(frames: np.ndarray) -> np.ndarray:
    """Return voicing, pitch, energy and LSPs of frames of mode 1300, in units of about equal weight: (T, 13)."""
    mode = MODES["1300"]
    pitch, hz = pitch_hz(frames, mode), lsp_hz(frames, mode)
    assert pitch is not None
    assert hz is not None
    voicing, energy = (frames[:, mode.group_indices(group)] for group in ("voicing", "energy"))
    octaves = np.nan_to_num(np.log2(pitch / 100))[:, None]
    parts = [2 * voicing.mean(axis=1, keepdims=True), octaves, energy / 6, hz / hz.std(axis=0) / 1.5]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return for each point (N, D) the index of the nearest centre (K, D)."""
    squares = (centres**2).sum(axis=1)
    return np.concatenate([(squares - 2 * some @ centres.T).argmin(axis=1) for some in np.array_split(points, 50)])
