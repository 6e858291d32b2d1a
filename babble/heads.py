"""Heads: what turns the top layer into the next frame, behind one interface.

Each head has

- `cost(hidden_BTH, targets_BTF)`: what training minimises, by field (B, T, F): levels of error, or bits where the
  head `has_likelihood`;
- `guess(hidden_BTH)`: its one best guess in levels (B, T, F), for the mean absolute error;
- `draw(hidden_BH, temperature, generator)`: a next frame (B, F) for free running.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.frames import Mode


class Head(Protocol):
    """What every head offers; see the module's docstring."""

    has_likelihood: bool

    def cost(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return what each field of each frame costs (B, T, F)."""

    def guess(self, hidden_BTH: Tensor) -> Tensor:
        """Return the best single guess in levels (B, T, F), not rounded."""

    def draw(self, hidden_BH: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Return a next frame (B, F) of legal levels, int64."""


class RegressionHead(nn.Module):
    """2017: a dense ReLU layer back to the fields, scaled to 0..1, mean absolute error in levels.

    It guesses the median next frame, so running free it drones.

    Raises:
        ValueError: the mode has label fields, between whose levels no distance means anything.
    """

    has_likelihood = False
    highest_F: Tensor

    def __init__(self, units: int, mode: Mode) -> None:
        super().__init__()
        if mode.has_labels:
            names = ", ".join(field.name for field in mode.fields if field.kind == "label")
            raise ValueError(
                f"model.head=regression can't learn mode {mode.name}: {names} are codebook indices, and the distance "
                "of two indices means nothing. Use model.head=categorical."
            )
        self.dense = nn.Linear(units, mode.num_fields)
        self.register_buffer("highest_F", torch.tensor(mode.levels - 1.0).float(), persistent=False)

    def guess(self, hidden_BTH: Tensor) -> Tensor:
        """Return the predicted levels (..., F), not rounded; above the highest level where the ReLU says so."""
        return functional.relu(self.dense(hidden_BTH)) * self.highest_F

    def cost(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return the absolute error in levels (B, T, F)."""
        return (self.guess(hidden_BTH) - targets_BTF).abs()

    def draw(self, hidden_BH: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Return the nearest legal levels (B, F); nothing is random, so no temperature is obeyed."""
        return torch.minimum(self.guess(hidden_BH).round(), self.highest_F).long()


class CategoricalHead(nn.Module):
    """One softmax a field, each independent of the others given the past."""

    has_likelihood = True

    column_FV: Tensor

    def __init__(self, units: int, mode: Mode) -> None:
        super().__init__()
        self.levels = mode.levels.tolist()
        # Where each field's levels stand in a row of logits; one column behind the last means no such level.
        columns, first = np.full((mode.num_fields, max(self.levels)), sum(self.levels)), 0
        for f, levels in enumerate(self.levels):
            columns[f, :levels] = np.arange(first, first + levels)
            first += levels
        self.register_buffer("column_FV", torch.tensor(columns), persistent=False)
        self.dense = nn.Linear(units, sum(self.levels))

    def _logits(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return self.dense(hidden).split(self.levels, dim=-1)

    def cost(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F)."""
        batch, frames, _ = targets_BTF.shape
        nats = [
            functional.cross_entropy(logits.flatten(0, 1), targets_BTF[..., f].flatten(), reduction="none")
            for f, logits in enumerate(self._logits(hidden_BTH))
        ]
        return torch.stack(nats, dim=-1).view(batch, frames, -1) / math.log(2)

    def guess(self, hidden_BTH: Tensor) -> Tensor:
        """Return the median of each field's distribution (B, T, F): what mean absolute error asks for."""
        medians = [
            (logits.softmax(dim=-1).cumsum(dim=-1) < 0.5).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
            for logits in self._logits(hidden_BTH)
        ]
        return torch.stack(medians, dim=-1).to(hidden_BTH.dtype)

    def draw(self, hidden_BH: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Return levels (B, F) drawn from the distributions, sharpened by a temperature below 1."""
        logits = self.dense(hidden_BH) / temperature
        # Of exponential arrivals with rates p, the first is level k with probability p[k]: all fields in one draw.
        scores = logits - torch.empty_like(logits).exponential_(generator=generator).log_()
        scores = functional.pad(scores, (0, 1), value=-math.inf)
        return scores[:, self.column_FV].argmax(dim=-1)


HEADS: dict[str, type[RegressionHead] | type[CategoricalHead]] = {
    "regression": RegressionHead,
    "categorical": CategoricalHead,
}
