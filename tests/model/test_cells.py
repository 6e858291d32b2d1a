"""Every cell: against a slow loop over the equations of its paper; single steps and carried state against one pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from babble.model.cells import (
    CELLS,
    DiagonalLstmLayer,
    GruLayer,
    HyperLstmLayer,
    LstmLayer,
    RecurrentLayer,
    can_train_in_bfloat16,
)

B, T, INPUTS, H = 3, 11, 5, 7


def _slow_lstm(layer: LstmLayer, x_BTI: Tensor) -> Tensor:
    """Hochreiter and Schmidhuber's equations with a forget gate, one gate at a time."""
    w_x, w_h = layer.rnn.weight_ih_l0.split(H), layer.rnn.weight_hh_l0.split(H)
    b = (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0).split(H)
    h = c = x_BTI.new_zeros(len(x_BTI), H)
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
    h = x_BTI.new_zeros(len(x_BTI), H)
    outputs = []
    for t in range(x_BTI.shape[1]):
        x = [x_BTI[:, t] @ w_x[k].T + b_x[k] for k in range(3)]
        r = (x[0] + h @ w_h[0].T + b_h[0]).sigmoid()
        z = (x[1] + h @ w_h[1].T + b_h[1]).sigmoid()
        new = (x[2] + r * (h @ w_h[2].T + b_h[2])).tanh()
        h = (1 - z) * new + z * h
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _slow_hyperlstm(layer: HyperLstmLayer, x_BTI: Tensor) -> Tensor:
    """Ha, Dai and Le's equations 10 to 13 without layer norm and dropout: embeddings, then scales, gate by gate."""
    main, hyper = layer.main, layer.hyper
    hyper_units = H // 4
    h = c = x_BTI.new_zeros(len(x_BTI), H)
    hyper_h = hyper_c = x_BTI.new_zeros(len(x_BTI), hyper_units)
    outputs = []
    for t in range(x_BTI.shape[1]):
        y = {}
        for gate in "ifgo":
            # PyTorch's weights have the candidate third, the layer's own tables have it last.
            rows, k = slice("ifgo".index(gate) * H, ("ifgo".index(gate) + 1) * H), "ifog".index(gate)
            z_h = hyper_h @ layer.embedding_weight[0, k].T + layer.embedding_bias[0, k]
            z_x = hyper_h @ layer.embedding_weight[1, k].T + layer.embedding_bias[1, k]
            z_b = hyper_h @ layer.embedding_weight[2, k].T
            d_h, d_x, b = (z @ layer.scale_weight[j, k].T for j, z in enumerate((z_h, z_x, z_b)))
            b = b + main.bias_ih[rows] + main.bias_hh[rows]
            y[gate] = d_h * (h @ main.weight_hh[rows].T) + d_x * (x_BTI[:, t] @ main.weight_ih[rows].T) + b
        hyper_x = torch.cat([h, x_BTI[:, t]], dim=1)
        hat = {}
        for k, gate in enumerate("ifgo"):
            rows = slice(k * hyper_units, (k + 1) * hyper_units)
            b = hyper.bias_ih[rows] + hyper.bias_hh[rows]
            hat[gate] = hyper_h @ hyper.weight_hh[rows].T + hyper_x @ hyper.weight_ih[rows].T + b
        hyper_c = hat["f"].sigmoid() * hyper_c + hat["i"].sigmoid() * hat["g"].tanh()
        hyper_h = hat["o"].sigmoid() * hyper_c.tanh()
        c = y["f"].sigmoid() * c + y["i"].sigmoid() * y["g"].tanh()
        h = y["o"].sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _slow_diagonal_lstm(layer: DiagonalLstmLayer, x_BTI: Tensor) -> Tensor:
    """The LSTM's equations, each recurrent matrix written out: zero except for its diagonal."""
    w_x, b = layer.input.weight.split(H), layer.input.bias.split(H)
    w_h = [torch.diag(vector) for vector in layer.recurrent]
    h = c = x_BTI.new_zeros(len(x_BTI), H)
    outputs = []
    for t in range(x_BTI.shape[1]):
        i, f, o, g = (x_BTI[:, t] @ w_x[k].T + h @ w_h[k].T + b[k] for k in range(4))
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


SLOW: dict[str, Callable[..., Tensor]] = {
    "lstm": _slow_lstm,
    "gru": _slow_gru,
    "hyperlstm": _slow_hyperlstm,
    "diagonal_lstm": _slow_diagonal_lstm,
}


