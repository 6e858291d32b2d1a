"""Heads: from the outputs of the recurrent layers to the next frame, behind one interface.

    head = HEADS["autoregressive"](inputs=320, units=512, mode=MODES["1300"])
    loss_BTF = head.loss(hidden_BTH, targets_BTF)
    draw = head.make_sampler(Sampling.for_mode(mode), generator)
    frames_BF = draw(hidden_BH)

    regression       the median next frame (2017): no likelihood; running free, it repeats itself
    mixture          each field a mixture of logistics, integrated over its levels
    categorical      each field a softmax over its levels, independent of the frame's other fields given the past
    autoregressive   each field a softmax given the past and the previous fields of the same frame

V are the levels of one field, L those of all fields, placed end to end.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.sampling import Sampling
from babble.model.typed_list import TypedModuleList

Sampler = Callable[[Tensor], Tensor]

# Mixture: logistics per field, and the part of the probability that is spread evenly over all levels, so that no level
# has infinite loss where float32 rounds the rest to zero.
COMPONENTS = 5
FLAT_SHARE = 1e-4


class Head(nn.Module, ABC):
    """Predicts the next frame.

    Args:
        inputs: size H of its input.
        units: hidden units of the head itself; only the autoregressive one has any.
        mode: the Codec 2 mode of the frames.

    Attributes:
        has_likelihood: whether `loss` is in bits, i.e. -log2 of a probability; if not, it is an error in levels.
    """

    has_likelihood: ClassVar[bool]

    @abstractmethod
    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return the loss of each field of each frame (B, T, F), which training minimizes."""

    @abstractmethod
    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the best single prediction in levels (B, T, F), not rounded, for the mean absolute error."""

    @abstractmethod
    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function hidden_BH -> next frames (B, F), valid levels, int64, by the present weights."""


def _reject_labels(mode: Mode, head: str) -> None:
    if mode.has_labels:
        names = ", ".join(field.name for field in mode.fields if field.kind == "label")
        raise ValueError(
            f"model.head={head} can't be trained on mode {mode.name}: {names} are codebook indices, between which no "
            "distance is defined. Use model.head=autoregressive or categorical."
        )


def _first_columns(mode: Mode) -> list[int]:
    """Return where each field's levels start among all fields' levels placed end to end."""
    return [0, *np.cumsum(mode.levels)[:-1].tolist()]


def _median(logits: Tensor) -> Tensor:
    """Return the median level of distributions (..., V): it minimizes the mean absolute error."""
    return (logits.softmax(dim=-1).cumsum(dim=-1) < 0.5).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def _bits(logits: Sequence[Tensor], targets_BTF: Tensor) -> Tensor:
    """Return -log2 p (B, T, F) of the targets, from each field's logits (B, T, V)."""
    nats = [
        functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BTF[..., f].flatten(), reduction="none")
        for f, logits_BTV in enumerate(logits)
    ]
    return torch.stack(nats, dim=-1).view(targets_BTF.shape) / math.log(2)


def _sample_gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gumbel noise: the argmax of log p + noise is level k with probability p[k]."""
    return torch.empty_like(like).exponential_(generator=generator).log_().neg_()


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
        for f, first in enumerate(_first_columns(mode)):
            columns[f, : self.levels[f]] = np.arange(first, first + self.levels[f])
        self.register_buffer("column_FV", torch.tensor(columns), persistent=False)

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities of all levels (..., L), not necessarily normalized."""

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F)."""
        return _bits(self.logits(hidden_BTH).split(self.levels, dim=-1), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the median of each field's distribution (B, T, F)."""
        medians = [_median(logits) for logits in self.logits(hidden_BTH).split(self.levels, dim=-1)]
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
            scores_BL = (logits_BL / temperature_L).add_(_sample_gumbel(logits_BL, generator))
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


