"""Fixtures of the tests that need a GPU: the device, and what a training reads."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

# What `train` needs beyond torch and Lightning.
NEEDED = ("jsonargparse", "webdataset", "pycodec2", "soundfile", "matplotlib", "PIL")


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    # cuBLAS reads it when it is first used: only workspaces of one size give the same bits each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def shards(gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of mode 1300 whose levels walk at random: two recordings for training, one for validation."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    from shard_folder import write_folder

    from babble.codec.frames import get_mode

    mode, folder = get_mode("1300"), tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)

    def walk(length: int) -> np.ndarray:
        levels = rng.integers(-1, 2, size=(length, mode.num_fields)).cumsum(axis=0)
        return abs((levels + mode.levels) % (2 * mode.levels) - mode.levels).clip(max=mode.levels - 1)

    write_folder(
        folder,
        mode,
        {"train": {"train-0": walk(1000), "train-1": walk(800)}, "validation": {"validation-0": walk(500)}},
    )
    return folder


@pytest.fixture
def full_precision(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have cuDNN compute float32 in all its bits, to be compared with a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
