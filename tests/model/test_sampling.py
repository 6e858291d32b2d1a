"""Temperature, top-p and min-p: what users type, and which levels remain."""

import math

import pytest
import torch

from babble.codec.frames import MODES
from babble.model.sampling import Sampling

MODE = MODES["1300"]
P = torch.tensor([[0.05, 0.5, 0.3, 0.15]])


def _sampling(**settings: str) -> Sampling:
    return Sampling.for_mode(MODE, **settings)


def test_a_number_applies_to_all_fields_and_names_to_groups_and_fields():
    assert _sampling().temperature == (1.0,) * 16
    assert _sampling(temperature="0.9").temperature == (0.9,) * 16
    by_group = _sampling(temperature="lsp3=0.5, pitch=0.7,lsp=0.9").temperature
    assert by_group == (1.0,) * 4 + (0.7, 1.0) + (0.9,) * 3 + (0.5,) + (0.9,) * 6
    assert _sampling(top_p="0.8,voicing=1").top_p == (1.0,) * 4 + (0.8,) * 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "0"}, "--temperature 0: must be above 0"),
        ({"temperature": "warm"}, "--temperature warm: 'warm' is not a number"),
        ({"temperature": "pitsch=1"}, r"--temperature pitsch=1: mode 1300 has no 'pitsch'; it has the groups voicing"),
        ({"top_p": "pitch=1.5"}, "--top-p 1.5: must be above 0 and at most 1"),
        ({"top_p": "pitch=0.7,lsp=0.9,pitch=0.8"}, "'pitch' is given 2 times; give it once"),
        ({"temperature": "0.7,0.9"}, "the number for all fields is given 2 times"),
        ({"min_p": "1"}, "--min-p 1: must be at least 0 and below 1"),
    ],
)
def test_invalid_values_are_rejected(settings: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        _sampling(**settings)


def _left(sampling: Sampling, f: int = 0) -> list[bool]:
    return sampling.mask_logits(P.log(), f).isfinite()[0].tolist()


def test_top_p_keeps_the_most_likely_levels_up_to_that_probability():
    assert _left(_sampling(top_p="0.4")) == [False, True, False, False]
    assert _left(_sampling(top_p="0.79")) == [False, True, True, False]
    assert _left(_sampling(top_p="0.9")) == [False, True, True, True]
    assert _left(_sampling(top_p="1e-9")) == [False, True, False, False]
    assert _left(_sampling(top_p="pitch=0.4")) == [True] * 4


def test_min_p_keeps_levels_near_the_most_likely_one():
    assert _left(_sampling(min_p="0.2")) == [False, True, True, True]
    assert _left(_sampling(min_p="0.5")) == [False, True, True, False]
    assert _left(_sampling(min_p="0.99")) == [False, True, False, False]


def test_both_combine_and_remaining_levels_keep_their_proportions():
    # min-p leaves three levels with a total of 0.95; 0.5 and 0.3 are 84 % of it.
    cut = _sampling(min_p="0.2", top_p="0.84").mask_logits(P.log(), 0)
    assert cut.softmax(dim=-1)[0].tolist() == pytest.approx([0, 0.5 / 0.8, 0.3 / 0.8, 0])
    assert math.isinf(cut[0, 0])