@pytest.fixture(params=list(CELLS))
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def layer(cell: str) -> RecurrentLayer:
    """Return a layer far from its initialization, so that none of its weights is 0 or 1."""
    torch.manual_seed(1)
    layer = CELLS[cell](INPUTS, H)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@torch.no_grad()
def test_a_layer_equals_a_slow_loop_over_its_equations(cell: str, layer: RecurrentLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    slow = SLOW[cell](layer, x_BTI)
    out_BTH, state = layer(x_BTI, layer.initial_state(B))
    torch.testing.assert_close(out_BTH, slow)
    torch.testing.assert_close(state[0], slow[:, -1])


@torch.no_grad()
def test_carried_state_gives_the_same_as_one_pass(layer: RecurrentLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    whole, last = layer(x_BTI, layer.initial_state(B))
    first, state = layer(x_BTI[:, :4], layer.initial_state(B))
    second, state = layer(x_BTI[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


@torch.no_grad()
def test_steps_of_one_frame_equal_one_pass(layer: RecurrentLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    whole, last = layer(x_BTI, layer.initial_state(B))
    step, state = layer.make_step(), layer.initial_state(B)
    for t in range(T):
        state = step(x_BTI[:, t], state)
        torch.testing.assert_close(state[0], whole[:, t])
    torch.testing.assert_close(state, last)


@torch.no_grad()
def test_a_step_copies_the_weights(layer: RecurrentLayer):
    x_BTI = torch.randn(B, T, INPUTS)
    _, state = layer(x_BTI, layer.initial_state(B))
    x_BI, step = x_BTI[:, 0], layer.make_step()
    before = step(x_BI, state)
    for parameter in layer.parameters():
        parameter.zero_()
    torch.testing.assert_close(step(x_BI, state), before)


def test_every_parameter_gets_the_gradient_of_the_slow_loop(cell: str, layer: RecurrentLayer):
    layer.double()
    x_BTI = torch.randn(B, T, INPUTS, dtype=torch.float64, requires_grad=True)
    weigh_BTH = torch.randn(B, T, H, dtype=torch.float64)
    trained = {"x": x_BTI, **dict(layer.named_parameters())}
    # In two chunks, so that the gradient also passes through a carried state.
    first, state = layer(x_BTI[:, :4], layer.initial_state(B))
    second, _ = layer(x_BTI[:, 4:], state)
    fast = torch.autograd.grad((torch.cat([first, second], dim=1) * weigh_BTH).sum(), list(trained.values()))
    slow = torch.autograd.grad((SLOW[cell](layer, x_BTI) * weigh_BTH).sum(), list(trained.values()))
    for name, fast_gradient, slow_gradient in zip(trained, fast, slow, strict=True):
        assert slow_gradient.abs().min() > 0, name
        torch.testing.assert_close(fast_gradient, slow_gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_a_layer_trains_under_autocast_as_without(cell: str, layer: RecurrentLayer):
    if cell == "lstm" and not can_train_in_bfloat16():
        pytest.skip("not on this machine: bfloat16 kernels")
    x_BTI = torch.randn(B, T, INPUTS)
    whole, _ = layer(x_BTI, layer.initial_state(B))
    with torch.autocast("cpu", torch.bfloat16):
        first, state = layer(x_BTI[:, :4], layer.initial_state(B))
        second, _ = layer(x_BTI[:, 4:], state)
    rough = torch.cat([first, second], dim=1)
    rough.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    torch.testing.assert_close(rough.float(), whole, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_a_new_hyperlstm_equals_the_plain_lstm_of_its_main_weights():
    torch.manual_seed(1)
    layer, plain = HyperLstmLayer(INPUTS, H), nn.LSTM(INPUTS, H, batch_first=True)
    for target, source in zip(plain.parameters(), layer.main.parameters(), strict=True):
        target.copy_(source)
    x_BTI = torch.randn(B, T, INPUTS)
    out_BTH, _ = layer(x_BTI, layer.initial_state(B))
    torch.testing.assert_close(out_BTH, plain(x_BTI)[0])


def test_the_numbers_of_a_new_hyperlstms_embedding_get_different_gradients():
    torch.manual_seed(1)
    layer = HyperLstmLayer(INPUTS, H)
    layer(torch.randn(B, T, INPUTS), layer.initial_state(B))[0].square().sum().backward()
    embedding, scale = layer.embedding_weight.grad, layer.scale_weight.grad
    assert embedding is not None
    assert scale is not None
    # At first, gradients reach the scales' embedding weights and the bias's table.
    for gradient in (embedding[:2].transpose(2, 3), scale[2]):
        assert (gradient.std(dim=-1) > 0.1 * gradient.abs().mean(dim=-1)).all()
