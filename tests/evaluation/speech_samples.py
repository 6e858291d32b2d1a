"""Frames for the tests of this folder: random ones, and real speech."""

import numpy as np
import pytest
import soundfile
from paths import SPEECH, TALE

from babble.codec.codec2 import read_c2cb
from babble.codec.frames import MODES, Mode

MODE = MODES["1300"]
RATE = MODE.frames_per_second
# Columns of the first voicing field, pitch, energy and the first LSP in mode 1300.
WO, E, LSP = 4, 5, 6


def random_frames(num_frames: int, seed: int, mode: Mode = MODE) -> np.ndarray:
    """Return frames (num_frames, F) of low levels, each field independent."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.minimum(mode.levels, 6), (num_frames, mode.num_fields)).astype(mode.dtype)


def real_pcm(seconds: int) -> np.ndarray:
    """Return pcm of real speech at 8 kHz."""
    pcm, _ = soundfile.read(SPEECH / "allison-01.ogg", frames=seconds * 8000, dtype="int16")
    return pcm


def read_tale(part: int) -> np.ndarray:
    """Return the frames of a part of "A Tale of Two Cities"."""
    if not TALE.is_dir():
        pytest.skip("the Tale corpus is not at hand")
    return read_c2cb(TALE / f"part-{part:02}.c2cb", MODE)
