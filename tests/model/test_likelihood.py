"""Loss and error on whole recordings."""

import pytest
import torch

from babble.codec.frames import MODES
from babble.model import likelihood
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.model.heads import HEADS
from babble.model.likelihood import measure_losses, name_losses, sum_losses

MODE = MODES["1300"]


def _speech(frames: int) -> torch.Tensor:
    return (torch.rand(1, frames, MODE.num_fields) * torch.tensor(MODE.levels)).long()


def _model(head: str) -> Babbler:
    torch.manual_seed(0)
    return Babbler(ModelConfig(num_layers=2, units=8, head=head), MODE)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", list(HEADS))
def test_chunks_with_carried_state_have_the_loss_of_one_pass(head: str, monkeypatch: pytest.MonkeyPatch):
    model, recording = _model(head), _speech(101)
    whole = sum_losses(model, recording)
    for chunk in (1, 7, 50, 100):
        monkeypatch.setattr(likelihood, "CHUNK_FRAMES", chunk)
        torch.testing.assert_close(sum_losses(model, recording), whole, rtol=1e-5, atol=1e-3)
    assert (whole[2] == 100).all()


@torch.no_grad()
def test_metrics_are_means_over_every_frame_but_the_first():
    model, recording = _model("categorical"), _speech(30)
    hidden_BTH, _ = model(recording[:, :-1])
    bits_TF = model.head.loss(hidden_BTH, recording[:, 1:])[0]
    error_TF = (model.head.predict(hidden_BTH) - recording[:, 1:]).abs()[0]
    metrics = name_losses(sum_losses(model, recording), model, MODE)
    assert metrics["bits_per_frame"] == pytest.approx(bits_TF.sum(dim=1).mean().item(), rel=1e-5)
    assert metrics["error_levels"] == pytest.approx(error_TF.mean().item(), rel=1e-5)
    assert metrics["bits/lsp"] == pytest.approx(bits_TF[:, 6:].sum(dim=1).mean().item(), rel=1e-5)
    assert metrics["error/pitch"] == pytest.approx(error_TF[:, 4].mean().item(), rel=1e-5)
    parts = sum(value for name, value in metrics.items() if name.startswith("bits/"))
    assert parts == pytest.approx(metrics["bits_per_frame"])


def test_a_head_without_likelihood_reports_no_bits_and_labels_no_error():
    metrics = name_losses(sum_losses(_model("regression"), _speech(9)), _model("regression"), MODE)
    assert not any("bits" in name for name in metrics)
    labels = Babbler(ModelConfig(num_layers=1, units=4), MODES["700C"])
    sums = sum_losses(labels, torch.zeros(1, 5, 4, dtype=torch.long))
    assert not any("error" in name for name in name_losses(sums, labels, MODES["700C"]))


@torch.no_grad()
def test_losses_by_frame_add_up_to_the_sums():
    model, recording = _model("autoregressive"), _speech(40)
    error, bits = measure_losses(model, recording)
    assert error.shape == bits.shape == (1, 39, MODE.num_fields)
    sums = sum_losses(model, recording)
    torch.testing.assert_close(error.double().sum(dim=(0, 1)), sums[0])
    torch.testing.assert_close(bits.double().sum(dim=(0, 1)), sums[1])
