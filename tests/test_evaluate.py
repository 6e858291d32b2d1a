"""The measures of a network: held-out speech against a slow loop, what it draws against itself, a whole evaluation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from paths import SPEECH
from PIL import Image

from babble import discriminator
from babble import evaluate as evaluate_module
from babble.codec.codec2 import encode_pcm
from babble.codec.frames import MODES, Mode, unpack_packets
from babble.evaluate import (
    EvaluateConfig,
    compare_speech,
    evaluate,
    format_table,
    make_babble,
    measure_held_out,
    pick_segments,
    training_error_2017,
)
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler, ModelConfig
from babble.model.likelihood import measure_losses, name_losses, sum_losses
from babble.model.sampling import Sampling
from babble.run_folder import RunFolder
from babble.training.module import BabbleModule, OptimConfig

MODE = MODES["1300"]


def _speech(frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.minimum(MODE.levels, 5), (frames, MODE.num_fields)).astype(np.uint8)


@torch.no_grad()
def test_the_2017_training_error_is_that_of_the_last_frame_of_windows():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=4, head="regression"), MODE)
    recordings = [_speech(30, 1), _speech(8, 2), _speech(20, 3)]
    by_hand = []
    for frames in recordings:
        for first in range(len(frames) - 10):
            window = torch.from_numpy(frames[first : first + 11].astype(np.int64))[None]
            guess = model.head.predict(model(window[:, :-1])[0][:, -1])
            by_hand.append((guess - window[:, -1]).abs().mean().item())
    assert training_error_2017(model, recordings, 1000, 10) == pytest.approx(np.mean(by_hand), rel=1e-5)


def _sharp_model(head: str) -> Babbler:
    """Return a network that is not trained, but whose distributions are far from even and move with what it hears."""
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=8, head=head), MODE).eval()
    for parameter in model.head.parameters():
        parameter.data *= 4
    return model


@torch.no_grad()
def _costs_and_entropies(model: Babbler, stream_BTF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cost and entropy in bits (B, T - 1) of each frame of streams but the first."""
    head: Any = model.head
    hidden_BTH, _ = model(stream_BTF[:, :-1])
    if model.config.head == "autoregressive":
        logits = head.field_logits(hidden_BTH, stream_BTF[:, 1:])
    else:
        logits = head.logits(hidden_BTH).split(MODE.levels.tolist(), dim=-1)
    nats = sum(torch.distributions.Categorical(logits=field).entropy() for field in logits)
    return measure_losses(model, stream_BTF)[1].sum(dim=-1), nats / math.log(2)


@pytest.mark.parametrize("head", ["categorical", "autoregressive", "mixture"])
def test_what_is_drawn_at_temperature_1_costs_its_entropy_when_it_is_judged(head: str):
    model = _sharp_model(head)
    prompts = np.stack([_speech(3, n) for n in range(24)])
    away = {}
    for temperature in ("1", "0.8"):
        drawn = generate_frames(model, prompts, 60, Sampling.for_mode(MODE, temperature), seed=1)
        stream = torch.from_numpy(np.concatenate([prompts, drawn], axis=1).astype(np.int64))
        cost, entropy = (values[:, 2:] for values in _costs_and_entropies(model, stream))
        assert entropy.mean() < 0.9 * MODE.bits
        # Each frame's surprise has mean 0 given all before it, so their sum's error is that of independent ones.
        surprise = (cost - entropy).double().flatten()
        away[temperature] = float(surprise.mean() / (surprise.std() / math.sqrt(len(surprise))))
    assert abs(away["1"]) < 4
    assert away["0.8"] < -8


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_cost_figures_are_those_of_training_by_field_too(head: str):
    model = _sharp_model(head)
    recordings = [_speech(40, 1), _speech(25, 2)]
    figures = measure_held_out(model, recordings)
    tensors = [torch.from_numpy(frames.astype(np.int64))[None] for frames in recordings]
    for name, value in name_losses(sum(sum_losses(model, t) for t in tensors), model, MODE).items():
        assert figures[name] == pytest.approx(value, rel=1e-5)
    assert figures["intervals"]["error_levels"] is None
    if head == "regression":
        assert not [name for name in figures if "bits" in name]
        return
    unvoiced = total = 0.0
    for frames, tensor in zip(recordings, tensors, strict=True):
        for after, bits_F in zip(frames[1:], measure_losses(model, tensor)[1][0].tolist(), strict=True):
            total += sum(bits_F)
            unvoiced += bits_F[4] if after[3] == 0 else 0
    assert 0 < unvoiced < total
    assert sum(figures["bits_by_field"].values()) == pytest.approx(total / 63, rel=1e-5)
    assert figures["bits_per_frame_without_unvoiced_pitch"] == pytest.approx((total - unvoiced) / 63, rel=1e-5)


def test_long_speech_has_intervals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate_module, "BLOCK_SECONDS", 2)
    figures = measure_held_out(_sharp_model("categorical"), [_speech(600, 1)])
    assert set(figures["intervals"]) == {"error_levels", "bits_per_frame", "bits_per_frame_without_unvoiced_pitch"}
    for name, (low, high) in figures["intervals"].items():
        assert low < figures[name] < high


