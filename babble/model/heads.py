"""Heads: what turns the top layer into the next frame, behind one interface.

Each head has

- `loss(hidden_BTH, targets_BTF)`: what training minimises, by field (B, T, F): levels of error, or bits where the
  head `has_likelihood`;
- `predict(hidden_BTH)`: its one best guess in levels (B, T, F), for the mean absolute error;
- `make_sampler(sampling, generator)`: a function hidden_BH -> a next frame (B, F), for free running.

    regression       the median next frame (2017): no likelihood, and free running it drones
    mixture          each field a mixture of logistics, cut into its levels
    categorical      each field a softmax over its levels, independent of the frame's other fields given the past
    autoregressive   each field a softmax given the past and the fields before it in the same frame

V is one field's levels, L all fields' levels laid end to end.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.sampling import Sampling

Sampler = Callable[[Tensor], Tensor]

# Mixture density: logistics a field, and the share of each level's probability that is the same for all levels, so that
# none costs infinity where float32 rounds the rest to nothing.
COMPONENTS = 5
FLAT_SHARE = 1e-4
# Hidden units of each field's own small network in the autoregressive head, in parts of the layers' units.
UNITS_PER_FIELD = 0.2


class Head(Protocol):
    """What every head offers; see the module's docstring."""

    has_likelihood: bool

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return what each field of each frame costs (B, T, F)."""

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the best single guess in levels (B, T, F), not rounded."""

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function hidden_BH -> next frames (B, F), legal levels, int64; it holds the weights as they are."""


def _refuse_labels(mode: Mode, head: str) -> None:
    if mode.has_labels:
        names = ", ".join(field.name for field in mode.fields if field.kind == "label")
        raise ValueError(
            f"model.head={head} can't learn mode {mode.name}: {names} are codebook indices, and the distance "
            "of two indices means nothing. Use model.head=autoregressive or categorical."
        )


def _first_columns(mode: Mode) -> list[int]:
    """Return where each field's levels start among all fields' levels laid end to end."""
    return [0, *np.cumsum(mode.levels)[:-1].tolist()]


def _median(logits: Tensor) -> Tensor:
    """Return the median level of distributions (..., V): what mean absolute error asks for."""
    return (logits.softmax(dim=-1).cumsum(dim=-1) < 0.5).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def _bits(logits: Sequence[Tensor], targets_BTF: Tensor) -> Tensor:
    """Return -log2 p (B, T, F) of the targets, from each field's logits (B, T, V)."""
    nats = [
        functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BTF[..., f].flatten(), reduction="none")
        for f, logits_BTV in enumerate(logits)
    ]
    return torch.stack(nats, dim=-1).view(targets_BTF.shape) / math.log(2)


