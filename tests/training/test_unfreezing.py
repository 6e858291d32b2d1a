"""Which layers are trained in an epoch, and that the others keep their weights."""

import pytest
import torch
from torch import nn

from babble.codec.frames import MODES
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.training.config import Stage, check_stages
from babble.training.unfreezing import Unfreezing, bypassed_layers, stage_at, unfrozen_layers

STAGES_2017 = (Stage((1,), 60), Stage((1, 2), 180), Stage((3,)))


@pytest.mark.parametrize(
    ("epoch", "stage", "layers"),
    [(0, 1, (1,)), (59, 1, (1,)), (60, 2, (1, 2)), (239, 2, (1, 2)), (240, 3, (3,)), (10_000, 3, (3,))],
)
def test_the_2017_schedule(epoch: int, stage: int, layers: tuple[int, ...]):
    assert stage_at(epoch, STAGES_2017) == stage
    assert unfrozen_layers(epoch, STAGES_2017, 3) == layers


def test_without_stages_all_layers_are_trained():
    assert unfrozen_layers(5, (), 4) == (1, 2, 3, 4)
    assert stage_at(5, ()) == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((Stage((1, 4), 3), Stage((2,))), r"stage 1 has layers \[1, 4\], but model.num_layers=3"),
        ((Stage((1,)), Stage((2,))), "stage 1 of 2 has epochs=None"),
        ((Stage((1,), 0), Stage((2,))), "stage 1 of 2 has epochs=0"),
        ((Stage((1,), 5), Stage((2,), 5)), "stage 2 of 2 has epochs=5"),
    ],
)
def test_invalid_stages_are_rejected(stages: tuple[Stage, ...], message: str):
    with pytest.raises(ValueError, match=message):
        check_stages(stages, 3)


def test_a_frozen_layer_keeps_its_weights_and_has_no_moments():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=3, units=2), MODES["1300"])
    layers = model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    optimizer = torch.optim.NAdam(layers.parameters(), weight_decay=0.1)
    callback = Unfreezing((Stage((), 1), Stage((1,), 2), Stage((1, 2), 2), Stage((3,))), model, "frozen")
    trainer = type("Trainer", (), {"current_epoch": 0})()
    moved = []
    for trainer.current_epoch in range(7):
        before = [layer.weight.clone() for layer in layers]
        optimizer.zero_grad()
        x = torch.randn(4, 2)
        for layer in layers:
            x = layer(x)
        x.square().mean().backward()
        callback.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
        optimizer.step()
        moved.append([not torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True)])
        if trainer.current_epoch == 2:
            assert layers[1].weight not in optimizer.state
    # Without layers, only what is around them is trained.
    assert moved[0] == [False, False, False]
    assert moved[1:] == 2 * [[True, False, False]] + 2 * [[True, True, False]] + 2 * [[False, False, True]]


def test_layers_are_bypassed_until_a_stage_trains_them_and_never_again():
    assert bypassed_layers(0, STAGES_2017, 3) == {2, 3}
    assert bypassed_layers(60, STAGES_2017, 3) == {3}
    # The third stage does not train layers 1 and 2, but they stay in the forward pass.
    assert bypassed_layers(240, STAGES_2017, 3) == frozenset()
    assert bypassed_layers(5, (), 3) == frozenset()


@pytest.mark.parametrize("stages", [(), (Stage((2,), 3), Stage((1, 2)))])
def test_bypassing_needs_a_first_stage_that_trains_the_lowest_layer(stages: tuple[Stage, ...]):
    with pytest.raises(ValueError, match="before_unfreezing=bypassed needs unfreezing stages"):
        check_stages(stages, 3, "bypassed")
    check_stages(STAGES_2017, 3, "bypassed")
