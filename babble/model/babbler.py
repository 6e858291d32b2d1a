"""The network: frames in, the distribution of the next frame out.

    frames_BTF -> input layer -> recurrent layer 1 .. n -> head -> next frame

With skip connections every layer also receives the input; the head receives all layer outputs.

Read `Babbler` from top to bottom. It knows nothing of files, Lightning or W&B. Shapes: B windows, T frames, F fields,
H units.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import TOKENS, Mode
from babble.model.cells import CELLS, RecurrentLayer, State, Step
from babble.model.config import ModelConfig
from babble.model.head import Head
from babble.model.heads import HEADS
from babble.model.typed_list import TypedModuleList

LayerCall = Callable[[Tensor, State], tuple[Tensor, State]]
# What the context adds to the network's input and to the head's.
Added = tuple[Tensor, Tensor]


def _with_output(step: Step) -> LayerCall:
    """Return a one-frame step as a call of its layer: the first tensor of a state is the output."""

    def call(x_BI: Tensor, state: State) -> tuple[Tensor, State]:
        state = step(x_BI, state)
        return state[0], state

    return call


class ScaledInput(nn.Module):
    """Each field divided by its highest level: (B, T, F) in 0..1. It has no weights.

    Raises:
        ValueError: the mode has label fields, whose magnitude means nothing.
    """

    highest_F: Tensor

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        if mode.has_labels:
            raise ValueError(
                f"model.inputs=scaled can't be used with mode {mode.name}: some of its fields are codebook indices. "
                "Use model.inputs=embedded."
            )
        self.width = mode.num_fields
        self.register_buffer("highest_F", torch.tensor(mode.levels - 1.0).float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the scaled fields (..., F)."""
        return frames / self.highest_F

    def make_step(self) -> Callable[[Tensor], Tensor]:
        """Return `forward` for single frames."""
        return self.forward


