"""Recurrent layers: one layer of the stack, with any cell, behind one interface.

    layer = CELLS["lstm"](inputs=320, units=320)
    out_BTH, state = layer(x_BTI, layer.initial_state(batch=8))

The cells, and how `forward` iterates over time:

- `lstm`, `gru`: PyTorch's own fused kernels;
- `hyperlstm`: an LSTM whose weights are scaled by a small LSTM, frame by frame;
- `diagonal_lstm`: an LSTM without connections between its units, frame by frame, without a matrix product in the loop.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# One row per sequence; the first tensor is the layer's output (B, H).
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

# HyperLSTM: hidden units of the layer per unit of the small LSTM, and the size of its embeddings. The paper used
# embeddings of 4 to 64 numbers.
UNITS_PER_HYPER_UNIT = 4
EMBEDDING_SIZE = 16


class RecurrentLayer(nn.Module, ABC):
    """One recurrent layer of `units` hidden units.

    Args:
        inputs: size of its input.
        units: hidden units, the size of its output.
    """

    @abstractmethod
    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) of a segment, and the state after its last frame."""

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame, on the weights' device and in their type."""

    @abstractmethod
    def make_step(self) -> Step:
        """Return a function (x_BI, state) -> state for one frame of generation.

        It copies the current weights, joined so that a frame needs one matrix product per layer (HyperLSTM: three).
        `nn.LSTM` called frame by frame takes eight times as long, `nn.LSTMCell` a third longer.
        """


def _weights(rnn: nn.RNNBase) -> list[Tensor]:
    """Return the input weight, recurrent weight, input bias and recurrent bias of a one-layer RNN."""
    return [parameter.detach() for parameter in rnn.parameters()]


def _without_float16(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context in which an LSTM or GRU computes in float32 where autocast to bfloat16 would choose float16.

    On a GPU, autocast runs cuDNN's layers in float16 whatever format is asked for (aten/src/ATen/cudnn/AutocastRNN.cpp
    as of torch 2.13). As only the loss of 16-mixed is scaled, their gradients would lose most of their bits: with
    batches of 8,192 frames all are below 6e-5, from where float16 has fewer and fewer. cuDNN's float32 uses tensor
    cores (TF32).
    """
    if x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        return torch.autocast("cuda", enabled=False)
    return contextlib.nullcontext()


def _candidate_last(parameter: Tensor) -> Tensor:
    """Return an LSTM's parameter reordered from (i, f, g, o) to (i, f, o, g): one sigmoid serves three gates."""
    i, f, g, o = parameter.chunk(4)
    return torch.cat([i, f, o, g])


class LstmLayer(RecurrentLayer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997): PyTorch's `nn.LSTM`."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, units, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """Return zeros: output and cell, each (B, H)."""
        zeros = next(self.parameters()).new_zeros(batch, self.rnn.hidden_size)
        return zeros, zeros

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        with _without_float16(x_BTI):
            out_BTH, (h, c) = self.rnn(x_BTI, (state[0][None], state[1][None]))
        return out_BTH, (h[0], c[0])

    def make_step(self) -> Step:
        """Return the one-frame step: one product for all four gates."""
        w_x, w_h, b_x, b_h = (_candidate_last(parameter) for parameter in _weights(self.rnn))
        weight = torch.cat([w_x, w_h], dim=1).t().contiguous()
        bias = b_x + b_h
        units = self.rnn.hidden_size

        def step(x_BI: Tensor, state: State) -> State:
            h, c = state
            gates = torch.addmm(bias, torch.cat([x_BI, h], dim=1), weight)
            # In place, and without `Tensor.split`: it is Python, and took 7 % of a frame of one stream.
            ifo, g = gates.split_with_sizes((3 * units, units), 1)
            i, f, o = ifo.sigmoid_().chunk(3, dim=1)
            c = f.mul_(c).addcmul_(i, g.tanh_())
            return o.mul_(c.tanh()), c

        return step


