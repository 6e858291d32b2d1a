"""Free-running generation: carried state, seeds, restarts."""

from typing import Any

import numpy as np
import pytest
import torch

from babble.codec.frames import MODES
from babble.generation.free_run import FreeRun, choose_sampling, generate_frames
from babble.model.babbler import Babbler
from babble.model.cells import CELLS
from babble.model.config import ModelConfig
from babble.model.sampling import Sampling

MODE = MODES["1300"]


def make_model(head: str = "categorical", **changes: Any) -> Babbler:
    torch.manual_seed(0)
    return Babbler(ModelConfig(num_layers=2, units=8, head=head, **changes), MODE).eval()


def make_prompts(streams: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, MODE.levels, (streams, frames, MODE.num_fields)).astype(np.uint8)


@torch.no_grad()
@pytest.mark.parametrize("cell", list(CELLS))
def test_carried_state_gives_the_same_frames_as_a_whole_pass_per_frame(cell: str):
    model, prompt = make_model("regression", cell=cell), make_prompts(1, 12)
    babble = generate_frames(model, prompt, 10)
    context = torch.from_numpy(prompt.astype(np.int64))
    sample = model.head.make_sampler(Sampling.for_mode(MODE), torch.Generator())
    for t in range(10):
        hidden_BTH, _ = model(context)
        frame = sample(hidden_BTH[:, -1])
        assert np.array_equal(frame[0].numpy(), babble[0, t])
        context = torch.cat([context, frame[:, None]], dim=1)


def test_the_same_seed_gives_the_same_frames_and_another_seed_gives_others():
    model, prompts = make_model(), make_prompts(3, 5)
    first = generate_frames(model, prompts, 70, seed=4)
    assert np.array_equal(first, generate_frames(model, prompts, 70, seed=4))
    assert not np.array_equal(first, generate_frames(model, prompts, 70, seed=5))
    assert first.shape == (3, 70, MODE.num_fields)


def test_a_restarted_stream_continues_its_prompt_and_leaves_the_others_unchanged():
    model, prompts = make_model("regression"), make_prompts(2, 12)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)
    undisturbed = FreeRun(model, prompts)
    first, second = undisturbed.make_block(), undisturbed.make_block()
    disturbed = FreeRun(model, prompts)
    disturbed.make_block()
    disturbed.start_over(1)
    block = disturbed.make_block()
    assert np.array_equal(block[0], second[0])
    assert np.array_equal(block[1], first[1])


def test_sampling_settings_without_effect_are_rejected():
    assert choose_sampling(make_model(), temperature=0.9).temperature == (0.9,) * 16
    assert choose_sampling(make_model("regression")) == Sampling.for_mode(MODE)
    with pytest.raises(ValueError, match=r"--top-p lsp=0\.9 has no effect: the regression head"):
        choose_sampling(make_model("regression"), top_p="lsp=0.9")
