"""Which places are listened to and when, and what lies in the run folder then."""

import pytest

from babble.training.samples import SamplesConfig, choose_places, is_heard
from babble.training.unfreezing import Stage


def test_places_spread_over_held_out_speech_and_leave_room_for_what_follows():
    assert choose_places([1000], prompts=2, frames=100) == [(0, 250), (0, 750)]
    assert choose_places([100, 900], prompts=2, frames=200) == [(1, 150), (1, 650)]
    # The second half of 1,000 frames, but 300 must follow; a recording shorter than that gives what it has.
    assert choose_places([1000], prompts=1, frames=800) == [(0, 200)]
    assert choose_places([50], prompts=1, frames=200) == [(0, 0)]


def test_one_listens_every_so_many_epochs_and_at_each_stages_end():
    stages = (Stage((1,), 3), Stage((1, 2), 4), Stage((3,)))
    assert [epoch for epoch in range(12) if is_heard(epoch, 5, stages)] == [2, 4, 6, 9]
    assert [epoch for epoch in range(12) if is_heard(epoch, 0, stages)] == [2, 6]
    assert [epoch for epoch in range(12) if is_heard(epoch, 5, ())] == [4, 9]


@pytest.mark.parametrize("key", ["prompts", "prompt_frames", "frames", "temperature"])
def test_sizes_of_nothing_are_refused(key: str):
    with pytest.raises(ValueError, match=rf"samples\.{key}=0"):
        SamplesConfig(**{key: 0})
