"""Generation and evaluation on a GPU: the same numbers as on a CPU, and the same frames from the same seed."""

import copy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from babble.codec.frames import get_mode
from babble.evaluation import context
from babble.evaluation.held_out import measure_held_out
from babble.generation import free_run
from babble.generation.frame_graph import FrameGraph, Now
from babble.generation.free_run import FreeRun, generate_frames
from babble.generation.token_run import load_token_level
from babble.model.babbler import Added, Babbler
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.config import Cell, HeadName, ModelConfig
from babble.model.sampling import Sampling
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint

pytestmark = pytest.mark.gpu

MODE = get_mode("1300")


def _network(cell: Any = "lstm", head: Any = "autoregressive") -> Babbler:
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, head=head, num_layers=2, units=32, head_units=32, skips=True)
    return Babbler(config, MODE).eval()


def _frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(MODE.levels, size=(*shape, MODE.num_fields)).astype(MODE.dtype)


@pytest.mark.parametrize("cell", get_args(Cell))
def test_single_steps_on_a_gpu_compute_what_a_cpu_does(cell: str, gpu: torch.device):
    model = _network(cell).double()
    frames_BTF = torch.from_numpy(_frames(3, 20).astype(np.int64))
    with torch.inference_mode():
        expected_BTH, _ = model(frames_BTF)
        on_gpu = copy.deepcopy(model).to(gpu)
        step, state = on_gpu.make_step(), on_gpu.initial_state(3)
        hidden = []
        for frames_BF in frames_BTF.to(gpu).unbind(dim=1):
            hidden_BH, state = step(frames_BF, state)
            hidden.append(hidden_BH.cpu())
    torch.testing.assert_close(torch.stack(hidden, dim=1), expected_BTH, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("streams", [1, 64])
@pytest.mark.parametrize("head", get_args(HeadName))
def test_the_same_seed_gives_the_same_frames_on_a_gpu(head: str, streams: int, gpu: torch.device):
    model = _network(head=head).to(gpu)
    prompts_BTF = _frames(streams, 5)
    sampling = Sampling.for_mode(MODE, "0.9", "0.95", "0.01") if model.head.has_likelihood else None
    once, again, other = (generate_frames(model, prompts_BTF, 70, sampling, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert once.shape == (streams, 70, MODE.num_fields)
    assert (once < MODE.levels).all()
    assert np.array_equal(once, other) == (not model.head.has_likelihood)


@pytest.mark.parametrize("head", get_args(HeadName))
def test_a_recorded_frame_is_the_frame_itself(head: str, gpu: torch.device):
    model = _network(head=head).to(gpu)
    sampling = Sampling.for_mode(MODE, "0.9", "0.95", "0.01") if model.head.has_likelihood else Sampling.for_mode(MODE)
    with torch.inference_mode():
        hidden_BTH, state = model(torch.from_numpy(_frames(3, 5).astype(np.int64)).to(gpu))
        step, found = model.make_step(), []
        for is_recorded in (False, True):
            generator = torch.Generator(gpu).manual_seed(1)
            sample = model.head.make_sampler(sampling, generator)

            def next_frame(now: Now, added: Added | None, sample: Any = sample) -> tuple[torch.Tensor, Now]:
                frames_BF = sample(now[0])
                return frames_BF, step(frames_BF, now[1], added)

            now = hidden_BTH[:, -1], state
            make_frame = FrameGraph(next_frame, now, None, generator) if is_recorded else next_frame
            for _ in range(20):
                frames_BF, now = make_frame(now, None)
                found.append(frames_BF.cpu())
    torch.testing.assert_close(torch.stack(found[20:]), torch.stack(found[:20]), rtol=0, atol=0)


def test_a_recorded_frame_receives_its_token(gpu: torch.device, monkeypatch: pytest.MonkeyPatch):
    model = build_model(load_checkpoint(locate_checkpoint(PRETRAINED)[1])).to(gpu)
    level = load_token_level(RunFolder(PRETRAINED), model)

    def generate() -> np.ndarray:
        return FreeRun(model, _frames(2, 25), seed=1, tokens=level).make_block(60)

    recorded = generate()
    monkeypatch.setattr(free_run, "FrameGraph", lambda next_frame, *_: next_frame)
    np.testing.assert_array_equal(recorded, generate())


def test_other_sampling_settings_take_effect_within_a_run_on_a_gpu(gpu: torch.device):
    run = FreeRun(_network().to(gpu), _frames(2, 5), seed=1)
    first = run.make_block(5)
    run.set_sampling(Sampling.for_mode(MODE, temperature="0.01"))
    cold = run.make_block(5)
    run.set_sampling(Sampling.for_mode(MODE))
    assert not np.array_equal(first, cold)
    assert not np.array_equal(cold, run.make_block(5))


@pytest.mark.parametrize("head", [head for head in get_args(HeadName) if head != "regression"])
def test_levels_are_drawn_as_often_as_their_probability_says(head: str, gpu: torch.device):
    model = _network(head=head)
    prompts_BTF = np.repeat(_frames(1, 5), 4096, axis=0)
    drawn_NF = generate_frames(copy.deepcopy(model).to(gpu), prompts_BTF, 1)[:, 0].astype(np.int64)
    with torch.inference_mode():
        hidden_BTH, _ = model(torch.from_numpy(prompts_BTF[:1].astype(np.int64)))
        # The first field is independent of the others.
        targets_VF = torch.zeros(int(MODE.levels[0]), 1, MODE.num_fields, dtype=torch.int64)
        targets_VF[:, 0, 0] = torch.arange(int(MODE.levels[0]))
        bits_V = model.head.loss(hidden_BTH[:, -1:].expand(len(targets_VF), -1, -1), targets_VF)[:, 0, 0]
    expected_V = (2**-bits_V).numpy()
    found_V = np.bincount(drawn_NF[:, 0], minlength=len(expected_V)) / len(drawn_NF)
    assert abs(found_V - expected_V).max() < 5 * np.sqrt(expected_V.max() / len(drawn_NF))


def test_one_stream_starts_over_on_a_gpu(gpu: torch.device):
    run = FreeRun(_network().to(gpu), _frames(3, 5))
    run.make_block(5)
    run.start_over(1)
    assert run.make_block(5).shape == (3, 5, MODE.num_fields)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("head", get_args(HeadName))
def test_the_metrics_of_held_out_speech_are_those_of_a_cpu(head: str, gpu: torch.device):
    model, recordings = _network(head=head), [_frames(2100), _frames(300)]
    expected = measure_held_out(model, recordings)
    found = measure_held_out(copy.deepcopy(model).to(gpu), recordings)
    names = [name for name, value in expected.items() if isinstance(value, float)]
    assert "error_levels" in names
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-3)


@pytest.mark.usefixtures("full_precision")
def test_the_use_of_context_is_that_of_a_cpu(gpu: torch.device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context, "NUM_TRIALS", 20)
    model, recordings = _network(), [_frames(1500)]
    found = [context.measure_context(network, recordings) for network in (model, copy.deepcopy(model).to(gpu))]
    assert found[0]["trials"] == 20
    gains = [[values["bits_per_frame"] for values in some["reach"].values()] for some in found]
    assert gains[1] == pytest.approx(gains[0], abs=1e-3)


def test_the_bundled_voice_generates_and_is_evaluated_on_a_gpu(gpu: torch.device, shards: Path, tmp_path: Path):
    from babble.evaluate import EvaluateConfig, evaluate
    from babble.generate import GenerateConfig, generate

    config = GenerateConfig(seconds=2, streams=2, device="gpu", out=str(tmp_path / "babble.wav"))
    assert [facts["frames"] for facts in generate(config)] == [50, 50]
    assert (tmp_path / "babble-2.wav").stat().st_size > 2 * 2 * 8000
    bits = [
        evaluate(EvaluateConfig(shards=shards, babble_seconds=0, device=device))["held_out"]["bits_per_frame"]
        for device in ("cpu", "gpu")
    ]
    assert bits[1] == pytest.approx(bits[0], rel=2e-3)
