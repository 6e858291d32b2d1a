"""Every head: what it costs, what it guesses, what it draws."""

import math

import pytest
import torch

from babble.frames import MODES
from babble.heads import HEADS, CategoricalHead, RegressionHead

MODE = MODES["1300"]
H = 6


def _targets(batch: int, frames: int) -> torch.Tensor:
    levels = torch.tensor(MODE.levels)
    return (torch.rand(batch, frames, MODE.num_fields) * levels).long()


def test_regression_costs_the_distance_in_levels():
    head = RegressionHead(H, MODE)
    hidden_BTH, targets_BTF = torch.randn(2, 5, H), _targets(2, 5)
    by_hand = (torch.relu(head.dense(hidden_BTH)) * torch.tensor(MODE.levels - 1) - targets_BTF).abs()
    torch.testing.assert_close(head.cost(hidden_BTH, targets_BTF), by_hand)


def test_regression_draws_the_nearest_legal_level():
    head = RegressionHead(H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias[:] = torch.tensor([2.0, -1.0] + [0.5] * 14)
    drawn = head.draw(torch.zeros(1, H), 1.0, torch.Generator())[0].tolist()
    assert drawn[:2] == [1, 0]
    assert drawn[4:6] == [64, 16]  # 63.5 and 15.5, rounded to even


@pytest.mark.parametrize("name", ["2400", "1400", "1200", "700C"])
def test_regression_refuses_modes_with_labels(name: str):
    with pytest.raises(ValueError, match=rf"model.head=regression can't learn mode {name}: .*categorical"):
        RegressionHead(H, MODES[name])


def test_categorical_costs_the_bits_of_each_field():
    head = CategoricalHead(H, MODE)
    hidden_BTH, targets_BTF = torch.randn(2, 3, H), _targets(2, 3)
    cost = head.cost(hidden_BTH, targets_BTF)
    logits = head.dense(hidden_BTH)
    first = 0
    for f, levels in enumerate(MODE.levels):
        p = logits[..., first : first + levels].softmax(dim=-1)
        bits = -torch.log2(p.gather(-1, targets_BTF[..., f : f + 1]))[..., 0]
        torch.testing.assert_close(cost[..., f], bits)
        first += levels


def test_a_head_that_knows_nothing_costs_all_the_bits_of_the_mode():
    head = CategoricalHead(H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.zero_()
    assert head.cost(torch.zeros(1, 1, H), _targets(1, 1)).sum().item() == pytest.approx(52)


def test_categorical_guesses_the_median():
    head = CategoricalHead(H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.fill_(-1e9)
        # Energy, column 5, behind four voicing bits and pitch: levels 3, 10 and 20 with a third each.
        energy = 4 * 2 + 128
        head.dense.bias[[energy + 3, energy + 10, energy + 20]] = 0.0
    assert head.guess(torch.zeros(1, 1, H))[0, 0, 5].item() == 10


@torch.no_grad()
def test_categorical_draws_what_it_believes_and_a_low_temperature_the_likeliest():
    torch.manual_seed(0)
    head = CategoricalHead(H, MODE)
    hidden_BH = torch.randn(1, H).expand(4000, H)
    drawn = head.draw(hidden_BH, 1.0, torch.Generator().manual_seed(3))
    p = head._logits(hidden_BH[0])[9].softmax(dim=-1)
    share = torch.bincount(drawn[:, 9], minlength=16) / len(drawn)
    # Four standard errors of a share of 4,000 draws.
    assert ((share - p).abs() < 4 * torch.sqrt(p * (1 - p) / len(drawn))).all()
    cold = head.draw(hidden_BH[:9], 1e-4, torch.Generator().manual_seed(3))
    assert (cold == cold[0]).all()
    assert cold[0, 9] == p.argmax()


@pytest.mark.parametrize("name", list(HEADS))
def test_a_drawn_frame_is_legal_and_repeats_with_its_random_seed(name: str):
    head = HEADS[name](H, MODE)
    hidden_BH = 10 * torch.randn(50, H)
    drawn = [head.draw(hidden_BH, 1.0, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] >= 0).all()
    assert (drawn[0] < torch.tensor(MODE.levels)).all()
    assert math.prod(drawn[0].shape) == 50 * MODE.num_fields
