"""Babble compared with real speech and references, in modes of every kind."""

import json

import numpy as np
import pytest
import torch
from speech_samples import real_pcm

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import MODES, Mode, unpack_packets
from babble.evaluation import classifier, comparison
from babble.evaluation.comparison import compare_speech
from babble.evaluation.held_out import measure_held_out
from babble.generation.free_run import generate_frames
from babble.generation.prompts import spread_prompts
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig


@pytest.mark.parametrize("mode", [MODES[name] for name in ("1300", "3200", "2400", "700C")], ids=lambda mode: mode.name)
def test_modes_of_every_kind_are_compared(mode: Mode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "CLASSIFIED_SECONDS", (1,))
    monkeypatch.setattr(comparison, "PHONE_SECONDS", 0.0)
    # One step per fold.
    monkeypatch.setattr(classifier, "FRAMES_PER_FOLD", 1)
    monkeypatch.setattr(classifier, "FRAMES_PER_CHECK", 1)
    frames = unpack_packets(encode_pcm(real_pcm(24), mode), mode)
    train, held_out = [frames[: len(frames) // 2]], [frames[len(frames) // 2 :]]
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=4), mode).eval()
    metrics = measure_held_out(model, held_out)
    assert ("error_levels" in metrics) == (not mode.has_labels)
    assert sum(metrics["bits_by_field"].values()) == pytest.approx(metrics["bits_per_frame"])
    babble = list(generate_frames(model, spread_prompts(held_out, 8), 12 * mode.frames_per_second))
    assert len({stream.tobytes() for stream in babble}) == 8
    shape = (8, 12 * mode.frames_per_second)
    result = compare_speech(lambda: babble, shape, held_out, train, mode, seed=0)
    assert result["classifier"]["babble"]["1"]["clips"] == 10
    assert [np.isfinite(result["classifier"][name]["1"]["accuracy"]) for name in result["classifier"]] == [True] * 4
    json.dumps(result, allow_nan=False)
    if mode.name == "1300":
        # In processes, with clips that are too long to be classified.
        monkeypatch.setattr(comparison, "CLASSIFIED_SECONDS", (12,))
        monkeypatch.setattr(comparison, "PARALLEL_SECONDS", 0.0)
        again = compare_speech(lambda: babble, shape, held_out, train, mode, seed=0)
        assert again == {
            "statistics": result["statistics"],
            "classifier": {n: {"12": None} for n in result["classifier"]},
        }