class GruLayer(RecurrentLayer):
    """Gated recurrent unit (Cho et al. 2014): PyTorch's `nn.GRU`, whose reset gate acts after the matrix product."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, units, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """Return zeros: the output (B, H)."""
        return (next(self.parameters()).new_zeros(batch, self.rnn.hidden_size),)

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        with _without_float16(x_BTI):
            out_BTH, h = self.rnn(x_BTI, state[0][None])
        return out_BTH, (h[0],)

    def make_step(self) -> Step:
        """Return the one-frame step: one product for reset gate, update gate and both parts of the new value."""
        w_x, w_h, b_x, b_h = _weights(self.rnn)
        inputs, units = self.rnn.input_size, self.rnn.hidden_size
        weight = w_x.new_zeros(inputs + units, 4 * units)
        weight[:inputs, : 3 * units] = w_x.t()
        weight[inputs:, : 2 * units] = w_h[: 2 * units].t()
        # The reset gate multiplies only the recurrent part of the new value, so that part has its own columns.
        weight[inputs:, 3 * units :] = w_h[2 * units :].t()
        bias = torch.cat([b_x[: 2 * units] + b_h[: 2 * units], b_x[2 * units :], b_h[2 * units :]])

        def step(x_BI: Tensor, state: State) -> State:
            (h,) = state
            r, z, new_x, new_h = torch.addmm(bias, torch.cat([x_BI, h], dim=1), weight).chunk(4, dim=1)
            new = torch.tanh(torch.addcmul(new_x, torch.sigmoid(r), new_h))
            return (torch.lerp(new, h, torch.sigmoid(z)),)

        return step


def _lstm_update(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and cell (B, H) after one frame.

    Args:
        gates: i, f, o, g (B, 4 H), before their sigmoids and the tanh of g.
        c: the cell (B, H) before the frame.
    """
    units = c.shape[1]
    ifo, g = gates.split([3 * units, units], dim=1)
    i, f, o = ifo.sigmoid().chunk(3, dim=1)
    c = torch.addcmul(f * c, i, g.tanh())
    return o * c.tanh(), c


class _HyperWeights(NamedTuple):
    """A HyperLSTM's weights, joined by their input: main layer before hyper cell, gates in the order i, f, o, g."""

    x: Tensor
    """(inputs, 4 H + 4 hyper units)"""
    h: Tensor
    """(H, 4 H + 4 hyper units)"""
    hyper_h: Tensor
    """(hyper units, 12 H + 4 hyper units); the first 12 H columns are the recurrent, input and bias scales"""
    bias: Tensor
    """(12 H + 4 hyper units)"""


class HyperLstmLayer(RecurrentLayer):
    """HyperLSTM: at each frame a small LSTM scales the rows of the layer's weight matrices and shifts its bias.

    Source: Ha, Dai and Le 2016, "HyperNetworks", equations 10 to 13 without layer norm and dropout. As in the paper,
    frame t is scaled by the hyper cell's output after frame t - 1.

    The initialization makes it equal to the plain LSTM `main`: scales start at 1 instead of the paper's 0.1, because
    no layer norm compensates for less. Rows of `scale_weight` are random with a sum of 1 instead of constant: with a
    constant, all numbers of an embedding would get the same gradient forever and be worth only one number.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        hyper_units = max(1, units // UNITS_PER_HYPER_UNIT)
        self.main = nn.LSTMCell(inputs, units)
        self.hyper = nn.LSTMCell(units + inputs, hyper_units)
        # First axis: recurrent scale, input scale, bias (whose embedding has no bias). Second axis: gates i, f, o, g.
        self.embedding_weight = nn.Parameter(torch.zeros(3, 4, EMBEDDING_SIZE, hyper_units))
        self.embedding_bias = nn.Parameter(torch.ones(2, 4, EMBEDDING_SIZE))
        self.scale_weight = nn.Parameter(torch.zeros(3, 4, units, EMBEDDING_SIZE))
        with torch.no_grad():
            self.embedding_weight[2].normal_(std=0.01)
            rows = self.scale_weight[:2].uniform_(-(EMBEDDING_SIZE**-0.5), EMBEDDING_SIZE**-0.5)
            rows += 1 / EMBEDDING_SIZE - rows.mean(dim=-1, keepdim=True)

    def initial_state(self, batch: int) -> State:
        """Return zeros: output and cell (B, H), the hyper cell's output and cell (B, hyper units)."""
        zeros = self.embedding_bias.new_zeros
        h, hyper_h = zeros(batch, self.main.hidden_size), zeros(batch, self.hyper.hidden_size)
        return h, h, hyper_h, hyper_h

    def _join_weights(self) -> _HyperWeights:
        """Return the weights joined by their input: two products per frame, and one for the inputs of all frames."""
        main, hyper = self.main, self.hyper
        hyper_from_h, hyper_from_x = hyper.weight_ih.split([main.hidden_size, main.input_size], dim=1)
        # Embeddings are linear in the hyper cell's output, and scales are linear in embeddings: together one matrix.
        scale_rows = (self.scale_weight @ self.embedding_weight).flatten(0, 2)
        scale_bias = (self.scale_weight[:2] @ self.embedding_bias[..., None]).flatten()
        main_bias = _candidate_last(main.bias_ih + main.bias_hh)
        return _HyperWeights(
            x=torch.cat([_candidate_last(main.weight_ih), _candidate_last(hyper_from_x)]).t(),
            h=torch.cat([_candidate_last(main.weight_hh), _candidate_last(hyper_from_h)]).t(),
            hyper_h=torch.cat([scale_rows, _candidate_last(hyper.weight_hh)]).t(),
            bias=torch.cat([scale_bias, main_bias, _candidate_last(hyper.bias_ih + hyper.bias_hh)]),
        )

    def _advance(self, from_x: Tensor, state: State, weights: _HyperWeights) -> State:
        """Return the state after one frame; `from_x` (B, 4 H + 4 hyper units) is the product of its input."""
        h, c, hyper_h, hyper_c = state
        sizes = [4 * h.shape[1], 4 * hyper_h.shape[1]]
        main_x, hyper_x = from_x.split(sizes, dim=1)
        main_h, hyper_gates = (h @ weights.h).split(sizes, dim=1)
        scaling = torch.addmm(weights.bias, hyper_h, weights.hyper_h)
        scale_h, scale_x, bias, hyper_recurrent = scaling.split([sizes[0]] * 3 + sizes[1:], dim=1)
        gates = torch.addcmul(torch.addcmul(bias, scale_h, main_h), scale_x, main_x)
        return *_lstm_update(gates, c), *_lstm_update(hyper_gates + hyper_recurrent + hyper_x, hyper_c)

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        weights = self._join_weights()
        outputs = []
        for from_x in (x_BTI.transpose(0, 1) @ weights.x).unbind():
            state = self._advance(from_x, state, weights)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state

    @torch.no_grad()
    def make_step(self) -> Step:
        """Return the one-frame step: three products, because a single joined matrix would be three quarters zeros."""
        weights = _HyperWeights(*(weight.contiguous() for weight in self._join_weights()))

        def step(x_BI: Tensor, state: State) -> State:
            return self._advance(x_BI @ weights.x, state, weights)

        return step