class EmbeddedInput(nn.Module):
    """The sum over fields of the learned vector of each field's level: (..., H)."""

    first_row_F: Tensor

    def __init__(self, mode: Mode, width: int) -> None:
        super().__init__()
        self.width = width
        # One table for all fields, each with its own rows: one look-up per frame instead of F.
        self.table = nn.EmbeddingBag(int(mode.levels.sum()), width, mode="sum")
        first_rows = torch.tensor([0, *mode.levels.cumsum()[:-1]])
        self.register_buffer("first_row_F", first_rows, persistent=False)
        nn.init.normal_(self.table.weight, std=mode.num_fields**-0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the summed embeddings (..., H)."""
        rows = (frames + self.first_row_F).flatten(0, -2)
        return self.table(rows).view(*frames.shape[:-1], self.width)

    def make_step(self) -> Callable[[Tensor], Tensor]:
        """Return `forward` for single frames (B, F); for a few streams faster than `nn.EmbeddingBag`."""
        table_RH, first_row_F = self.table.weight.detach(), self.first_row_F

        def step(frames_BF: Tensor) -> Tensor:
            rows = (frames_BF + first_row_F).flatten()
            return table_RH.index_select(0, rows).view(*frames_BF.shape, -1).sum(dim=1)

        return step


class FrameStep(Protocol):
    """What `Babbler.make_step` returns."""

    def __call__(self, frames_BF: Tensor, state: list[State], added: Added | None = None) -> tuple[Tensor, list[State]]:
        """Return hidden_BH and the state after one frame of each stream.

        Args:
            frames_BF: integer levels.
            state: of every layer.
            added: of a network with tokens, what `Babbler.context` returns for the next frame, (B, width) each.
        """
        ...


class ContextInput(nn.Module):
    """What a network receives of the next frame's token: a vector added to its input, and one to the head's.

    Both are zero at first, so that a network that is continued with tokens starts as it was.

    Args:
        tokens: number of different tokens.
        units: hidden units.
        input_width: size of the network's input.
        head_inputs: size of the head's.
    """

    first_row_C: Tensor

    def __init__(self, tokens: int, units: int, input_width: int, head_inputs: int) -> None:
        super().__init__()
        # The columns of codec/token_sequences.py: token, next token, frames left, frames since its start.
        longest = int(TOKENS.levels[1])
        sizes = (tokens, tokens, longest, longest)
        self.table = nn.EmbeddingBag(sum(sizes), units, mode="sum")
        self.register_buffer("first_row_C", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]), persistent=False)
        self.dense = nn.Linear(units, units)
        self.to_input, self.to_head = nn.Linear(units, input_width), nn.Linear(units, head_inputs)
        nn.init.normal_(self.table.weight, std=0.05)
        for layer in (self.to_input, self.to_head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, context: Tensor) -> Added:
        """Return what is added to the input and to the head's input, for a context (..., C)."""
        rows = (context + self.first_row_C).flatten(0, -2)
        hidden = functional.relu(self.dense(self.table(rows).view(*context.shape[:-1], -1)))
        return self.to_input(hidden), self.to_head(hidden)


class Babbler(nn.Module):
    """A stack of recurrent layers that predicts the next frame of speech.

    Args:
        config: architecture.
        mode: the Codec 2 mode of the frames.

    Attributes:
        bypassed: layers, counted from 1 at the bottom, that are left out of the forward pass: their input goes to the
            layer above, and the head receives zeros in place of their output. See training/unfreezing.py.

    Raises:
        ValueError: an input layer or a head that does not support the fields of the mode.

    Example:
        model = Babbler(ModelConfig(units=8), MODES["1300"])
        hidden_BTH, state = model(frames_BTF[:, :-1])
        loss_BTF = model.head.loss(hidden_BTH, frames_BTF[:, 1:])
    """

    def __init__(self, config: ModelConfig, mode: Mode) -> None:
        super().__init__()
        self.config = config
        self.mode = mode
        self.input: ScaledInput | EmbeddedInput = (
            ScaledInput(mode) if config.inputs == "scaled" else EmbeddedInput(mode, config.embedding_size)
        )
        above = config.units + (self.input.width if config.skips else 0)
        widths = [self.input.width] + [above] * (config.num_layers - 1)
        self.layers = TypedModuleList[RecurrentLayer](CELLS[config.cell](width, config.units) for width in widths)
        head_inputs = config.units * (config.num_layers if config.skips else 1)
        self.context = (
            ContextInput(config.tokens, config.units, self.input.width, head_inputs) if config.tokens else None
        )
        self.head: Head = HEADS[config.head](head_inputs, config.head_units, mode)
        # Frames further ahead are an auxiliary task: a cheap head is enough.
        ahead = HEADS["categorical" if self.head.has_likelihood else config.head]
        self.heads_ahead = TypedModuleList[Head](
            ahead(head_inputs, config.head_units, mode) for _ in range(config.frames_ahead - 1)
        )
        self.bypassed: frozenset[int] = frozenset()

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the frames that it is given have to be."""
        return next(self.parameters()).device

    def initial_state(self, batch: int) -> list[State]:
        """Return the state of every layer before the first frame."""
        return [layer.initial_state(batch) for layer in self.layers]

    def split(self, frames_BTX: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return inputs, context and targets: each frame is predicted from those before, and from its own context.

        Args:
            frames_BTX: levels, and of a network with tokens the context of each frame after them, int64 (B, T, F + C).

        Returns:
            inputs (B, T - 1, F), context (B, T - 1, C) or None, targets (B, T - 1, F).
        """
        num_fields = self.mode.num_fields
        context = frames_BTX[:, 1:, num_fields:] if self.context else None
        return frames_BTX[:, :-1, :num_fields], context, frames_BTX[:, 1:, :num_fields]

    def forward(
        self, frames_BTF: Tensor, state: list[State] | None = None, context_BTC: Tensor | None = None
    ) -> tuple[Tensor, list[State]]:
        """Return the input of the head, and the state after the last frame.

        Args:
            frames_BTF: integer levels.
            state: the state that an earlier call returned, to continue from; None for the initial state.
            context_BTC: of a network with tokens, the context of the frame after each.

        Returns:
            hidden_BTH: step t depends on frames 0..t and predicts frame t + 1. It is the output of the top layer, or
            with skip connections those of all layers, concatenated; and the state of every layer.
        """
        state = self.initial_state(len(frames_BTF)) if state is None else state
        added = None
        if self.context:
            assert context_BTC is not None, "a network with tokens needs the context of the next frame"
            added = self.context(context_BTC)
        return self._run_layers(self.input(frames_BTF), added, state, [layer.__call__ for layer in self.layers])

    def make_step(self) -> FrameStep:
        """Return a function (frames_BF, state, added) -> (hidden_BH, state) for one frame at a time.

        It computes the same as `forward`, and is much faster when the next frame is not known yet. It copies the
        current weights, but for those of the context: `Babbler.context` takes many frames at once.
        """
        steps = [_with_output(layer.make_step()) for layer in self.layers]
        embed = self.input.make_step()

        def step(frames_BF: Tensor, state: list[State], added: Added | None = None) -> tuple[Tensor, list[State]]:
            assert (added is None) == (self.context is None), (
                "a network with tokens needs the context of the next frame"
            )
            return self._run_layers(embed(frames_BF), added, state, steps)

        return step

    def _run_layers(
        self, embedded: Tensor, added: Added | None, state: list[State], layers: Sequence[LayerCall]
    ) -> tuple[Tensor, list[State]]:
        """Return the input of the head and every layer's state.

        Args:
            embedded: the input.
            added: what the context adds to it and to the head's input.
            state: that of each layer.
            layers: they take whole segments, or single frames.
        """
        x = inputs = self._drop(embedded if added is None else embedded + added[0])
        outputs, after = [], []
        for number, (layer, layer_state) in enumerate(zip(layers, state, strict=True), 1):
            if number in self.bypassed:
                outputs.append(x.new_zeros(*x.shape[:-1], self.config.units))
            else:
                layer_input = torch.cat([x, inputs], dim=-1) if self.config.skips and number > 1 else x
                x, layer_state = layer(layer_input, layer_state)
                x = self._drop(x)
                outputs.append(x)
            after.append(layer_state)
        hidden = torch.cat(outputs, dim=-1) if self.config.skips else x
        return (hidden if added is None else hidden + added[1]), after

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or not self.config.dropout:
            return x
        return functional.dropout(x, self.config.dropout)


def count_weights(config: ModelConfig, mode: Mode) -> int:
    """Return the number of weights of a network with this architecture."""
    return sum(parameter.numel() for parameter in Babbler(config, mode).parameters())
