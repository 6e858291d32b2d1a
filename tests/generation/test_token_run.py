"""Tokens that are chosen while frames are generated, and the networks that receive them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from babble.codec.frames import TOKENS, get_mode
from babble.codec.token_sequences import MAX_DURATION, add_context, join_tokens, make_context, spread_tokens
from babble.generation.free_run import FreeRun, generate_frames
from babble.generation.token_run import (
    TOKEN_TEMPERATURE,
    TokenLevel,
    TokenRun,
    check_token_temperature,
    load_token_level,
)
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.model.likelihood import measure_losses
from babble.run_folder import RunFolder
from babble.tokenizer.clusters import Clusters
from babble.tokenizer.encoder import TokenEncoder
from babble.tokenizer.tokenizer import Tokenizer

MODE = get_mode("1300")
SMALL = ModelConfig(num_layers=2, units=8, head_units=8, skips=True)


@pytest.fixture(scope="module")
def level() -> TokenLevel:
    torch.manual_seed(0)
    encoder = TokenEncoder(MODE, units=4, num_targets=3).eval()
    clusters = Clusters(torch.zeros(8), torch.ones(8), torch.randn(20, 8), 0.2)
    return TokenLevel(Tokenizer(encoder, clusters, MODE), Babbler(SMALL, TOKENS).eval())


@pytest.fixture(scope="module")
def model() -> Babbler:
    torch.manual_seed(1)
    model = Babbler(replace(SMALL, tokens=512), MODE).eval()
    assert model.context
    # As after training: tokens count.
    torch.nn.init.normal_(model.context.to_input.weight)
    torch.nn.init.normal_(model.context.to_head.weight)
    return model


def make_prompts(num: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, MODE.levels, (num, 30, 16)).astype(np.uint8)


def _with_context(frames: np.ndarray, level: TokenLevel) -> np.ndarray:
    return add_context(frames, level.tokenizer.find_sequence(frames))


def collect(run: TokenRun, num_frames: int) -> np.ndarray:
    """Return the contexts (B, T, C) of the first frame after the prompt and of those that follow, taken in blocks."""
    sizes = [7] * (num_frames // 7) + [num_frames % 7 or 1]
    return torch.cat([run.prompt_context_BTC[:, -1:], *(run.advance(n).transpose(0, 1) for n in sizes)], dim=1).numpy()


def test_contexts_are_those_of_the_chosen_tokens(level: TokenLevel) -> None:
    run = TokenRun(level, make_prompts(3), 1.0, torch.Generator().manual_seed(0))
    for context in collect(run, 300):
        # The last token may go on.
        end = int(np.flatnonzero(context[:, 3] == 0)[-1])
        starts = np.flatnonzero(context[:end, 3] == 0)
        lengths = np.diff([*starts, end])
        sequence = np.stack([context[starts, 0], lengths - 1], axis=1)
        expected = make_context(sequence)
        # What follows the last whole token is known from the one that goes on.
        expected[-lengths[-1] :, 1] = context[end, 0]
        assert (context[:end] == expected).all()
        assert lengths.max() <= MAX_DURATION


def test_the_prompt_ends_where_the_chosen_tokens_begin(level: TokenLevel) -> None:
    # Two of silence end with a token that goes on for longer than a token lasts, so that it is several.
    prompts = np.concatenate([make_prompts(2), np.zeros((2, 30, 16), np.uint8)])
    run = TokenRun(level, prompts, 1.0, torch.Generator().manual_seed(0))
    for prompt, context in zip(prompts, run.prompt_context_BTC.numpy(), strict=True):
        sequence = join_tokens(level.tokenizer.tokenize(prompt))
        own = make_context(sequence)
        assert (context[:-1, [0, 2, 3]] == own[1:][:, [0, 2, 3]]).all()
        first = context[-1]
        assert first[3] == 0
        last_duration = int(sequence[-1, 1]) + 1
        assert (context[:-1][-last_duration:, 1] == first[0]).all()
        assert (context[:-1][:-last_duration, 1] == own[1:][:-last_duration, 1]).all()


def test_streams_are_independent_and_one_can_start_over(level: TokenLevel) -> None:
    model = copy.deepcopy(level.model)
    with torch.no_grad():
        # As after training: what is chosen depends on the state.
        for weight in model.parameters():
            weight.mul_(5)
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    run, undisturbed, fresh = (
        TokenRun(replace(level, model=model), make_prompts(2), 1.0, generator) for generator in generators
    )
    for one in (run, undisturbed):
        one.advance(60)
    run.start_over(0)
    torch.testing.assert_close(run.advance(40)[:, 1], undisturbed.advance(40)[:, 1])
    # With all streams at their beginning, and the same random numbers, it is a new run.
    for stream in (0, 1):
        run.start_over(stream)
    for generator in generators:
        generator.manual_seed(9)
    torch.testing.assert_close(run.advance(60), fresh.advance(60))


def test_tokens_of_a_lower_temperature_vary_less(level: TokenLevel) -> None:
    def count(temperature: float) -> int:
        run = TokenRun(level, make_prompts(4), temperature, torch.Generator().manual_seed(0))
        return len(np.unique(collect(run, 200)[..., 0]))

    # The logits of an untrained network differ by little: at 0.5 its tokens are all but uniform.
    assert count(0.02) < count(0.1) < count(5.0)


def test_generated_frames_follow_their_tokens(model: Babbler, level: TokenLevel) -> None:
    prompts = make_prompts(2)
    first = generate_frames(model, prompts, 60, seed=4, tokens=level)
    assert first.shape == (2, 60, 16)
    assert np.array_equal(first, generate_frames(model, prompts, 60, seed=4, tokens=level))
    assert not np.array_equal(first, generate_frames(model, prompts, 60, seed=4, tokens=level, token_temperature=1.0))
    run = FreeRun(model, prompts, seed=4, tokens=level)
    run.make_block(10)
    run.start_over(1)
    assert run.make_block(5).shape == (2, 5, 16)


def test_stepping_through_frames_and_contexts_is_the_same_as_one_pass(model: Babbler, level: TokenLevel) -> None:
    frames = torch.from_numpy(_with_context(make_prompts(1)[0], level).astype(np.int64))[None]
    inputs, context, _ = model.split(frames)
    assert context is not None
    assert model.context is not None
    with torch.inference_mode():
        whole, _ = model(inputs, None, context)
        step, state = model.make_step(), model.initial_state(1)
        for t in range(inputs.shape[1]):
            hidden, state = step(inputs[:, t], state, model.context(context[:, t]))
            torch.testing.assert_close(hidden, whole[:, t])


def test_a_network_that_is_continued_with_tokens_starts_as_it_was(level: TokenLevel) -> None:
    torch.manual_seed(2)
    before = Babbler(SMALL, MODE).eval()
    after = Babbler(replace(SMALL, tokens=512), MODE).eval()
    after.load_state_dict(before.state_dict(), strict=False)
    frames = make_prompts(1)[0]
    without = measure_losses(before, torch.from_numpy(frames.astype(np.int64))[None])
    with_tokens = measure_losses(after, torch.from_numpy(_with_context(frames, level).astype(np.int64))[None])
    for one, other in zip(without, with_tokens, strict=True):
        assert torch.equal(one, other)


def test_only_a_voice_with_tokens_has_their_temperature(model: Babbler, tmp_path: Path) -> None:
    plain = Babbler(SMALL, MODE)
    assert check_token_temperature(None, plain) == check_token_temperature(None, model) == TOKEN_TEMPERATURE
    assert check_token_temperature(0.9, model) == 0.9
    with pytest.raises(ValueError, match=r"--token-temperature 0\.9 has no effect"):
        check_token_temperature(0.9, plain)
    with pytest.raises(ValueError, match="--token-temperature 0: must be above 0"):
        check_token_temperature(0, model)
    assert load_token_level(RunFolder(tmp_path), plain) is None
    with pytest.raises(FileNotFoundError, match=r"tokens\.pt is missing"):
        load_token_level(RunFolder(tmp_path), model)


def test_tokens_of_real_lengths_are_kept(level: TokenLevel) -> None:
    tokens = level.tokenizer.tokenize(make_prompts(1)[0])
    assert (spread_tokens(join_tokens(tokens)) == tokens).all()
