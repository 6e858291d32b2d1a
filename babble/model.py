"""The network, and nothing else: frames in, what the next frame may be out.

    frames_BTF -> input layer -> recurrent layer 1 .. n -> head -> next frame

Read `Babbler` from top to bottom. It knows nothing of files, Lightning or W&B. Shapes: B windows, T frames, F fields,
H units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from babble.cells import CELLS, RecurrentLayer, State
from babble.frames import Mode, get_mode
from babble.heads import HEADS, Head

INPUTS = ("scaled", "embedded")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network.

    Attributes:
        inputs: "scaled", each field divided by its highest level, as 2017; or "embedded", each field's level looked
            up in a table of its own and all of them summed. Modes with label fields need "embedded".
        cell: the recurrent layers' cell: "lstm" or "gru".
        num_layers: how many recurrent layers are stacked.
        units: hidden units of each.
        head: what predicts the next frame: "regression" (2017) or "categorical" (one softmax a field).
    """

    inputs: str = "embedded"
    cell: str = "lstm"
    num_layers: int = 3
    units: int = 320
    head: str = "categorical"

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        for key, choices in (("inputs", INPUTS), ("cell", CELLS), ("head", HEADS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"model.{key}={getattr(self, key)!r} is none of {', '.join(choices)}.")
        for key in ("num_layers", "units"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)}: at least 1 is needed.")


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
        widths = [self.input.width] + [config.units] * (config.num_layers - 1)
        self.layers = nn.ModuleList(CELLS[config.cell](width, config.units) for width in widths)
        head = HEADS[config.head](config.units, mode)
        self.head: nn.Module = head

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
        """Return the top layer's outputs and the state after them.

        Args:
            frames_BTF: integer levels.
            state: what an earlier call returned, to go on from there; None starts afresh.

        Returns:
            hidden_BTH, whose step t has heard frames 0..t and stands for frame t + 1; and the state of every layer.
        """
        state = self.initial_state(len(frames_BTF)) if state is None else state
        x = self.input(frames_BTF)
        after = []
        for layer, layer_state in zip(self.recurrent_layers, state, strict=True):
            x, layer_state = layer(x, layer_state)
            after.append(layer_state)
        return x, after

    def make_step(self) -> Callable[[Tensor, list[State]], tuple[Tensor, list[State]]]:
        """Return a function (frames_BF, state) -> (hidden_BH, state) for one frame at a time.

        It gives what `forward` gives for the same frames, much faster when the next frame is not known yet. It holds
        the weights as they are now.
        """
        steps = [layer.make_step() for layer in self.recurrent_layers]

        def step(frames_BF: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
            x = self.input(frames_BF)
            after = []
            for layer_step, layer_state in zip(steps, state, strict=True):
                layer_state = layer_step(x, layer_state)
                x = layer_state[0]
                after.append(layer_state)
            return x, after

        return step


def model_from_checkpoint(checkpoint: dict[str, Any]) -> Babbler:
    """Return the network of a checkpoint with its weights, ready to run free.

    Args:
        checkpoint: what `torch.load` gave of a file that a training saved.

    Raises:
        ValueError: a checkpoint that is not babble's.
    """
    try:
        settings = checkpoint["hyper_parameters"]
        model = Babbler(ModelConfig(**settings["model"]), get_mode(settings["mode"]))
        weights = {
            name.removeprefix("model."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("model.")
        }
        model.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint is not one that this babble trained: {error}") from None
    return model.eval()
