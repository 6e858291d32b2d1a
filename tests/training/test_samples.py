"""Which prompts are continued during training, and when."""

import pytest

from babble.training.config import SamplesConfig, Stage
from babble.training.samples import Prompt, choose_prompts, has_samples


def _choose(lengths: list[int], prompts: int, prompt_frames: int, frames: int) -> list[Prompt]:
    return choose_prompts(lengths, SamplesConfig(prompts=prompts, prompt_frames=prompt_frames, frames=frames))


def test_prompts_are_spread_over_the_recordings_and_leave_room_for_what_follows():
    assert _choose([1000], 2, 40, 60) == [Prompt(0, 250, 40), Prompt(0, 750, 40)]
    assert _choose([100, 900], 2, 80, 120) == [Prompt(1, 150, 80), Prompt(1, 650, 80)]
    # The middle of 1,000 frames is 500, but 800 must fit after the start of the prompt.
    assert _choose([1000], 1, 300, 500) == [Prompt(0, 200, 300)]
    # A recording without that room is used from its start.
    assert _choose([50], 1, 40, 160) == [Prompt(0, 0, 40)]


def test_recordings_that_are_not_longer_than_a_prompt_are_left_out():
    assert [prompt.recording for prompt in _choose([40, 300, 20], 3, 40, 60)] == [1, 1, 1]


def test_if_all_recordings_are_shorter_prompts_are_half_of_the_longest():
    assert _choose([30, 51], 2, 200, 100) == [Prompt(0, 0, 25), Prompt(1, 0, 25)]
    assert _choose([2], 1, 200, 100) == [Prompt(0, 0, 1)]


def test_samples_come_every_so_many_epochs_and_at_the_end_of_each_stage():
    stages = (Stage((1,), 3), Stage((1, 2), 4), Stage((3,)))
    assert [epoch for epoch in range(12) if has_samples(epoch, 5, stages)] == [2, 4, 6, 9]
    assert [epoch for epoch in range(12) if has_samples(epoch, 0, stages)] == [2, 6]
    assert [epoch for epoch in range(12) if has_samples(epoch, 5, ())] == [4, 9]


@pytest.mark.parametrize("key", ["prompts", "prompt_frames", "frames", "temperature"])
def test_empty_sizes_are_rejected(key: str):
    with pytest.raises(ValueError, match=rf"samples\.{key}=0"):
        SamplesConfig(**{key: 0})


def test_a_single_frame_has_no_next_one_to_plot():
    with pytest.raises(ValueError, match=r"samples\.frames=1: must be at least 2"):
        SamplesConfig(frames=1)