def test_stretches_are_cut_from_everywhere_and_never_across_recordings():
    recordings = [np.arange(100 * r, 100 * r + length)[:, None] for r, length in enumerate((35, 9, 40))]
    assert [len(s) for s in pick_segments(recordings, 10, 1000, 3, 0)] == [10, 10, 10, 5, 9, 10, 10, 10, 10]
    assert [len(s) for s in pick_segments(recordings, 10, 1000, 7, 0)] == [10, 10, 10, 9, 10, 10, 10, 10]
    # Where most recordings are shorter than a clip, a clip has to be shorter.
    assert [len(s) for s in pick_segments(recordings, 40, 1000, 38, 0)] == [35, 40]
    few = pick_segments(recordings, 10, 40, 3, 0)
    assert 4 <= len(few) <= 5
    assert [s[0, 0] for s in few] == sorted(s[0, 0] for s in few)
    assert all(np.all(np.diff(s[:, 0]) == 1) for s in few)


def _make_run(path: Path, shards: Path, head: str) -> RunFolder:
    run = RunFolder(path)
    run.claim({"data": {"shards": str(shards)}})
    torch.manual_seed(0)
    module = BabbleModule(ModelConfig(num_layers=1, units=4, head=head), MODE, OptimConfig())
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**checkpoint, "epoch": 1, "global_step": 2}, run.checkpoint("best"))
    return run


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_a_run_is_measured_on_the_split_that_is_named(head: str, speech_shards: Path, tmp_path: Path):
    run = _make_run(tmp_path / "run", speech_shards, head)
    config = EvaluateConfig(
        run=run.path,
        split="test",
        training_windows=20,
        window_frames=30,
        babble_seconds=0,
        json=tmp_path / "f.json",
        figure=tmp_path / "f.png",
    )
    figures = evaluate(config)
    assert figures["recordings"] == ["allison-08"]
    assert figures["hours"] == pytest.approx(20 / 3600)
    assert ("bits_per_frame" in figures["held_out"]) == (head == "categorical")
    assert "speech" not in figures
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width == 1400
    table = format_table(figures)
    assert f"{figures['held_out']['error_levels']:8.3f}  this network" in table
    assert ("without the pitch" in table) == (head == "categorical")
    assert "no result" in table


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_babble_is_measured_beside_real_and_dumb_speech(
    head: str, speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate_module, "CLASSIFIED_SECONDS", (1, 16))
    monkeypatch.setattr(evaluate_module, "PHONE_SECONDS", 0.0)
    monkeypatch.setattr(discriminator, "FRAMES_PER_TURN", 12_000)
    monkeypatch.setattr(discriminator, "FRAMES_PER_CHECK", 6_000)
    run = _make_run(tmp_path / "run", speech_shards, head)
    settings: dict[str, Any] = {"run": run.path, "split": "test", "babble_seconds": 20, "figure": tmp_path / "f.png"}
    figures = evaluate(EvaluateConfig(**settings, json=tmp_path / "f.json"))
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    found = figures["speech"]["classifier"]
    assert list(found) == ["babble", "other real speech", "shuffled frames", "Markov chain"]
    # A network that has not learned is no speech.
    assert found["babble"]["1"]["accuracy"] > 0.75
    assert found["babble"]["1"]["clips"] == 20
    assert found["babble"]["16"] is None
    table = format_table(figures)
    assert "too little speech" in table
    assert "babble: streams 8, seconds 20" in table
    assert f"{found['babble']['1']['accuracy']:.3f} (" in table
    assert (tmp_path / "f.png").stat().st_size > 10_000


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_mode_is_measured(mode: Mode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate_module, "CLASSIFIED_SECONDS", (1,))
    monkeypatch.setattr(evaluate_module, "PHONE_SECONDS", 0.0)
    monkeypatch.setattr(discriminator, "FRAMES_PER_TURN", 5_000)
    monkeypatch.setattr(discriminator, "FRAMES_PER_CHECK", 5_000)
    pcm, _ = soundfile.read(SPEECH / "allison-01.ogg", frames=24 * 8000, dtype="int16")
    frames = unpack_packets(encode_pcm(pcm, mode), mode)
    train, held_out = [frames[: len(frames) // 2]], [frames[len(frames) // 2 :]]
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=4), mode).eval()
    figures = measure_held_out(model, held_out)
    assert ("error_levels" in figures) == (not mode.has_labels)
    assert sum(figures["bits_by_field"].values()) == pytest.approx(figures["bits_per_frame"])
    babble = make_babble(model, held_out, 12 * mode.frames_per_second, Sampling.for_mode(mode), seed=0)
    assert len({stream.tobytes() for stream in babble}) == len(babble) == 8
    found = compare_speech(babble, held_out, train, mode, seed=0)
    assert found["classifier"]["babble"]["1"]["clips"] == 12
    json.dumps(found, allow_nan=False)


def test_a_temperature_that_no_head_obeys_is_refused(speech_shards: Path, tmp_path: Path):
    run = _make_run(tmp_path / "run", speech_shards, "regression")
    with pytest.raises(ValueError, match=r"temperature 0\.9 has no effect"):
        evaluate(EvaluateConfig(run=run.path, split="test", temperature=0.9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train"}, "validation or test"),
        ({"run": None}, "name the run"),
        ({"babble_seconds": -1}, "0 or more"),
        ({"babble_seconds": 0, "top_p": 0.9}, "no effect"),
        ({"figure": Path("f.jpg")}, "ends in .png"),
    ],
)
def test_what_can_not_be_measured_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**{"run": Path("x"), **settings})
