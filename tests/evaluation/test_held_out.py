"""Metrics of a network on recordings: against training's own sums, a slow loop, and the entropy of its samples."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from speech_samples import MODE, random_frames

from babble.evaluation import held_out
from babble.evaluation.held_out import measure_held_out, measure_training_error_2017
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.model.likelihood import measure_losses, name_losses, sum_losses
from babble.model.sampling import Sampling


@torch.no_grad()
def test_the_2017_training_error_is_that_of_the_frame_after_each_window():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=4, head="regression"), MODE)
    recordings = [random_frames(30, 1), random_frames(8, 2), random_frames(20, 3)]
    by_hand = []
    for frames in recordings:
        for first in range(len(frames) - 10):
            window = torch.from_numpy(frames[first : first + 11].astype(np.int64))[None]
            guess = model.head.predict(model(window[:, :-1])[0][:, -1])
            by_hand.append((guess - window[:, -1]).abs().mean().item())
    assert measure_training_error_2017(model, recordings, 1000, 10) == pytest.approx(np.mean(by_hand), rel=1e-5)
    with pytest.raises(ValueError, match="no training recording is longer than a window of 30 frames"):
        measure_training_error_2017(model, recordings, 1000, 30)


def _sharp_model(head: str) -> Babbler:
    """Return an untrained network whose distributions are far from uniform and depend on its input."""
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=8, head=head), MODE).eval()
    for parameter in model.head.parameters():
        parameter.data *= 4
    return model


@torch.no_grad()
def _bits_and_entropies(model: Babbler, stream_BTF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bits and the entropy in bits (B, T - 1) of every frame of streams but the first."""
    head: Any = model.head
    hidden_BTH, _ = model(stream_BTF[:, :-1])
    if model.config.head == "autoregressive":
        logits = head.field_logits(hidden_BTH, stream_BTF[:, 1:])
    else:
        logits = head.logits(hidden_BTH).split(MODE.levels.tolist(), dim=-1)
    nats = sum(torch.distributions.Categorical(logits=field).entropy() for field in logits)
    return measure_losses(model, stream_BTF)[1].sum(dim=-1), nats / math.log(2)


@pytest.mark.parametrize("head", ["categorical", "autoregressive", "mixture"])
def test_frames_sampled_at_temperature_1_have_as_many_bits_as_their_entropy(head: str):
    model = _sharp_model(head)
    prompts = np.stack([random_frames(3, n) for n in range(24)])
    deviations = {}
    for temperature in ("1", "0.8"):
        sampled = generate_frames(model, prompts, 60, Sampling.for_mode(MODE, temperature), seed=1)
        stream = torch.from_numpy(np.concatenate([prompts, sampled], axis=1).astype(np.int64))
        bits, entropy = (values[:, 2:] for values in _bits_and_entropies(model, stream))
        assert entropy.mean() < 0.9 * MODE.bits
        # The difference of each frame has mean 0 given all frames before it, so the error of their sum is that of
        # independent ones.
        difference = (bits - entropy).double().flatten()
        deviations[temperature] = float(difference.mean() / (difference.std() / math.sqrt(len(difference))))
    assert abs(deviations["1"]) < 4
    assert deviations["0.8"] < -8


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_metrics_are_those_of_training_by_field_too(head: str):
    model = _sharp_model(head)
    recordings = [random_frames(40, 1), random_frames(25, 2)]
    metrics = measure_held_out(model, recordings)
    tensors = [torch.from_numpy(frames.astype(np.int64))[None] for frames in recordings]
    for name, value in name_losses(sum(sum_losses(model, t) for t in tensors), model, MODE).items():
        assert metrics[name] == pytest.approx(value, rel=1e-5)
    assert metrics["intervals"]["error_levels"] is None
    if head == "regression":
        assert not [name for name in metrics if "bits" in name]
        return
    unvoiced = total = 0.0
    for frames, tensor in zip(recordings, tensors, strict=True):
        for following, bits_F in zip(frames[1:], measure_losses(model, tensor)[1][0].tolist(), strict=True):
            total += sum(bits_F)
            unvoiced += bits_F[4] if following[3] == 0 else 0
    assert 0 < unvoiced < total
    assert sum(metrics["bits_by_field"].values()) == pytest.approx(total / 63, rel=1e-5)
    assert metrics["bits_per_frame_without_unvoiced_pitch"] == pytest.approx((total - unvoiced) / 63, rel=1e-5)


def test_long_speech_has_intervals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held_out, "BLOCK_SECONDS", 2)
    metrics = measure_held_out(_sharp_model("categorical"), [random_frames(600, 1)])
    assert set(metrics["intervals"]) == {"error_levels", "bits_per_frame", "bits_per_frame_without_unvoiced_pitch"}
    for name, (low, high) in metrics["intervals"].items():
        assert low < metrics[name] < high
