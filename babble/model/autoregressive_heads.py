"""Heads that predict a frame field by field: each a softmax given the past and the previous fields of the frame.

V are the levels of one field, L those of all fields, placed end
to end, U the hidden units of the head.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.head import Head, Sampler, find_median, measure_bits, sample_gumbel
from babble.model.sampling import Sampling
from babble.model.typed_list import TypedModuleList

# Returns the level of field f from its logits (B, V), given the levels chosen before.
Choose = Callable[[Tensor, int], Tensor]


class _OrderedHead(Head):
    """Each field a softmax given the past and the previous fields of the same frame, in stream order.

    Training takes one pass over the frame, sampling one small step per field.
    """

    has_likelihood = True

    def __init__(self, units: int, mode: Mode) -> None:
        super().__init__()
        self.levels = mode.levels.tolist()
        self.outs = TypedModuleList[nn.Linear](nn.Linear(units, levels) for levels in self.levels)

    @abstractmethod
    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""

    @abstractmethod
    def _make_walk(self) -> Callable[[Tensor, Choose], Tensor]:
        """Return a function (hidden_BH, choose) -> levels (B, F), which goes through the fields in order."""

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F), given the past and the previous fields."""
        return measure_bits(self.field_logits(hidden_BTH, targets_BTF), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return a median frame (B, T, F): each field's median given the past and the medians of previous fields."""
        predicted_NF = self._make_walk()(hidden_BTH.flatten(0, 1), lambda logits_NV, f: find_median(logits_NV))
        return predicted_NF.view(*hidden_BTH.shape[:2], -1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that samples levels (B, F), field by field."""
        walk = self._make_walk()

        def draw(hidden_BH: Tensor) -> Tensor:
            # The noise of all fields in one call.
            noise_BL = sample_gumbel(hidden_BH.new_empty(len(hidden_BH), sum(self.levels)), generator)
            noise = noise_BL.split(self.levels, dim=1)

            def choose(logits_BV: Tensor, f: int) -> Tensor:
                if sampling.masks_any:
                    logits_BV = sampling.mask_logits(logits_BV, f)
                if sampling.temperature[f] != 1:
                    logits_BV = logits_BV / sampling.temperature[f]
                return logits_BV.add_(noise[f]).argmax(dim=1)

            return walk(hidden_BH, choose)

        return draw


class AutoregressiveHead(_OrderedHead):
    """All fields share one layer of hidden units.

    Its input depends on the past, and each field adds a learned vector of its level before the next field is predicted:
    a bias of the field, a ReLU, a softmax.

    Source: NADE, Larochelle and Murray 2011.
    """

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(units, mode)
        self.past = nn.Linear(inputs, units)
        # What each level adds to the hidden units U of the following fields.
        self.effect_LU = nn.Parameter(torch.randn(sum(self.levels), units) / math.sqrt(4 * mode.num_fields))
        self.bias_FU = nn.Parameter(torch.zeros(mode.num_fields, units))

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""
        sum_BTU = self.past(hidden_BTH)
        logits = []
        for f, (out, effect_VU) in enumerate(zip(self.outs, self.effect_LU.split(self.levels), strict=True)):
            logits.append(out(functional.relu(sum_BTU + self.bias_FU[f])))
            if f < len(self.levels) - 1:
                sum_BTU = sum_BTU + functional.embedding(targets_BTF[..., f], effect_VU)
        return logits

    def _make_walk(self) -> Callable[[Tensor, Choose], Tensor]:
        biases_FU = self.bias_FU.detach()
        # A level's effect and the difference of the biases in one row: one addition between two fields.
        changes_FU = biases_FU.diff(dim=0, append=biases_FU[-1:])
        effects = self.effect_LU.detach().split(self.levels)
        changes = [effect_VU + change_U for effect_VU, change_U in zip(effects, changes_FU, strict=True)]
        outs = [_transposed(out) for out in self.outs]

        def walk(hidden_BH: Tensor, choose: Choose) -> Tensor:
            sum_BU = self.past(hidden_BH) + biases_FU[0]
            levels = []
            for f, ((weight, bias), change_VU) in enumerate(zip(outs, changes, strict=True)):
                levels.append(choose(torch.addmm(bias, sum_BU.relu(), weight), f))
                sum_BU.add_(change_VU.index_select(0, levels[-1]))
            return torch.stack(levels, dim=1)

        return walk


class PerFieldHead(_OrderedHead):
    """Each field has two layers of hidden units of its own, the second with a residual connection.

    The first receives the past through weights of the field's own, and a learned vector of each previous field's level.
    A dense layer of `PAST_WIDTH` times the units first reduces the past; half of the weights would be there without it.

    Source: MADE, Germain et al. 2015.
    """

    PAST_WIDTH = 2

    column_C: Tensor
    first_row_C: Tensor
    first_place_F: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(units, mode)
        fields = mode.num_fields
        self.reduced = nn.Linear(inputs, self.PAST_WIDTH * units, bias=False)
        self.past = nn.Linear(self.PAST_WIDTH * units, fields * units)
        # What each level of the previous fields adds to a field's hidden units: one table, by field, previous field
        # and level. A frame's rows are looked up at once: of field 1 one, of field 2 two, C in all.
        pairs = [(field, previous) for field in range(fields) for previous in range(field)]
        sizes = [self.levels[previous] for _, previous in pairs]
        self.effect = nn.EmbeddingBag(sum(sizes), units, mode="sum")
        nn.init.normal_(self.effect.weight, std=1 / math.sqrt(4 * fields))
        first_rows = [sum(sizes[:place]) for place in range(len(sizes))]
        self.register_buffer("column_C", torch.tensor([previous for _, previous in pairs]).long(), persistent=False)
        self.register_buffer("first_row_C", torch.tensor(first_rows).long(), persistent=False)
        first_places = [field * (field - 1) // 2 for field in range(fields)]
        self.register_buffer("first_place_F", torch.tensor(first_places), persistent=False)
        self.second_FUU = nn.Parameter(torch.empty(fields, units, units).uniform_(-(units**-0.5), units**-0.5))
        self.second_bias_FU = nn.Parameter(torch.zeros(fields, units))

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""
        targets_NF = targets_BTF.flatten(0, 1)
        rows_NC = targets_NF[:, self.column_C] + self.first_row_C
        first_places_NF = torch.arange(len(rows_NC), device=rows_NC.device)[:, None] * rows_NC.shape[1]
        effect_XU = self.effect(rows_NC.flatten(), (first_places_NF + self.first_place_F).flatten())
        sum_NX = self.past(self.reduced(hidden_BTH.flatten(0, 1)))
        first_NFU = functional.relu(sum_NX.view(*targets_NF.shape, -1) + effect_XU.view(*targets_NF.shape, -1))
        second_FNU = torch.baddbmm(self.second_bias_FU[:, None], first_NFU.transpose(0, 1), self.second_FUU)
        second_FNU = functional.relu(first_NFU.transpose(0, 1) + second_FNU)
        return [
            out(second_NU).unflatten(0, targets_BTF.shape[:2])
            for out, second_NU in zip(self.outs, second_FNU, strict=True)
        ]

    def _make_walk(self) -> Callable[[Tensor, Choose], Tensor]:
        fields = len(self.levels)
        # The two products with the past in one, and the residual connection within the second layer's.
        past_weight = (self.past.weight.detach() @ self.reduced.weight.detach()).t().contiguous()
        past_bias = self.past.bias.detach()
        seconds_FUU = self.second_FUU.detach() + torch.eye(self.second_FUU.shape[1], device=past_bias.device)
        biases_FU = self.second_bias_FU.detach()
        outs = [_transposed(out) for out in self.outs]
        # By field: what its level adds to the hidden units of all following fields, next to each other.
        columns = self.column_C.tolist()
        tables = self.effect.weight.detach().split([self.levels[column] for column in columns])
        changes = [
            torch.cat([table for table, column in zip(tables, columns, strict=True) if column == f], dim=1)
            for f in range(fields - 1)
        ]

        def walk(hidden_BH: Tensor, choose: Choose) -> Tensor:
            sum_BX = torch.addmm(past_bias, hidden_BH, past_weight)
            units = biases_FU.shape[1]
            levels = []
            for f in range(fields):
                first_BU = sum_BX[:, :units].relu()
                second_BU = torch.addmm(biases_FU[f], first_BU, seconds_FUU[f]).relu_()
                levels.append(choose(torch.addmm(outs[f][1], second_BU, outs[f][0]), f))
                sum_BX = sum_BX[:, units:]
                if f < fields - 1:
                    sum_BX.add_(changes[f].index_select(0, levels[-1]))
            return torch.stack(levels, dim=1)

        return walk


def _transposed(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer for `addmm`."""
    return layer.weight.detach().t().contiguous(), layer.bias.detach()
