"""Small voices, as `babble export` writes them."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from babble.codec.frames import get_mode
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.player.session import Voices


def write_voice(path: Path, mode: str = "1300", head: str = "autoregressive") -> Path:
    """Write a run folder that has only a checkpoint of a tiny network."""
    torch.manual_seed(len(path.name))
    config = ModelConfig(num_layers=1, units=8, head=head, head_units=8)  # type: ignore[arg-type]
    weights = {f"model.{name}": value for name, value in Babbler(config, get_mode(mode)).state_dict().items()}
    (path / "checkpoints").mkdir(parents=True)
    about = {"hyper_parameters": {"model": asdict(config), "mode": mode}, "bypassed_layers": []}
    torch.save({**about, "epoch": 1, "global_step": 1, "state_dict": weights}, path / "checkpoints" / "best.ckpt")
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs with sound, two of mode 1300, with and without a likelihood, and one of 700C; and one over tokens."""
    folder = tmp_path_factory.mktemp("voices")
    write_voice(folder / "ann")
    write_voice(folder / "drone", head="regression")
    write_voice(folder / "low-rate", mode="700C")
    write_voice(folder / "over-tokens", mode="tokens")
    return folder


@pytest.fixture
def voices(runs: Path) -> Voices:
    """Those of `runs`, "ann" first."""
    return Voices(runs / "ann", runs)
