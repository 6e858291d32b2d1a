"""The whole network: one pass, carried, stepped; every cell, input and head."""

import pytest
import torch

from babble.codec.frames import MODES, Mode
from babble.generation.free_run import generate_frames
from babble.model.babbler import INPUTS, Babbler, ModelConfig
from babble.model.cells import CELLS
from babble.model.checkpoint import build_model
from babble.model.heads import HEADS
from babble.model.likelihood import measure_losses

NETWORKS = [
    ModelConfig(inputs=inputs, cell=cell, num_layers=2, units=8, skips=skips)
    for inputs in INPUTS
    for cell in CELLS
    for skips in (False, True)
]


def _frames(mode: Mode, batch: int, frames: int) -> torch.Tensor:
    return (torch.rand(batch, frames, mode.num_fields) * torch.tensor(mode.levels)).long()


@torch.no_grad()
@pytest.mark.parametrize("config", NETWORKS, ids=str)
def test_carried_state_and_single_steps_give_the_same_as_one_pass(config: ModelConfig):
    torch.manual_seed(0)
    model = Babbler(config, MODES["1300"])
    frames_BTF = _frames(model.mode, 2, 9)
    whole, _ = model(frames_BTF)
    first, state = model(frames_BTF[:, :5])
    second, _ = model(frames_BTF[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    step, state = model.make_step(), model.initial_state(2)
    for t in range(9):
        hidden_BH, state = step(frames_BTF[:, t], state)
        torch.testing.assert_close(hidden_BH, whole[:, t])


@torch.no_grad()
def test_a_step_hears_nothing_of_what_comes_after_it():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=2, units=8), MODES["1300"])
    frames_BTF = _frames(model.mode, 1, 9)
    other = frames_BTF.clone()
    other[:, 6:] = _frames(model.mode, 1, 3)
    torch.testing.assert_close(model(frames_BTF)[0][:, :6], model(other)[0][:, :6])
    assert not torch.equal(model(frames_BTF)[0][:, 6:], model(other)[0][:, 6:])


@torch.no_grad()
def test_embedding_is_the_sum_of_each_fields_own_row():
    model = Babbler(ModelConfig(num_layers=1, units=8), MODES["700C"])
    frames_BTF = _frames(model.mode, 1, 4)
    table, first = model.input.table.weight, 0
    by_hand = torch.zeros(1, 4, 8)
    for f, levels in enumerate(model.mode.levels):
        by_hand += table[first + frames_BTF[..., f]]
        first += int(levels)
    torch.testing.assert_close(model.input(frames_BTF), by_hand)


@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("cell", list(CELLS))
def test_every_head_cell_and_mode_trains_a_step_draws_and_is_measured(cell: str, head: str, mode: Mode):
    torch.manual_seed(0)
    config = ModelConfig(num_layers=2, units=10, cell=cell, head=head, skips=True, dropout=0.1, frames_ahead=2)
    if mode.has_labels and head in ("regression", "mixture"):
        with pytest.raises(ValueError, match=rf"model\.head={head} can't learn mode {mode.name}"):
            Babbler(config, mode)
        return
    model = Babbler(config, mode)
    frames_BTF = _frames(mode, 2, 6)
    hidden_BTH, _ = model(frames_BTF[:, :-1])
    cost = model.typed_head.loss(hidden_BTH, frames_BTF[:, 1:])
    assert cost.shape == (2, 5, mode.num_fields)
    ahead = model.heads_ahead[0].loss(hidden_BTH[:, :-1], frames_BTF[:, 2:])
    (cost.mean() + ahead.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.eval()
    after = model.typed_head.loss(model(frames_BTF[:, :-1])[0], frames_BTF[:, 1:])
    assert after.mean() != cost.mean()
    babble = generate_frames(model, frames_BTF.numpy(), 7)
    assert babble.shape == (2, 7, mode.num_fields)
    assert (babble < mode.levels).all()
    error, bits = measure_losses(model, frames_BTF)
    assert error.isfinite().all()
    assert bits.isfinite().all()


@torch.no_grad()
def test_a_sleeping_layer_is_left_out_and_the_others_say_the_same_without_it():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=3, units=8), MODES["1300"])
    frames_BTF = _frames(model.mode, 2, 9)
    model.bypassed = frozenset({2, 3})
    torch.testing.assert_close(
        model(frames_BTF)[0], model.layers[0](model.input(frames_BTF), model.initial_state(2)[0])[0]
    )
    whole = model(frames_BTF)[0]
    step, state = model.make_step(), model.initial_state(2)
    for t in range(9):
        hidden_BH, state = step(frames_BTF[:, t], state)
        torch.testing.assert_close(hidden_BH, whole[:, t])


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=2, units=32, dropout=0.5), MODES["1300"])
    frames_BTF = _frames(model.mode, 1, 3)
    assert not torch.equal(model(frames_BTF)[0], model(frames_BTF)[0])
    model.eval()
    assert torch.equal(model(frames_BTF)[0], model(frames_BTF)[0])


def test_scaled_inputs_refuse_labels_and_say_what_to_do():
    with pytest.raises(ValueError, match=r"model\.inputs=scaled can't read mode 1200.*embedded"):
        Babbler(ModelConfig(inputs="scaled"), MODES["1200"])


@pytest.mark.parametrize(("key", "value"), [("cell", "lstn"), ("head", "x"), ("inputs", "raw"), ("units", 0)])
def test_a_shape_that_can_not_be_is_refused_by_its_key(key: str, value: object):
    with pytest.raises(ValueError, match=rf"model\.{key}="):
        ModelConfig(**{key: value})  # type: ignore[arg-type]


def test_a_checkpoint_of_something_else_is_refused():
    with pytest.raises(ValueError, match="not one that this babble trained"):
        build_model({"state_dict": {}})