class DiagonalLstmLayer(RecurrentLayer):
    """LSTM without connections between units: the recurrent matrix of each gate is diagonal, stored as a vector.

    Source: Subakan and Smaragdis 2017, "Diagonal RNNs in symbolic music modeling".
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        # Gates i, f, o, g.
        self.input = nn.Linear(inputs, 4 * units)
        # PyTorch's initialization, uniform within 1 / sqrt(number of inputs): a unit has one recurrent input.
        self.recurrent = nn.Parameter(torch.empty(4, units).uniform_(-1, 1))

    def initial_state(self, batch: int) -> State:
        """Return zeros: output and cell, each (B, H)."""
        zeros = self.recurrent.new_zeros(batch, self.recurrent.shape[1])
        return zeros, zeros

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        h, c = state
        # Expanded to one row per sequence, so that backward sums over the batch once instead of at each frame.
        recurrent = self.recurrent.flatten().expand(len(h), -1)
        outputs = []
        for from_x in self.input(x_BTI.transpose(0, 1)).unbind():
            h, c = _lstm_update(torch.addcmul(from_x, recurrent, h.repeat(1, 4)), c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)

    def make_step(self) -> Step:
        """Return the one-frame step: one matrix product for all four gates, and one elementwise product."""
        weight = self.input.weight.detach().t().clone(memory_format=torch.contiguous_format)
        bias = self.input.bias.detach().clone()
        recurrent = self.recurrent.detach().flatten().clone()

        def step(x_BI: Tensor, state: State) -> State:
            h, c = state
            from_x = torch.addmm(bias, x_BI, weight)
            return _lstm_update(torch.addcmul(from_x, recurrent, h.repeat(1, 4)), c)

        return step


CELLS: dict[str, type[RecurrentLayer]] = {
    "lstm": LstmLayer,
    "gru": GruLayer,
    "hyperlstm": HyperLstmLayer,
    "diagonal_lstm": DiagonalLstmLayer,
}


def can_train_in_bfloat16() -> bool:
    """Return whether this CPU can run `nn.LSTM` under bfloat16 autocast: oneDNN has no kernel without AVX-512."""
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        try:
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
        except RuntimeError:
            return False
    return True
