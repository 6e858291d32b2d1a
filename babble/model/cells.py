"""Recurrent layers behind one interface: one layer of the stack, any cell.

Each layer has

- `forward(x_BTI, state)`: a whole segment at once;
- `initial_state(batch)`: the state before the first frame;
- `make_step()`: one frame at a time for free running, with the weights joined so that a frame costs one matrix
  product a layer (HyperLSTM: three). `nn.LSTM` stepped frame by frame is eight times slower, `LSTMCell` a third.

A state is a tuple of tensors, one row a sequence, the layer's output (B, H) first.

The cells, and how `forward` goes over time:

- `lstm`, `gru`: on PyTorch's own fused kernels;
- `hyperlstm`: an LSTM whose weights a small LSTM scales, frame after frame;
- `diagonal_lstm`: an LSTM whose units don't hear each other, frame after frame, without a matrix product in the loop;
- `mingru`: gates that don't hear the past, all frames at once by a scan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

# The HyperLSTM's small cell and its embeddings; the paper took 4 to 64 numbers for an embedding, 16 in between.
UNITS_PER_HYPER_UNIT = 4
EMBEDDING_SIZE = 16


class RecurrentLayer(Protocol):
    """What every cell offers; see the module's docstring."""

    def __call__(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after the last of them."""

    def initial_state(self, batch: int) -> State:
        """Return the state before the first frame, on the weights' device and in their type."""

    def make_step(self) -> Step:
        """Return a function (x_BI, state) -> state for one frame; it holds the weights as they are now."""


def _weights(rnn: nn.RNNBase) -> list[Tensor]:
    """Return input weight, recurrent weight, input bias and recurrent bias of a single layer."""
    return [parameter.detach() for parameter in rnn.parameters()]


def _candidate_last(parameter: Tensor) -> Tensor:
    """Return an LSTM's parameter with the candidate behind the gates (i, f, o, g), so that one sigmoid serves three."""
    i, f, g, o = parameter.chunk(4)
    return torch.cat([i, f, o, g])


class LstmLayer(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), PyTorch's `nn.LSTM`."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, units, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """Return zeros: output and cell (B, H)."""
        zeros = next(self.parameters()).new_zeros(batch, self.rnn.hidden_size)
        return zeros, zeros

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        out_BTH, (h, c) = self.rnn(x_BTI, (state[0][None], state[1][None]))
        return out_BTH, (h[0], c[0])

    def make_step(self) -> Step:
        """Return the one-frame step: all four gates of input and output in one product."""
        w_x, w_h, b_x, b_h = (_candidate_last(parameter) for parameter in _weights(self.rnn))
        weight = torch.cat([w_x, w_h], dim=1).t().contiguous()
        bias = b_x + b_h
        units = self.rnn.hidden_size

        def step(x_BI: Tensor, state: State) -> State:
            h, c = state
            gates = torch.addmm(bias, torch.cat([x_BI, h], dim=1), weight)
            i, f, o = gates[:, : 3 * units].sigmoid_().chunk(3, dim=1)
            c = torch.addcmul(f * c, i, gates[:, 3 * units :].tanh_())
            return o * torch.tanh(c), c

        return step


class GruLayer(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), PyTorch's `nn.GRU`: the reset gate acts after the matrix product."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(inputs, units, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """Return zeros: the output (B, H)."""
        return (next(self.parameters()).new_zeros(batch, self.rnn.hidden_size),)

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        out_BTH, h = self.rnn(x_BTI, state[0][None])
        return out_BTH, (h[0],)

    def make_step(self) -> Step:
        """Return the one-frame step: reset, update, and the new value's two halves in one product."""
        w_x, w_h, b_x, b_h = _weights(self.rnn)
        inputs, units = self.rnn.input_size, self.rnn.hidden_size
        weight = w_x.new_zeros(inputs + units, 4 * units)
        weight[:inputs, : 3 * units] = w_x.t()
        weight[inputs:, : 2 * units] = w_h[: 2 * units].t()
        # The new value's recurrent half stays apart, as the reset gate multiplies it alone.
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
        gates: i, f, o, g (B, 4 H) before their sigmoids and the candidate's tanh.
        c: the cell (B, H) before the frame.
    """
    units = c.shape[1]
    ifo, g = gates.split([3 * units, units], dim=1)
    i, f, o = ifo.sigmoid().chunk(3, dim=1)
    c = torch.addcmul(f * c, i, g.tanh())
    return o * c.tanh(), c


class _HyperWeights(NamedTuple):
    """A HyperLSTM's weights, joined by what they multiply; main layer before hyper cell, gates as i, f, o, g."""

    x: Tensor
    """(inputs, 4 H + 4 hyper units)"""
    h: Tensor
    """(H, 4 H + 4 hyper units)"""
    hyper_h: Tensor
    """(hyper units, 12 H + 4 hyper units); its first 12 H columns are the recurrent, input and bias scales"""
    bias: Tensor
    """(12 H + 4 hyper units)"""


class HyperLstmLayer(nn.Module):
    """HyperLSTM: a small LSTM scales the rows of the layer's weight matrices and moves its bias, anew for each frame.

    Source: Ha, Dai and Le 2016, "HyperNetworks", equations 10 to 13 without layer norm and dropout. As there, what
    scales frame t is the hyper cell's output after frame t - 1.

    It starts as the plain LSTM `main`: scales are 1 where the paper has 0.1, as no layer norm makes up for less. And
    rows of `scale_weight` are random with a sum of 1 where the paper has a constant, from which all the numbers of an
    embedding would get the same gradient for ever: an embedding of any size would be worth one number.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        hyper_units = max(1, units // UNITS_PER_HYPER_UNIT)
        self.main = nn.LSTMCell(inputs, units)
        self.hyper = nn.LSTMCell(units + inputs, hyper_units)
        # Of each: recurrent scale, input scale, bias; then gates i, f, o, g. The bias' embedding has no bias.
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
        """Return the weights by what they multiply: two products a frame, and one for the inputs of all frames."""
        main, hyper = self.main, self.hyper
        hyper_from_h, hyper_from_x = hyper.weight_ih.split([main.hidden_size, main.input_size], dim=1)
        # An embedding is linear in the hyper cell's output and a scale in the embedding: their product is one matrix.
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
        """Return the state after a frame whose input product is `from_x` (B, 4 H + 4 hyper units)."""
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
        """Return the one-frame step: three products, as one would be three quarters zeros."""
        weights = _HyperWeights(*(weight.contiguous() for weight in self._join_weights()))

        def step(x_BI: Tensor, state: State) -> State:
            return self._advance(x_BI @ weights.x, state, weights)

        return step


def _copy_transposed(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return copies of weight (inputs, outputs) and bias that no later training changes."""
    return linear.weight.detach().t().clone(memory_format=torch.contiguous_format), linear.bias.detach().clone()


class DiagonalLstmLayer(nn.Module):
    """LSTM whose units don't hear each other: each gate's recurrent matrix is diagonal, held as a vector.

    Source: Subakan and Smaragdis 2017, "Diagonal RNNs in symbolic music modeling".
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        # Gates i, f, o, g.
        self.input = nn.Linear(inputs, 4 * units)
        # As PyTorch starts a recurrent matrix, uniform within one over the root of what a unit hears: here one unit.
        self.recurrent = nn.Parameter(torch.empty(4, units).uniform_(-1, 1))

    def initial_state(self, batch: int) -> State:
        """Return zeros: output and cell (B, H)."""
        zeros = self.recurrent.new_zeros(batch, self.recurrent.shape[1])
        return zeros, zeros

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        h, c = state
        # One copy a row: else backward sums over the batch for every frame instead of once.
        recurrent = self.recurrent.flatten().expand(len(h), -1)
        outputs = []
        for from_x in self.input(x_BTI.transpose(0, 1)).unbind():
            h, c = _lstm_update(torch.addcmul(from_x, recurrent, h.repeat(1, 4)), c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)

    def make_step(self) -> Step:
        """Return the one-frame step: one product for all four gates, and one elementwise."""
        weight, bias = _copy_transposed(self.input)
        recurrent = self.recurrent.detach().flatten().clone()

        def step(x_BI: Tensor, state: State) -> State:
            h, c = state
            from_x = torch.addmm(bias, x_BI, weight)
            return _lstm_update(torch.addcmul(from_x, recurrent, h.repeat(1, 4)), c)

        return step


def _scan(keep_TBH: Tensor, new_TBH: Tensor) -> Tensor:
    """Return h_t = keep_t h_(t-1) + new_t for all t (T, B, H), from h = 0, in about 2 log2(T) steps.

    Frames are joined in pairs, the pairs are scanned, and the frames between them follow. Nothing is divided and no
    logarithm taken: where keep and new are positive no digits are lost, however long the segment.
    """
    frames = len(keep_TBH)
    if frames == 1:
        return new_TBH
    keep_even, new_even = keep_TBH[: frames - 1 : 2], new_TBH[: frames - 1 : 2]
    keep_odd, new_odd = keep_TBH[1::2], new_TBH[1::2]
    h_odd = _scan(keep_even * keep_odd, torch.addcmul(new_odd, keep_odd, new_even))
    h_TBH = torch.empty_like(new_TBH)
    h_TBH[0] = new_TBH[0]
    h_TBH[1::2] = h_odd
    h_TBH[2::2] = torch.addcmul(new_TBH[2::2], keep_TBH[2::2], h_odd[: (frames - 1) // 2])
    return h_TBH


class _LinearRecurrence(torch.autograd.Function):
    """h_t = keep_t h_(t-1) + new_t from a given h; backward is the same scan from the last frame to the first."""

    @staticmethod
    def forward(ctx: Any, keep_TBH: Tensor, new_TBH: Tensor, h_BH: Tensor) -> Tensor:
        """Return h after every frame (T, B, H)."""
        first_BH = torch.addcmul(new_TBH[0], keep_TBH[0], h_BH)
        out_TBH = _scan(keep_TBH, torch.cat([first_BH[None], new_TBH[1:]]))
        ctx.save_for_backward(keep_TBH, h_BH, out_TBH)
        return out_TBH

    @staticmethod
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of keep, new and the given h."""
        keep_TBH, h_BH, out_TBH = ctx.saved_tensors
        # What reaches frame t from t + 1 is scaled by keep of t + 1; nothing reaches the last frame.
        new_grad_TBH = _scan(keep_TBH.roll(-1, dims=0).flip(0), grad_TBH.flip(0)).flip(0)
        before_TBH = torch.cat([h_BH[None], out_TBH[:-1]])
        return new_grad_TBH * before_TBH, new_grad_TBH, new_grad_TBH[0] * keep_TBH[0]


def _positive(x: Tensor) -> Tensor:
    """Return minGRU's g: x + 0.5 from 0 on, sigmoid(x) below; positive everywhere, and 0.5 at 0."""
    return torch.relu(x) + torch.sigmoid(x.clamp(max=0))


class MinGruLayer(nn.Module):
    """minGRU: neither gate nor new value hears the last output, so that training is parallel over time.

    Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, "Were RNNs all we needed?", the form of its appendix B
    whose new values are positive: h_t = (1 - z_t) h_(t-1) + z_t g(new_t). The paper scans logarithms, to divide by no
    vanishing product; `_scan` never divides, and over 1,000 frames is off by 3e-7 where logarithms are by 1e-4.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        # The update gate z, then the new value.
        self.input = nn.Linear(inputs, 2 * units)

    def initial_state(self, batch: int) -> State:
        """Return the paper's g(0): the output (B, H)."""
        return (self.input.bias.new_full((batch, self.input.out_features // 2), 0.5),)

    def forward(self, x_BTI: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) and the state after them."""
        (h,) = state
        # In the state's type, float32 under autocast: in bfloat16 a sum over many frames loses what each adds.
        z, new = self.input(x_BTI.transpose(0, 1)).to(h.dtype).chunk(2, dim=2)
        out_TBH = _LinearRecurrence.apply(torch.sigmoid(-z), torch.sigmoid(z) * _positive(new), h)
        return out_TBH.transpose(0, 1), (out_TBH[-1],)

    def make_step(self) -> Step:
        """Return the one-frame step: gate and new value in one product."""
        weight, bias = _copy_transposed(self.input)

        def step(x_BI: Tensor, state: State) -> State:
            z, new = torch.addmm(bias, x_BI, weight).chunk(2, dim=1)
            return (torch.lerp(state[0], _positive(new), torch.sigmoid(z)),)

        return step


Layer = LstmLayer | GruLayer | HyperLstmLayer | DiagonalLstmLayer | MinGruLayer

CELLS: dict[str, type[Layer]] = {
    "lstm": LstmLayer,
    "gru": GruLayer,
    "hyperlstm": HyperLstmLayer,
    "diagonal_lstm": DiagonalLstmLayer,
    "mingru": MinGruLayer,
}
