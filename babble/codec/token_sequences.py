"""Tokens of frames <-> tokens with durations, and what a frame model receives of them.

sequence_NF = join_tokens(tokens_T)             # (token, duration - 1) in the mode TOKENS
tokens_T = spread_tokens(sequence_NF)
context_TC = make_context(sequence_NF)
frames_TX = add_context(frames_TF, sequence_NF)
"""

import numpy as np

from babble.codec.frames import TOKENS

# The duration of a token in frames, less one, is a field of the mode.
MAX_DURATION = int(TOKENS.levels[1])
# Of each frame: its token, the next token, frames left of its token, frames since its start; times up to MAX_DURATION.
CONTEXT = ("token", "next", "left", "since")


def join_tokens(tokens_T: np.ndarray) -> np.ndarray:
    """Return equal neighbours as one token with its duration: frames (N, 2) of the mode TOKENS.

    A longer one than `MAX_DURATION` becomes several.
    """
    starts = np.flatnonzero(np.diff(tokens_T, prepend=-1))
    lengths = np.diff(starts, append=len(tokens_T))
    rows = []
    for token, length in zip(tokens_T[starts].tolist(), lengths.tolist(), strict=True):
        whole, rest = divmod(length, MAX_DURATION)
        rows += [(token, MAX_DURATION - 1)] * whole + [(token, rest - 1)] * (rest > 0)
    return np.array(rows, TOKENS.dtype).reshape(-1, 2)


def spread_tokens(sequence_NF: np.ndarray) -> np.ndarray:
    """Return the token of each frame, int64 (T,): the inverse of `join_tokens`."""
    return np.repeat(sequence_NF[:, 0].astype(np.int64), sequence_NF[:, 1].astype(np.int64) + 1)


def make_context(sequence_NF: np.ndarray) -> np.ndarray:
    """Return what is known of each frame's token, int16 (T, C); the columns are `CONTEXT`.

    The token after the last one is that token itself.
    """
    durations = sequence_NF[:, 1].astype(np.int64) + 1
    tokens = sequence_NF[:, 0].astype(np.int64)
    following = np.append(tokens[1:], tokens[-1:])
    ends = np.cumsum(durations)
    t = np.arange(ends[-1] if len(ends) else 0)
    of_frame = np.repeat(np.arange(len(tokens)), durations)
    left = ends[of_frame] - 1 - t
    since = t - (ends - durations)[of_frame]
    return np.stack([tokens[of_frame], following[of_frame], left, since], axis=1).astype(np.int16)


def add_context(frames_TF: np.ndarray, sequence_NF: np.ndarray) -> np.ndarray:
    """Return frames with the context of each after its levels, int16 (T, F + C), as `Babbler.split` takes them."""
    return np.concatenate([frames_TF.astype(np.int16), make_context(sequence_NF)], axis=1)


def name_frame(mode: str) -> str:
    """Return what a frame of the mode of that name is called: "frame", or in the mode TOKENS "token"."""
    return "token" if mode == TOKENS.name else "frame"
