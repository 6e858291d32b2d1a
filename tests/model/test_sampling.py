"""Temperature, top-p and min-p: what users type, and what is left to draw from."""

import math

import pytest
import torch

from babble.codec.frames import MODES
from babble.model.sampling import Sampling

MODE = MODES["1300"]
P = torch.tensor([[0.05, 0.5, 0.3, 0.15]])


def _drawing(**settings: str) -> Sampling:
    return Sampling.for_mode(MODE, **settings)


def test_one_number_is_for_all_fields_and_names_are_for_groups_and_fields():
    assert _drawing().temperature == (1.0,) * 16
    assert _drawing(temperature="0.9").temperature == (0.9,) * 16
    by_group = _drawing(temperature="lsp3=0.5, pitch=0.7,lsp=0.9").temperature
    assert by_group == (1.0,) * 4 + (0.7, 1.0) + (0.9,) * 3 + (0.5,) + (0.9,) * 6
    assert _drawing(top_p="0.8,voicing=1").top_p == (1.0,) * 4 + (0.8,) * 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "0"}, "--temperature 0: above 0"),
        ({"temperature": "warm"}, "--temperature warm: 'warm' is no number"),
        ({"temperature": "pitsch=1"}, r"--temperature pitsch=1: mode 1300 has no 'pitsch'; it has the groups voicing"),
        ({"top_p": "pitch=1.5"}, "--top_p 1.5: above 0 and at most 1"),
        ({"min_p": "1"}, "--min_p 1: 0 or more and below 1"),
    ],
)
def test_what_nothing_could_be_drawn_with_is_refused(settings: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        _drawing(**settings)


def _left(sampling: Sampling, f: int = 0) -> list[bool]:
    return sampling.mask_logits(P.log(), f).isfinite()[0].tolist()


def test_top_p_keeps_as_many_of_the_likeliest_as_hold_that_probability():
    assert _left(_drawing(top_p="0.4")) == [False, True, False, False]
    assert _left(_drawing(top_p="0.79")) == [False, True, True, False]
    assert _left(_drawing(top_p="0.9")) == [False, True, True, True]
    assert _left(_drawing(top_p="1e-9")) == [False, True, False, False]
    assert _left(_drawing(top_p="pitch=0.4")) == [True] * 4


def test_min_p_keeps_what_is_near_the_likeliest():
    assert _left(_drawing(min_p="0.2")) == [False, True, True, True]
    assert _left(_drawing(min_p="0.5")) == [False, True, True, False]
    assert _left(_drawing(min_p="0.99")) == [False, True, False, False]


def test_both_cut_together_and_what_is_left_keeps_its_weights():
    # Of the three that min-p leaves, 0.95 together, 0.5 and 0.3 hold 84 %.
    cut = _drawing(min_p="0.2", top_p="0.84").mask_logits(P.log(), 0)
    assert cut.softmax(dim=-1)[0].tolist() == pytest.approx([0, 0.5 / 0.8, 0.3 / 0.8, 0])
    assert math.isinf(cut[0, 0])
