"""The network, and nothing else: frames in, what the next frame may be out.

    frames_BTF -> input layer -> recurrent layer 1 .. n -> head -> next frame

With skips every layer also hears the input, and the head hears every layer.

Read `Babbler` from top to bottom. It knows nothing of files, Lightning or W&B. Shapes: B windows, T frames, F fields,
H units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.cells import CELLS, RecurrentLayer, State, Step
from babble.model.heads import HEADS, Head

INPUTS = ("scaled", "embedded")

LayerCall = Callable[[Tensor, State], tuple[Tensor, State]]


def _with_output(step: Step) -> LayerCall:
    """Return a cell's step as a call of its layer: a state's first tensor is the output."""

    def call(x_BI: Tensor, state: State) -> tuple[Tensor, State]:
        state = step(x_BI, state)
        return state[0], state

    return call


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network.

    Attributes:
        inputs: "scaled", each field divided by its highest level, as 2017; or "embedded", each field's level looked
            up in a table of its own and all of them summed. Modes with label fields need "embedded".
        cell: the recurrent layers' cell: "lstm", "gru", "hyperlstm", "diagonal_lstm" or "mingru".
        num_layers: how many recurrent layers are stacked.
        units: hidden units of each.
        skips: whether every layer also hears the input, and the head all layers (Graves 2013).
        dropout: share of the units that are silenced, anew each frame, on the way from the input to a layer and from a
            layer to the next or the head, never from a frame to the next (Zaremba et al. 2014).
        head: what predicts the next frame: "autoregressive", "categorical", "mixture" or "regression" (2017).
        frames_ahead: how many frames ahead are predicted in training, each by a head of its own; 1 is the next frame
            alone. The others are off in sampling.
    """

    inputs: str = "embedded"
    cell: str = "lstm"
    num_layers: int = 3
    units: int = 320
    skips: bool = False
    dropout: float = 0.0
    head: str = "autoregressive"
    frames_ahead: int = 1

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        for key, choices in (("inputs", INPUTS), ("cell", CELLS), ("head", HEADS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"model.{key}={getattr(self, key)!r} is none of {', '.join(choices)}.")
        for key in ("num_layers", "units", "frames_ahead"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)}: at least 1 is needed.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: 0 or more and below 1 is needed.")


class ScaledInput(nn.Module):
    """Each field divided by its highest level: (B, T, F) in 0..1. No weights.

    Raises:
        ValueError: the mode has label fields, whose size means nothing.
    """

    highest_F: Tensor

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        if mode.has_labels:
            raise ValueError(
                f"model.inputs=scaled can't read mode {mode.name}: some of its fields are codebook indices. "
                "Use model.inputs=embedded."
            )
        self.width = mode.num_fields
        self.register_buffer("highest_F", torch.tensor(mode.levels - 1.0).float(), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the scaled fields (..., F)."""
        return frames / self.highest_F


class EmbeddedInput(nn.Module):
    """Each field's level through a table of its own, all summed to (..., H)."""

    first_row_F: Tensor

    def __init__(self, mode: Mode, width: int) -> None:
        super().__init__()
        self.width = width
        # One table for all fields, each with its own rows: one look-up a frame instead of F.
        self.table = nn.EmbeddingBag(int(mode.levels.sum()), width, mode="sum")
        first_rows = torch.tensor([0, *mode.levels.cumsum()[:-1]])
        self.register_buffer("first_row_F", first_rows, persistent=False)
        nn.init.normal_(self.table.weight, std=mode.num_fields**-0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the summed embeddings (..., H)."""
        rows = (frames + self.first_row_F).flatten(0, -2)
        return self.table(rows).view(*frames.shape[:-1], self.width)


class Babbler(nn.Module):
    """A stack of recurrent layers that predicts the next frame of speech.

    `bypassed` holds the layers, counted from 1 at the bottom, that are left out: what they would hear goes on to the
    layer above, and the head hears nothing of them. See unfreezing.py.

    Args:
        config: the network's shape.
        mode: the Codec 2 mode of its frames.

    Raises:
        ValueError: an input layer or a head that can't take the mode's fields.
    """

    def __init__(self, config: ModelConfig, mode: Mode) -> None:
        super().__init__()
        self.config = config
        self.mode = mode
        self.input = ScaledInput(mode) if config.inputs == "scaled" else EmbeddedInput(mode, config.units)
        above = config.units + (self.input.width if config.skips else 0)
        widths = [self.input.width] + [above] * (config.num_layers - 1)
        self.layers = nn.ModuleList(CELLS[config.cell](width, config.units) for width in widths)
        heard = config.units * (config.num_layers if config.skips else 1)
        self.head: nn.Module = HEADS[config.head](heard, config.units, mode)
        # A frame further ahead is a side task: a head that learns fast and costs little.
        ahead = HEADS["categorical" if self.typed_head.has_likelihood else config.head]
        self.heads_ahead = nn.ModuleList(ahead(heard, config.units, mode) for _ in range(config.frames_ahead - 1))
        self.bypassed: frozenset[int] = frozenset()

    @property
    def typed_head(self) -> Head:
        """The head by its interface."""
        return cast(Head, self.head)

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        """The stack, lowest layer first, by its interface."""
        return [cast(RecurrentLayer, layer) for layer in self.layers]

    def initial_state(self, batch: int) -> list[State]:
        """Return the state of every layer before the first frame."""
        return [layer.initial_state(batch) for layer in self.recurrent_layers]

    def forward(self, frames_BTF: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Return what the head hears and the state after it.

        Args:
            frames_BTF: integer levels.
            state: what an earlier call returned, to go on from there; None starts afresh.

        Returns:
            hidden_BTH, whose step t has heard frames 0..t and stands for frame t + 1: the top layer's outputs, or with
            skips those of all layers side by side; and the state of every layer.
        """
        state = self.initial_state(len(frames_BTF)) if state is None else state
        return self._climb(frames_BTF, state, [layer.__call__ for layer in self.recurrent_layers])

    def make_step(self) -> Callable[[Tensor, list[State]], tuple[Tensor, list[State]]]:
        """Return a function (frames_BF, state) -> (hidden_BH, state) for one frame at a time.

        It gives what `forward` gives for the same frames, much faster when the next frame is not known yet. It holds
        the weights as they are now.
        """
        steps = [_with_output(layer.make_step()) for layer in self.recurrent_layers]
        return lambda frames_BF, state: self._climb(frames_BF, state, steps)

    def _climb(self, frames: Tensor, state: list[State], layers: list[LayerCall]) -> tuple[Tensor, list[State]]:
        """Return what the head hears, and every layer's state; `layers` run whole segments or single frames."""
        x = below = self._drop(self.input(frames))
        outputs, after = [], []
        for number, (layer, layer_state) in enumerate(zip(layers, state, strict=True), 1):
            if number in self.bypassed:
                outputs.append(x.new_zeros(*x.shape[:-1], self.config.units))
            else:
                hears = torch.cat([x, below], dim=-1) if self.config.skips and number > 1 else x
                x, layer_state = layer(hears, layer_state)
                x = self._drop(x)
                outputs.append(x)
            after.append(layer_state)
        return (torch.cat(outputs, dim=-1) if self.config.skips else x), after

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or not self.config.dropout:
            return x
        return functional.dropout(x, self.config.dropout)


def count_weights(config: ModelConfig, mode: Mode) -> int:
    """Return how many weights a network of this shape has."""
    return sum(parameter.numel() for parameter in Babbler(config, mode).parameters())
