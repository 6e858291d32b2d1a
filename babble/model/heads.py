"""Heads: from the outputs of the recurrent layers to the next frame, behind one interface.

    head = HEADS["autoregressive"](inputs=320, units=512, mode=MODES["1300"])
    loss_BTF = head.loss(hidden_BTH, targets_BTF)
    draw = head.make_sampler(Sampling.for_mode(mode), generator)
    frames_BF = draw(hidden_BH)

    regression       the median next frame (2017): no likelihood; running free, it repeats itself
    mixture          each field a mixture of logistics, integrated over its levels
    categorical      each field a softmax over its levels, independent of the frame's other fields given the past
    autoregressive   each field a softmax given the past and the previous fields of the same frame
    autoregressive_per_field   the same, with hidden units of its own for each field, in two layers

The last two are in autoregressive_heads.py. V are the levels of one field, L those of all fields, placed end to end.
"""

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.autoregressive_heads import AutoregressiveHead, PerFieldHead
from babble.model.head import Head, Sampler, find_median, first_columns, measure_bits, sample_gumbel
from babble.model.sampling import Sampling

# Mixture: logistics per field, and the part of the probability that is spread evenly over all levels, so that no level
# has infinite loss where float32 rounds the rest to zero.
COMPONENTS = 5
FLAT_SHARE = 1e-4


def _reject_labels(mode: Mode, head: str) -> None:
    if mode.has_labels:
        names = ", ".join(field.name for field in mode.fields if field.kind == "label")
        raise ValueError(
            f"model.head={head} can't be trained on mode {mode.name}: {names} are codebook indices, between which no "
            "distance is defined. Use model.head=autoregressive or categorical."
        )


class RegressionHead(Head):
    """The head of 2017: a dense ReLU layer back to the fields, scaled to 0..1, trained on the absolute error in levels.

    It predicts the median of the next frame, so free running it repeats itself.

    Raises:
        ValueError: the mode has label fields, between whose levels no distance is defined.
    """

    has_likelihood = False
    highest_F: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__()
        _reject_labels(mode, "regression")
        self.dense = nn.Linear(inputs, mode.num_fields)
        self.register_buffer("highest_F", torch.tensor(mode.levels - 1.0).float(), persistent=False)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the predicted levels (..., F), not rounded; they may be above the highest level."""
        return functional.relu(self.dense(hidden_BTH)) * self.highest_F

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return the absolute error in levels (B, T, F)."""
        return (self.predict(hidden_BTH) - targets_BTF).abs()

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that gives the nearest valid levels (B, F); nothing is random, the arguments are unused."""

        def draw(hidden_BH: Tensor) -> Tensor:
            return torch.minimum(self.predict(hidden_BH).round(), self.highest_F).long()

        return draw


class _IndependentHead(Head):
    """Each field's distribution over its levels, independent of the other fields given the past."""

    has_likelihood = True
    column_FV: Tensor

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode
        self.levels = mode.levels.tolist()
        # The columns of each field's levels in a row of logits; the column past the last one means "no such level".
        columns = np.full((mode.num_fields, max(self.levels)), sum(self.levels))
        for f, first in enumerate(first_columns(mode)):
            columns[f, : self.levels[f]] = np.arange(first, first + self.levels[f])
        self.register_buffer("column_FV", torch.tensor(columns), persistent=False)

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities of all levels (..., L), not necessarily normalized."""

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F)."""
        return measure_bits(self.logits(hidden_BTH).split(self.levels, dim=-1), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the median of each field's distribution (B, T, F)."""
        medians = [find_median(logits) for logits in self.logits(hidden_BTH).split(self.levels, dim=-1)]
        return torch.stack(medians, dim=-1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that samples levels (B, F), all fields at once."""
        levels = torch.tensor(self.levels, device=self.column_FV.device)
        temperature_L = torch.tensor(sampling.temperature, device=levels.device).repeat_interleave(levels)

        def draw(hidden_BH: Tensor) -> Tensor:
            logits_BL = self.logits(hidden_BH)
            if sampling.masks_any:
                fields = enumerate(logits_BL.split(self.levels, dim=-1))
                logits_BL = torch.cat([sampling.mask_logits(logits_BV, f) for f, logits_BV in fields], dim=-1)
            scores_BL = (logits_BL / temperature_L).add_(sample_gumbel(logits_BL, generator))
            return functional.pad(scores_BL, (0, 1), value=-math.inf)[:, self.column_FV].argmax(dim=-1)

        return draw


class CategoricalHead(_IndependentHead):
    """One softmax per field, independent of the other fields given the past."""

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(mode)
        self.dense = nn.Linear(inputs, sum(self.levels))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., L)."""
        return self.dense(hidden)


class MixtureHead(_IndependentHead):
    """Each field a mixture of logistic densities; the probability of a level is the mass in its interval.

    The lowest and the highest level include the tails, so that the probabilities of a field sum to one.

    Sources: mixture density networks, Bishop 1994; for sequences, Graves 2013; discretized logistics, Salimans et al.
    2017.

    Raises:
        ValueError: the mode has label fields, between whose levels no distance is defined.
    """

    edge_L: Tensor
    field_L: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        _reject_labels(mode, "mixture")
        super().__init__(mode)
        self.dense = nn.Linear(inputs, mode.num_fields * COMPONENTS * 3)
        # Levels are intervals of -1..1. The components start evenly spread over them, as wide as their distance.
        upper = [(2 * np.arange(1, levels + 1) / levels - 1) for levels in self.levels]
        for edges in upper:
            # Past every tail, but not at infinity, where the gradient would not be a number.
            edges[-1] = 1e4
        self.register_buffer("edge_L", torch.tensor(np.concatenate(upper)).float(), persistent=False)
        fields = np.repeat(np.arange(mode.num_fields), self.levels)
        self.register_buffer("field_L", torch.tensor(fields), persistent=False)
        with torch.no_grad():
            bias = self.dense.bias.view(mode.num_fields, 3, COMPONENTS)
            bias[:, 0] = 0.0
            bias[:, 1] = torch.linspace(-0.8, 0.8, COMPONENTS)
            bias[:, 2] = math.log(0.2)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (..., L)."""
        # Always in float32: half precision can't resolve the difference between neighbouring edges.
        numbers = self.dense(hidden).float().unflatten(-1, (self.mode.num_fields, 3, COMPONENTS))
        weight, centre, log_width = (numbers[..., k, :].index_select(-2, self.field_L) for k in range(3))
        below = torch.sigmoid((self.edge_L[:, None] - centre) * torch.exp(-log_width.clamp(-7, 7)))
        below_L = (weight.softmax(dim=-1) * below).sum(dim=-1)
        probabilities = []
        for below_V in below_L.split(self.levels, dim=-1):
            mass_V = torch.diff(below_V, dim=-1, prepend=torch.zeros_like(below_V[..., :1]))
            probabilities.append((1 - FLAT_SHARE) * mass_V.clamp(min=0) + FLAT_SHARE / below_V.shape[-1])
        return torch.cat(probabilities, dim=-1).log()


HEADS: dict[str, type[RegressionHead | MixtureHead | CategoricalHead | AutoregressiveHead | PerFieldHead]] = {
    "regression": RegressionHead,
    "mixture": MixtureHead,
    "categorical": CategoricalHead,
    "autoregressive": AutoregressiveHead,
    "autoregressive_per_field": PerFieldHead,
}
