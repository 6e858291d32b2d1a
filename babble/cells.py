"""Recurrent layers behind one interface: one layer of the stack, any cell.

Each layer has

- `forward(x_BTI, state)`: a whole stretch at once, on PyTorch's own fused kernels;
- `initial_state(batch)`: the state before the first frame;
- `make_step()`: one frame at a time for free running, with the weights joined so that a frame costs one matrix
  product a layer. `nn.LSTM` stepped frame by frame is eight times slower, `LSTMCell` a third.

A state is a tuple of tensors (B, H), the layer's output first.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


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


CELLS: dict[str, type[LstmLayer] | type[GruLayer]] = {"lstm": LstmLayer, "gru": GruLayer}
