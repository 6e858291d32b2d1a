"""The whole network: one pass, carried state, single steps; every cell, input and head."""

from typing import get_args

import pytest
import torch

from babble.cli import build_config
from babble.codec.frames import MODES, Mode
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler
from babble.model.cells import CELLS
from babble.model.checkpoint import build_model
from babble.model.config import Cell, HeadName, ModelConfig
from babble.model.heads import HEADS
from babble.model.likelihood import measure_losses

NETWORKS = [
    ModelConfig(inputs=inputs, cell=cell, num_layers=2, units=8, skips=skips)
    for inputs in ("scaled", "embedded")
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
def test_outputs_do_not_depend_on_later_frames():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=2, units=8), MODES["1300"])
    frames_BTF = _frames(model.mode, 1, 9)
    other = frames_BTF.clone()
    other[:, 6:] = _frames(model.mode, 1, 3)
    torch.testing.assert_close(model(frames_BTF)[0][:, :6], model(other)[0][:, :6])
    assert not torch.equal(model(frames_BTF)[0][:, 6:], model(other)[0][:, 6:])


@torch.no_grad()
def test_the_embedding_is_the_sum_of_one_row_per_field():
    model = Babbler(ModelConfig(num_layers=1, units=8, embedding_size=8), MODES["700C"])
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
def test_every_cell_head_and_mode_takes_a_training_step_generates_and_is_measured(cell: str, head: str, mode: Mode):
    torch.manual_seed(0)
    config = ModelConfig(num_layers=2, units=10, cell=cell, head=head, skips=True, dropout=0.1, frames_ahead=2)
    if mode.has_labels and head in ("regression", "mixture"):
        with pytest.raises(ValueError, match=rf"model\.head={head} can't be trained on mode {mode.name}"):
            Babbler(config, mode)
        return
    model = Babbler(config, mode)
    frames_BTF = _frames(mode, 2, 6)
    hidden_BTH, _ = model(frames_BTF[:, :-1])
    cost = model.head.loss(hidden_BTH, frames_BTF[:, 1:])
    assert cost.shape == (2, 5, mode.num_fields)
    ahead = model.heads_ahead[0].loss(hidden_BTH[:, :-1], frames_BTF[:, 2:])
    (cost.mean() + ahead.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model.eval()
    after = model.head.loss(model(frames_BTF[:, :-1])[0], frames_BTF[:, 1:])
    assert after.mean() != cost.mean()
    babble = generate_frames(model, frames_BTF.numpy(), 7)
    assert babble.shape == (2, 7, mode.num_fields)
    assert (babble < mode.levels).all()
    error, bits = measure_losses(model, frames_BTF)
    assert error.isfinite().all()
    assert bits.isfinite().all()


@torch.no_grad()
def test_bypassed_layers_are_left_out_of_the_forward_pass():
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


def test_dropout_acts_only_in_training():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=2, units=32, dropout=0.5), MODES["1300"])
    frames_BTF = _frames(model.mode, 1, 3)
    assert not torch.equal(model(frames_BTF)[0], model(frames_BTF)[0])
    model.eval()
    assert torch.equal(model(frames_BTF)[0], model(frames_BTF)[0])


def test_scaled_inputs_reject_label_fields():
    with pytest.raises(ValueError, match=r"model\.inputs=scaled can't be used with mode 1200.*embedded"):
        Babbler(ModelConfig(inputs="scaled"), MODES["1200"])


def test_configs_allow_exactly_the_cells_and_heads_that_exist():
    assert get_args(Cell) == tuple(CELLS)
    assert get_args(HeadName) == tuple(HEADS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cell", "lstn", "cell lstn: expected one of lstm, gru, hyperlstm, diagonal_lstm; did you mean lstm"),
        ("head", "x", "head x: expected one of regression, mixture, categorical, autoregressive"),
        ("inputs", "raw", "inputs raw: expected one of scaled, embedded"),
        ("units", 0, "model.units=0: must be at least 1"),
        ("dropout", 1.0, "model.dropout=1.0: must be at least 0 and below 1"),
    ],
)
def test_an_invalid_architecture_is_rejected_by_its_key(key: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        build_config(ModelConfig, {key: value})


def test_a_checkpoint_of_another_program_is_rejected():
    with pytest.raises(ValueError, match="was not written by this version of babble"):
        build_model({"state_dict": {}})


def test_a_checkpoint_of_another_architecture_is_rejected_in_one_line():
    config = {"num_layers": 1, "units": 8}
    weights = {f"model.{name}": w for name, w in Babbler(ModelConfig(**config), MODES["1300"]).state_dict().items()}
    checkpoint = {"hyper_parameters": {"model": config, "mode": "1300"}, "state_dict": weights}
    assert build_model(checkpoint).config.units == 8
    # Before 2026-11-26 the head had other weights.
    weights["model.head.earlier_LK"] = weights.pop("model.head.effect_LU")
    with pytest.raises(ValueError, match=r"^[^\n]* train again \(2 weights differ .* head\.earlier_LK\)$"):
        build_model(checkpoint)