class AutoregressiveHead(Head):
    """Each field a softmax given the past and the previous fields of the same frame, in stream order.

    All fields share one layer of hidden units. Its input depends on the past, and each field adds a learned vector of
    its level before the next field is predicted: a bias of the field, a ReLU, a softmax. Training takes one pass over
    the frame, sampling one small step per field.

    Source: NADE, Larochelle and Murray 2011.
    """

    has_likelihood = True

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__()
        self.levels = mode.levels.tolist()
        self.past = nn.Linear(inputs, units)
        # What each level adds to the hidden units U of the following fields.
        self.effect_LU = nn.Parameter(torch.randn(sum(self.levels), units) / math.sqrt(4 * mode.num_fields))
        self.bias_FU = nn.Parameter(torch.zeros(mode.num_fields, units))
        self.outs = TypedModuleList[nn.Linear](nn.Linear(units, levels) for levels in self.levels)

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""
        sum_BTU = self.past(hidden_BTH)
        logits = []
        for f, (out, effect_VU) in enumerate(zip(self.outs, self.effect_LU.split(self.levels), strict=True)):
            logits.append(out(functional.relu(sum_BTU + self.bias_FU[f])))
            if f < len(self.levels) - 1:
                sum_BTU = sum_BTU + functional.embedding(targets_BTF[..., f], effect_VU)
        return logits

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F), given the past and the previous fields."""
        return _bits(self.field_logits(hidden_BTH, targets_BTF), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return a median frame (B, T, F): each field's median given the past and the medians of previous fields."""
        predicted_NF = self._make_walk()(hidden_BTH.flatten(0, 1), lambda logits_NV, f: _median(logits_NV))
        return predicted_NF.view(*hidden_BTH.shape[:2], -1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that samples levels (B, F), field by field."""
        walk = self._make_walk()

        def draw(hidden_BH: Tensor) -> Tensor:
            # The noise of all fields in one call.
            noise_BL = _sample_gumbel(hidden_BH.new_empty(len(hidden_BH), sum(self.levels)), generator)
            noise = noise_BL.split(self.levels, dim=1)

            def choose(logits_BV: Tensor, f: int) -> Tensor:
                if sampling.masks_any:
                    logits_BV = sampling.mask_logits(logits_BV, f)
                if sampling.temperature[f] != 1:
                    logits_BV = logits_BV / sampling.temperature[f]
                return logits_BV.add_(noise[f]).argmax(dim=1)

            return walk(hidden_BH, choose)

        return draw

    def _make_walk(self) -> Callable[[Tensor, Callable[[Tensor, int], Tensor]], Tensor]:
        """Return a function (hidden_BH, choose) -> levels (B, F), which goes through the fields in order.

        `choose(logits_BV, f)` returns the level of field f, given the past and the levels chosen before.
        """
        biases_FU = self.bias_FU.detach()
        # A level's effect and the difference of the biases in one row: one addition between two fields.
        changes_FU = biases_FU.diff(dim=0, append=biases_FU[-1:])
        effects = self.effect_LU.detach().split(self.levels)
        changes = [effect_VU + change_U for effect_VU, change_U in zip(effects, changes_FU, strict=True)]
        weights = [out.weight.detach().t().contiguous() for out in self.outs]
        biases = [out.bias.detach() for out in self.outs]

        def walk(hidden_BH: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
            sum_BU = self.past(hidden_BH) + biases_FU[0]
            levels = []
            for f, (weight, bias, change_VU) in enumerate(zip(weights, biases, changes, strict=True)):
                levels.append(choose(torch.addmm(bias, sum_BU.relu(), weight), f))
                sum_BU.add_(change_VU.index_select(0, levels[-1]))
            return torch.stack(levels, dim=1)

        return walk


HEADS: dict[str, type[RegressionHead] | type[MixtureHead] | type[CategoricalHead] | type[AutoregressiveHead]] = {
    "regression": RegressionHead,
    "mixture": MixtureHead,
    "categorical": CategoricalHead,
    "autoregressive": AutoregressiveHead,
}
