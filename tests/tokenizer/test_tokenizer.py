"""The encoder learns from context, is trained to the same weights after a stop, and cuts no recording into windows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from babble.codec.frames import get_mode
from babble.tokenizer import tokenizer as module
from babble.tokenizer.clusters import fit_clusters
from babble.tokenizer.config import EncoderConfig
from babble.tokenizer.encoder import TokenEncoder, map_windows
from babble.tokenizer.tokenizer import Tokenizer, train_encoder

MODE = get_mode("1300")
CONFIG = EncoderConfig(units=8, targets=4, steps=12)


class Stop(Exception):
    """Raised by a report, as a signal would be."""


@pytest.fixture
def recordings() -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, MODE.levels, (400, 16)).astype(np.uint8) for n in range(2)]


def train(recordings: list[np.ndarray], path: Path, stop_at: int | None = None) -> TokenEncoder:
    targets = [recording[:, 4] // 32 for recording in recordings]

    def report(step: int, loss: float) -> None:
        if step == stop_at:
            raise Stop

    return train_encoder(CONFIG, MODE, recordings, targets, 3, path, report)


def test_a_stopped_training_continues_to_the_same_weights(
    recordings: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recordings, tmp_path / "whole.pt")
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    with pytest.raises(Stop):
        train(recordings, tmp_path / "parts.pt", stop_at=7)
    assert (tmp_path / "parts.pt").is_file()
    parts = train(recordings, tmp_path / "parts.pt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name


def test_masked_frames_are_predicted_from_their_neighbours() -> None:
    """Frames come in pairs of equal pitch; the target is the pitch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encoder = TokenEncoder(MODE, units=16, num_targets=2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        kinds_BT = torch.randint(2, (8, 8), generator=generator).repeat_interleave(8, dim=1)
        frames_BTF = torch.randint(2, (8, 64, 16), generator=generator)
        frames_BTF[..., 4] = kinds_BT * 100
        loss = encoder.loss(frames_BTF, kinds_BT, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[:5]) > 0.5
    assert np.mean(losses[-20:]) < 0.3


@pytest.mark.parametrize("num_frames", [1, 99, 800, 801, 2500])
def test_windows_give_each_frame_once_and_with_its_context(num_frames: int) -> None:
    frames_TF = torch.arange(num_frames)[:, None]

    def neighbours(frames_BTF: torch.Tensor) -> torch.Tensor:
        return torch.cat([frames_BTF, frames_BTF.roll(1, 1), frames_BTF.roll(-1, 1)], dim=-1)

    found = map_windows(neighbours, frames_TF)
    t = torch.arange(num_frames)
    expected = torch.stack([t, (t - 1).clamp(min=0), (t + 1).clamp(max=num_frames - 1)], dim=1)
    assert torch.equal(found, expected)


def test_a_saved_tokenizer_gives_the_same_tokens(recordings: list[np.ndarray], tmp_path: Path) -> None:
    encoder = train(recordings, tmp_path / "state.pt")
    features = encoder.features(torch.from_numpy(recordings[0].astype(np.int64)))
    first = Tokenizer.from_state(Tokenizer(encoder, fit_clusters(features, 5, 0.6, 0), MODE).state())
    second = Tokenizer.from_state(first.state())
    tokens = first.tokenize(recordings[1])
    assert (tokens == second.tokenize(recordings[1])).all()
    assert len(np.unique(tokens)) > 1
    with pytest.raises(ValueError, match="not written by this version of babble"):
        Tokenizer.from_state({**first.state(), "units": 9})
