"""Every head: its loss, its prediction, its samples."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from babble.codec.frames import MODES, Mode
from babble.model.config import HEADS_WITH_LIKELIHOOD
from babble.model.heads import (
    COMPONENTS,
    FLAT_SHARE,
    HEADS,
    CategoricalHead,
    MixtureHead,
    RegressionHead,
)
from babble.model.sampling import Sampling

MODE = MODES["1300"]
H = 6
AUTOREGRESSIVE = ("autoregressive", "autoregressive_per_field")


def _sample(head: torch.nn.Module, hidden_BH: Tensor, seed: int, **settings: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return head.make_sampler(Sampling.for_mode(MODE, **settings), generator)(hidden_BH)


def _targets(batch: int, frames: int) -> torch.Tensor:
    levels = torch.tensor(MODE.levels)
    return (torch.rand(batch, frames, MODE.num_fields) * levels).long()


def test_the_loss_of_regression_is_the_distance_in_levels():
    head = RegressionHead(H, H, MODE)
    hidden_BTH, targets_BTF = torch.randn(2, 5, H), _targets(2, 5)
    by_hand = (torch.relu(head.dense(hidden_BTH)) * torch.tensor(MODE.levels - 1) - targets_BTF).abs()
    torch.testing.assert_close(head.loss(hidden_BTH, targets_BTF), by_hand)


def test_regression_samples_the_nearest_valid_level():
    head = RegressionHead(H, H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias[:] = torch.tensor([2.0, -1.0] + [0.5] * 14)
    drawn = _sample(head, torch.zeros(1, H), 0)[0].tolist()
    assert drawn[:2] == [1, 0]
    assert drawn[4:6] == [64, 16]  # 63.5 and 15.5, rounded to even


@pytest.mark.parametrize("head", ["regression", "mixture"])
@pytest.mark.parametrize("name", ["2400", "1400", "1200", "700C"])
def test_heads_that_need_distances_reject_modes_with_labels(name: str, head: str):
    with pytest.raises(
        ValueError, match=rf"model.head={head} can't be trained on mode {name}: .*autoregressive or categor"
    ):
        HEADS[head](H, H, MODES[name])


def test_the_loss_of_categorical_is_the_bits_of_each_field():
    head = CategoricalHead(H, H, MODE)
    hidden_BTH, targets_BTF = torch.randn(2, 3, H), _targets(2, 3)
    cost = head.loss(hidden_BTH, targets_BTF)
    logits = head.dense(hidden_BTH)
    first = 0
    for f, levels in enumerate(MODE.levels):
        p = logits[..., first : first + levels].softmax(dim=-1)
        bits = -torch.log2(p.gather(-1, targets_BTF[..., f : f + 1]))[..., 0]
        torch.testing.assert_close(cost[..., f], bits)
        first += levels


def test_without_knowledge_a_frame_takes_all_bits_of_the_mode():
    head = CategoricalHead(H, H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.zero_()
    assert head.loss(torch.zeros(1, 1, H), _targets(1, 1)).sum().item() == pytest.approx(52)


def test_categorical_predicts_the_median():
    head = CategoricalHead(H, H, MODE)
    with torch.no_grad():
        head.dense.weight.zero_()
        head.dense.bias.fill_(-1e9)
        # Energy, column 5, follows four voicing bits and pitch: levels 3, 10 and 20 with a third each.
        energy = 4 * 2 + 128
        head.dense.bias[[energy + 3, energy + 10, energy + 20]] = 0.0
    assert head.predict(torch.zeros(1, 1, H))[0, 0, 5].item() == 10


@torch.no_grad()
def test_categorical_samples_its_distribution_and_at_low_temperature_the_most_likely_level():
    torch.manual_seed(0)
    head = CategoricalHead(H, H, MODE)
    hidden_BH = torch.randn(1, H).expand(4000, H)
    drawn = _sample(head, hidden_BH, 3)
    p = head.logits(hidden_BH[0]).split(head.levels)[9].softmax(dim=-1)
    share = torch.bincount(drawn[:, 9], minlength=16) / len(drawn)
    # Four standard errors of a frequency among 4,000 samples.
    assert ((share - p).abs() < 4 * torch.sqrt(p * (1 - p) / len(drawn))).all()
    cold = _sample(head, hidden_BH[:9], 3, temperature="0.0001")
    assert (cold == cold[0]).all()
    assert cold[0, 9] == p.argmax()


@pytest.mark.parametrize("name", list(HEADS))
def test_a_sampled_frame_is_valid_and_repeats_with_its_seed(name: str):
    head = HEADS[name](H, H, MODE)
    hidden_BH = 10 * torch.randn(50, H)
    drawn = [_sample(head, hidden_BH, 5) for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] >= 0).all()
    assert (drawn[0] < torch.tensor(MODE.levels)).all()
    assert math.prod(drawn[0].shape) == 50 * MODE.num_fields


@torch.no_grad()
def test_the_probability_of_a_mixtures_level_is_the_mass_between_its_edges():
    torch.manual_seed(0)
    head = MixtureHead(H, H, MODE)
    hidden = torch.randn(H)
    p = head.logits(hidden).split(head.levels)[5].exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    weight, centre, log_width = head.dense(hidden).double().view(MODE.num_fields, 3, COMPONENTS)[5]
    for level in range(32):
        mass = torch.zeros((), dtype=torch.float64)
        for k in range(COMPONENTS):
            edges = torch.tensor([2 * level / 32 - 1, 2 * (level + 1) / 32 - 1], dtype=torch.float64)
            below = torch.sigmoid((edges - centre[k]) / log_width[k].exp())
            low = below[0] if level > 0 else 0.0
            high = below[1] if level < 31 else 1.0
            mass += weight.softmax(0)[k] * (high - low)
        assert p[level].item() == pytest.approx((1 - FLAT_SHARE) * mass.item() + FLAT_SHARE / 32, rel=1e-3)


@torch.no_grad()
def test_a_mixture_can_put_nearly_all_probability_on_one_level_without_infinite_loss():
    head = MixtureHead(H, H, MODE)
    head.dense.weight.zero_()
    bias = head.dense.bias.view(MODE.num_fields, 3, COMPONENTS)
    bias[:, 1] = torch.tensor(2 * (np.array(MODE.levels) // 2 + 0.5) / MODE.levels - 1).float()[:, None]
    bias[:, 2] = -7
    hidden, held = torch.zeros(1, 1, H), torch.tensor(MODE.levels // 2)[None, None]
    assert head.loss(hidden, held).max().item() < 0.01
    assert torch.equal(head.predict(hidden).long(), held)
    assert 10 < head.loss(hidden, torch.zeros_like(held))[0, 0, 4].item() < 30


def _strengthen_effects(head: torch.nn.Module, factor: float) -> None:
    """Multiply what a level adds to the hidden units of later fields, so that a mistake there shows."""
    effects = [weight for name, weight in head.named_parameters() if name.startswith("effect")]
    assert effects
    for weight in effects:
        weight.mul_(factor)


def _small_mode() -> Mode:
    """A mode of four fields with 2 x 4 x 3 x 2 frames, so that all of them can be written out."""
    fields = tuple(
        dataclasses.replace(MODE.fields[f], bits=bits) for f, bits in zip((0, 5, 9, 15), (1, 2, 2, 1), strict=True)
    )
    return dataclasses.replace(MODE, fields=fields)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "categorical", "autoregressive", "autoregressive_per_field"])
def test_the_probabilities_of_all_frames_of_a_small_mode_sum_to_one(name: str):
    torch.manual_seed(0)
    mode = _small_mode()
    head = HEADS[name](H, 30, mode)
    every_frame = torch.tensor(list(itertools.product(*[range(levels) for levels in mode.levels])))[None]
    hidden = torch.randn(H).expand(1, every_frame.shape[1], H)
    p = torch.exp2(-head.loss(hidden, every_frame).sum(dim=-1))
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert every_frame.shape[1] == math.prod(mode.levels)


@torch.no_grad()
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_samples_frames_as_often_as_they_are_probable(name: str):
    torch.manual_seed(0)
    mode = _small_mode()
    head = HEADS[name](H, 30, mode)
    _strengthen_effects(head, 20)
    every_frame = torch.tensor(list(itertools.product(*[range(levels) for levels in mode.levels])))[None]
    hidden = torch.randn(H)
    p = torch.exp2(-head.loss(hidden.expand(1, every_frame.shape[1], H), every_frame).sum(dim=-1))[0]
    draws = 20_000
    draw = head.make_sampler(Sampling.for_mode(mode), torch.Generator().manual_seed(1))
    drawn = draw(hidden.expand(draws, H))
    place = torch.tensor([math.prod(mode.levels[f + 1 :].tolist()) for f in range(4)])
    share = torch.bincount((drawn * place).sum(dim=-1), minlength=len(p)) / draws
    assert ((share - p).abs() < 4.5 * torch.sqrt(p * (1 - p) / draws)).all()


@torch.no_grad()
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_a_field_depends_only_on_previous_fields(name: str):
    torch.manual_seed(0)
    head = HEADS[name](H, 160, MODE)
    hidden, frames = torch.randn(1, 1, H), _targets(1, 1)
    logits = head.field_logits(hidden, frames)
    for f in range(MODE.num_fields):
        other = frames.clone()
        other[..., f] = (other[..., f] + 1) % int(MODE.levels[f])
        changed = [not torch.equal(a, b) for a, b in zip(logits, head.field_logits(hidden, other), strict=True)]
        assert changed == [False] * (f + 1) + [True] * (MODE.num_fields - f - 1)


@torch.no_grad()
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_predicts_medians_given_the_previous_medians(name: str):
    torch.manual_seed(0)
    head = HEADS[name](H, 30, MODE)
    _strengthen_effects(head, 5)
    hidden = torch.randn(2, 3, H)
    predicted = head.predict(hidden).long()
    for f, logits in enumerate(head.field_logits(hidden, predicted)):
        below = logits.softmax(dim=-1).cumsum(dim=-1)
        at = below.gather(-1, predicted[..., f : f + 1])[..., 0]
        assert (at >= 0.5).all()
        assert (at - logits.softmax(dim=-1).gather(-1, predicted[..., f : f + 1])[..., 0] < 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "categorical", "autoregressive", "autoregressive_per_field"])
def test_removed_levels_are_never_sampled_and_each_field_has_its_own_temperature(name: str):
    torch.manual_seed(0)
    head = HEADS[name](H, 30, MODE)
    hidden = 3 * torch.randn(1, H).expand(300, H)
    # With only the most likely level, all samples are equal; pitch keeps its distribution.
    drawn = _sample(head, hidden, 0, top_p="1e-6,pitch=1")
    assert (drawn[:, :4] == drawn[0, :4]).all()
    assert len(drawn[:, 4].unique()) > 10
    cold = _sample(head, hidden, 0, temperature="1,energy=0.0001")
    assert len(cold[:, 4].unique()) > 10
    if not name.startswith("autoregressive"):  # There the most likely energy depends on the sampled pitch.
        assert len(cold[:, 5].unique()) == 1


def test_the_settings_know_which_heads_have_a_likelihood() -> None:
    assert tuple(name for name, head in HEADS.items() if head.has_likelihood) == HEADS_WITH_LIKELIHOOD