def _arrivals(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise such that the argmax of log p + noise is level k with probability p[k].

    Of exponential arrivals with rates p, the first is that of k with probability p[k].
    """
    return torch.empty_like(like).exponential_(generator=generator).log_().neg_()


class RegressionHead(nn.Module):
    """2017: a dense ReLU layer back to the fields, scaled to 0..1, mean absolute error in levels.

    It guesses the median next frame, so running free it drones.

    Raises:
        ValueError: the mode has label fields, between whose levels no distance means anything.
    """

    has_likelihood = False
    highest_F: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__()
        _refuse_labels(mode, "regression")
        self.dense = nn.Linear(inputs, mode.num_fields)
        self.register_buffer("highest_F", torch.tensor(mode.levels - 1.0).float(), persistent=False)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the predicted levels (..., F), not rounded; above the highest level where the ReLU says so."""
        return functional.relu(self.dense(hidden_BTH)) * self.highest_F

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return the absolute error in levels (B, T, F)."""
        return (self.predict(hidden_BTH) - targets_BTF).abs()

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that gives the nearest legal levels (B, F); nothing is random, so no sampling is obeyed."""

        def draw(hidden_BH: Tensor) -> Tensor:
            return torch.minimum(self.predict(hidden_BH).round(), self.highest_F).long()

        return draw


class _IndependentHead(nn.Module):
    """Each field's distribution over its levels, independent of the others given the past.

    A subclass says in `logits` what log-probabilities (not normalised) all levels have.
    """

    has_likelihood = True
    column_FV: Tensor

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode
        self.levels = mode.levels.tolist()
        # Where each field's levels stand in a row of logits; one column behind the last means no such level.
        columns = np.full((mode.num_fields, max(self.levels)), sum(self.levels))
        for f, first in enumerate(_first_columns(mode)):
            columns[f, : self.levels[f]] = np.arange(first, first + self.levels[f])
        self.register_buffer("column_FV", torch.tensor(columns), persistent=False)

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F)."""
        return _bits(self.logits(hidden_BTH).split(self.levels, dim=-1), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return the median of each field's distribution (B, T, F)."""
        medians = [_median(logits) for logits in self.logits(hidden_BTH).split(self.levels, dim=-1)]
        return torch.stack(medians, dim=-1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that draws levels (B, F), all fields at once."""
        levels = torch.tensor(self.levels, device=self.column_FV.device)
        temperature_L = torch.tensor(sampling.temperature, device=levels.device).repeat_interleave(levels)

        def draw(hidden_BH: Tensor) -> Tensor:
            logits_BL = self.logits(hidden_BH)
            if sampling.masks_any:
                fields = enumerate(logits_BL.split(self.levels, dim=-1))
                logits_BL = torch.cat([sampling.mask_logits(logits_BV, f) for f, logits_BV in fields], dim=-1)
            scores_BL = (logits_BL / temperature_L).add_(_arrivals(logits_BL, generator))
            return functional.pad(scores_BL, (0, 1), value=-math.inf)[:, self.column_FV].argmax(dim=-1)

        return draw


class CategoricalHead(_IndependentHead):
    """One softmax a field, each independent of the others given the past."""

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(mode)
        self.dense = nn.Linear(inputs, sum(self.levels))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., L)."""
        return self.dense(hidden)


class MixtureHead(_IndependentHead):
    """Each field a mixture of logistic densities, the probability of a level being the mass in its interval.

    Mixture density networks: Bishop 1994; for sequences Graves 2013; discretised logistics: Salimans et al. 2017. The
    lowest and the highest level take the tails, so that the levels' probabilities sum to one.

    Raises:
        ValueError: the mode has label fields, between whose levels no distance means anything.
    """

    edge_L: Tensor
    field_L: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        _refuse_labels(mode, "mixture")
        super().__init__(mode)
        self.dense = nn.Linear(inputs, mode.num_fields * COMPONENTS * 3)
        # Levels lie in -1..1, each between two edges; the components start spread over them, as wide as their distance.
        upper = [(2 * np.arange(1, levels + 1) / levels - 1) for levels in self.levels]
        for edges in upper:
            # Behind every tail, but not at infinity, whose gradient is none.
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
        # In float32 always: neighbouring edges differ by less than half precision can tell.
        numbers = self.dense(hidden).float().unflatten(-1, (self.mode.num_fields, 3, COMPONENTS))
        weight, centre, log_width = (numbers[..., k, :].index_select(-2, self.field_L) for k in range(3))
        below = torch.sigmoid((self.edge_L[:, None] - centre) * torch.exp(-log_width.clamp(-7, 7)))
        below_L = (weight.softmax(dim=-1) * below).sum(dim=-1)
        pieces = []
        for below_V in below_L.split(self.levels, dim=-1):
            mass_V = torch.diff(below_V, dim=-1, prepend=torch.zeros_like(below_V[..., :1]))
            pieces.append((1 - FLAT_SHARE) * mass_V.clamp(min=0) + FLAT_SHARE / below_V.shape[-1])
        return torch.cat(pieces, dim=-1).log()


class AutoregressiveHead(nn.Module):
    """Each field a softmax given the past and the fields before it in the same frame, in stream order.

    A small network of its own a field: hidden units that hear the past and, through weights masked to the earlier
    fields, the levels drawn so far; then a softmax. Training takes one pass (MADE, Germain et al. 2015), sampling one
    small step a field.
    """

    has_likelihood = True
    is_earlier_LK: Tensor
    first_F: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__()
        self.levels = mode.levels.tolist()
        num_levels, num_fields = sum(self.levels), mode.num_fields
        self.units_per_field = max(1, round(UNITS_PER_FIELD * units))
        self.past = nn.Linear(inputs, num_fields * self.units_per_field)
        # Row l is what a level, drawn earlier in the frame, says to every field's hidden units.
        self.earlier_LK = nn.Parameter(
            torch.randn(num_levels, num_fields * self.units_per_field) / math.sqrt(4 * num_fields)
        )
        self.outs = nn.ModuleList(nn.Linear(self.units_per_field, levels) for levels in self.levels)
        field_L = torch.arange(num_fields).repeat_interleave(torch.tensor(self.levels))
        field_K = torch.arange(num_fields).repeat_interleave(self.units_per_field)
        self.register_buffer("is_earlier_LK", (field_L[:, None] < field_K).float(), persistent=False)
        self.register_buffer("first_F", torch.tensor(_first_columns(mode)), persistent=False)

    @property
    def _typed_outs(self) -> list[nn.Linear]:
        return [cast(nn.Linear, out) for out in self.outs]

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's fields before it."""
        shape = (*targets_BTF.shape[:-1], len(self.earlier_LK))
        told_BTL = hidden_BTH.new_zeros(shape).scatter_(-1, targets_BTF + self.first_F, 1.0)
        hidden_BTK = functional.relu(self.past(hidden_BTH) + told_BTL @ (self.earlier_LK * self.is_earlier_LK))
        pieces_BTU = hidden_BTK.split(self.units_per_field, dim=-1)
        return [out(piece_BTU) for out, piece_BTU in zip(self._typed_outs, pieces_BTU, strict=True)]

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F), given the past and the fields before it."""
        return _bits(self.field_logits(hidden_BTH, targets_BTF), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return a median frame (B, T, F): each field's median given the past and the medians before it."""
        predicted_NF = self._make_walk()(
            hidden_BTH.flatten(0, 1), lambda logits_NV, f: _median(torch.from_numpy(logits_NV)).numpy()
        )
        return predicted_NF.view(*hidden_BTH.shape[:2], -1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that draws levels (B, F), field by field."""
        walk, first = self._make_walk(), self.first_F.tolist()

        def draw(hidden_BH: Tensor) -> Tensor:
            # The noise of all fields in one draw: sixteen small ones take as long as a layer.
            noise_BL = _arrivals(hidden_BH.new_empty(len(hidden_BH), sum(self.levels)), generator).cpu().numpy()

            def choose(logits_BV: np.ndarray, f: int) -> np.ndarray:
                if sampling.masks_any:
                    logits_BV = sampling.mask_logits(torch.from_numpy(logits_BV), f).numpy()
                if sampling.temperature[f] != 1:
                    logits_BV = logits_BV / sampling.temperature[f]
                return (logits_BV + noise_BL[:, first[f] : first[f] + self.levels[f]]).argmax(axis=1)

            return walk(hidden_BH, choose)

        return draw

    def _make_walk(self) -> Callable[[Tensor, Callable[[np.ndarray, int], np.ndarray]], Tensor]:
        """Return a function (hidden_BH, choose) -> levels (B, F).

        Each field's level is what `choose` makes of its logits (B, V), given the past and the choices before it. In
        numpy: its calls cost a fifth of torch's, and sixteen times some of them are what a frame takes.
        """
        k = self.units_per_field
        # What a field's level says to the fields behind it.
        rows_LK = self.earlier_LK.detach().float().cpu().split(self.levels)
        told = [rows_VK[:, (f + 1) * k :].contiguous().numpy() for f, rows_VK in enumerate(rows_LK)]
        weights = [out.weight.detach().float().cpu().t().contiguous().numpy() for out in self._typed_outs]
        biases = [out.bias.detach().float().cpu().numpy() for out in self._typed_outs]

        def walk(hidden_BH: Tensor, choose: Callable[[np.ndarray, int], np.ndarray]) -> Tensor:
            hidden_BK = self.past(hidden_BH).detach().float().cpu().numpy()
            levels_BF = np.empty((len(hidden_BK), len(told)), np.int64)
            for f, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                level_B = choose(np.maximum(hidden_BK[:, :k], 0) @ weight + bias, f)
                levels_BF[:, f] = level_B
                hidden_BK = hidden_BK[:, k:] + told[f][level_B]
            return torch.from_numpy(levels_BF).to(hidden_BH.device)

        return walk


HEADS: dict[str, type[RegressionHead] | type[MixtureHead] | type[CategoricalHead] | type[AutoregressiveHead]] = {
    "regression": RegressionHead,
    "mixture": MixtureHead,
    "categorical": CategoricalHead,
    "autoregressive": AutoregressiveHead,
}
