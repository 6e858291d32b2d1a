"""The settings of the network. No torch: a command line is read, or refused, before anything heavy is imported."""

from dataclasses import dataclass
from typing import Literal

DeviceName = Literal["cpu", "gpu"]
Cell = Literal["lstm", "gru", "hyperlstm", "diagonal_lstm"]
HeadName = Literal["regression", "mixture", "categorical", "autoregressive", "autoregressive_per_field"]
HEADS_WITH_LIKELIHOOD = ("mixture", "categorical", "autoregressive", "autoregressive_per_field")


@dataclass(frozen=True)
class ModelConfig:
    """Network architecture.

    Attributes:
        inputs: scaled: each field divided by its highest level, as in 2017. embedded: the sum of one learned vector
            per field, looked up by its level; needed for modes with label fields.
        embedding_size: Size of the vector of an embedded input.
        cell: Cell of the recurrent layers.
        num_layers: Number of recurrent layers.
        units: Hidden units per recurrent layer.
        skips: Every layer also receives the input; the head receives all layer outputs (Graves 2013).
        dropout: Probability of setting a unit to zero in training, between input, layers and head, never from frame to
            frame (Zaremba et al. 2014).
        head: Layer that predicts the next frame. autoregressive: each field given the previous fields of the frame.
            autoregressive_per_field: the same with hidden units of its own for each field, in two layers. categorical,
            mixture: each field independently. regression: the head of 2017, without a likelihood.
        head_units: Hidden units of the autoregressive head, which all fields share, or of each field of
            autoregressive_per_field; the other heads have none.
        frames_ahead: Number of following frames predicted in training, each by its own head; 1 is the next frame only.
            The additional heads are not used in generation.
        tokens: Number of different tokens if the network also receives what `babble tokens` found for the next frame:
            its token, the token after it, and the position within the token; 0 for none.
    """

    inputs: Literal["scaled", "embedded"] = "embedded"
    embedding_size: int = 64
    cell: Cell = "lstm"
    num_layers: int = 3
    units: int = 320
    skips: bool = False
    dropout: float = 0.0
    head: HeadName = "autoregressive"
    head_units: int = 512
    frames_ahead: int = 1
    tokens: int = 0

    def __post_init__(self) -> None:
        """Validate sizes."""
        for key in ("embedding_size", "num_layers", "units", "head_units", "frames_ahead"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)}: must be at least 1.")
        if self.tokens < 0:
            raise ValueError(f"model.tokens={self.tokens}: must be at least 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: must be at least 0 and below 1.")
