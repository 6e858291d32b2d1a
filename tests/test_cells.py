"""Every cell: against a slow loop written from its paper, stepped against whole, and carried against one pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from babble.cells import CELLS, GruLayer, LstmLayer

B, T, INPUTS, H = 3, 11, 5, 7


def _slow_lstm(layer: LstmLayer, x_BTI: Tensor) -> Tensor:
    """Hochreiter and Schmidhuber's equations with a forget gate, one gate at a time."""
    w_x, w_h = layer.rnn.weight_ih_l0.split(H), layer.rnn.weight_hh_l0.split(H)
    b = (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0).split(H)
    h = c = torch.zeros(len(x_BTI), H)
    outputs = []
    for t in range(x_BTI.shape[1]):
        i, f, g, o = (x_BTI[:, t] @ w_x[k].T + h @ w_h[k].T + b[k] for k in range(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _slow_gru(layer: GruLayer, x_BTI: Tensor) -> Tensor:
    """Cho et al.'s equations, the reset gate after the product."""
    w_x, w_h = layer.rnn.weight_ih_l0.split(H), layer.rnn.weight_hh_l0.split(H)
    b_x, b_h = layer.rnn.bias_ih_l0.split(H), layer.rnn.bias_hh_l0.split(H)
    h = torch.zeros(len(x_BTI), H)
    outputs = []
    for t in range(x_BTI.shape[1]):
        x = [x_BTI[:, t] @ w_x[k].T + b_x[k] for k in range(3)]
        r = (x[0] + h @ w_h[0].T + b_h[0]).sigmoid()
        z = (x[1] + h @ w_h[1].T + b_h[1]).sigmoid()
        new = (x[2] + r * (h @ w_h[2].T + b_h[2])).tanh()
        h = (1 - z) * new + z * h
        outputs.append(h)
    return torch.stack(outputs, dim=1)


SLOW: dict[str, Callable[..., Tensor]] = {"lstm": _slow_lstm, "gru": _slow_gru}


@pytest.fixture(params=list(CELLS))
def layer(request: pytest.FixtureRequest) -> LstmLayer | GruLayer:
    torch.manual_seed(1)
    return CELLS[request.param](INPUTS, H)


@torch.no_grad()
def test_a_layer_equals_a_slow_loop_over_its_equations(layer: LstmLayer | GruLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    slow = SLOW["lstm" if isinstance(layer, LstmLayer) else "gru"](layer, x_BTI)
    out_BTH, state = layer(x_BTI, layer.initial_state(B))
    torch.testing.assert_close(out_BTH, slow)
    torch.testing.assert_close(state[0], slow[:, -1])


@torch.no_grad()
def test_carried_state_gives_the_same_as_one_pass(layer: LstmLayer | GruLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    whole, last = layer(x_BTI, layer.initial_state(B))
    first, state = layer(x_BTI[:, :4], layer.initial_state(B))
    second, state = layer(x_BTI[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


@torch.no_grad()
def test_steps_of_one_frame_equal_the_whole_stretch(layer: LstmLayer | GruLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    whole, last = layer(x_BTI, layer.initial_state(B))
    step, state = layer.make_step(), layer.initial_state(B)
    for t in range(T):
        state = step(x_BTI[:, t], state)
        torch.testing.assert_close(state[0], whole[:, t])
    torch.testing.assert_close(state, last)
