"""Heads that predict a frame field by field: each a softmax given the past and the previous fields of the frame.

V are the levels of one field, L those of all fields, placed end to end, U the hidden units of the head or of a field.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.head import Head, Sampler, find_median, measure_bits, sample_gumbel
from babble.model.sampling import Sampling
from babble.model.typed_list import TypedModuleList

# (logits_BV, f) -> the levels (B,) of field f, given the levels chosen before.
Choose = Callable[[Tensor, int], Tensor]
# (hidden_BH, biases, choose) -> levels (B, F), field by field; the biases of each field's logits are (V,) or (B, V).
Walk = Callable[[Tensor, Sequence[Tensor], Choose], Tensor]


class _OrderedHead(Head):
    """Each field a softmax given the past and the previous fields of the same frame, in stream order.

    Training takes one pass over the frame, sampling one small step per field.
    """

    has_likelihood = True

    outs: TypedModuleList[nn.Linear]

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.levels = mode.levels.tolist()

    @abstractmethod
    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""

    @abstractmethod
    def _make_walk(self) -> Walk:
        """Return a function that goes through the fields in order, with the current weights."""

    def _make_outs(self, units: int) -> TypedModuleList[nn.Linear]:
        """Return the layers to the logits. They are made last: with a random seed, the order decides the weights."""
        return TypedModuleList[nn.Linear](nn.Linear(units, levels) for levels in self.levels)

    def _out_weights(self) -> list[Tensor]:
        """Return each field's weights (U, V)."""
        return [out.weight.detach().t().contiguous() for out in self.outs]

    def loss(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> Tensor:
        """Return -log2 p of each field (B, T, F), given the past and the previous fields."""
        return measure_bits(self.field_logits(hidden_BTH, targets_BTF), targets_BTF)

    def predict(self, hidden_BTH: Tensor) -> Tensor:
        """Return a median frame (B, T, F): each field's median given the past and the medians of previous fields."""
        biases = [out.bias.detach() for out in self.outs]
        predicted_NF = self._make_walk()(hidden_BTH.flatten(0, 1), biases, lambda logits_NV, f: find_median(logits_NV))
        return predicted_NF.view(*hidden_BTH.shape[:2], -1).to(hidden_BTH.dtype)

    def make_sampler(self, sampling: Sampling, generator: torch.Generator) -> Sampler:
        """Return a function that samples levels (B, F), field by field.

        A level is the largest of log p / temperature + Gumbel noise. All fields' noise is drawn in one call, and with
        no levels to remove it is part of the biases, times the temperature: a small tensor's operation takes as long
        as one of the field's products.
        """
        walk = self._make_walk()
        biases = [out.bias.detach() for out in self.outs]
        bias_L, levels_F = torch.cat(biases), torch.tensor(self.levels, device=biases[0].device)
        temperature_L = bias_L.new_tensor(sampling.temperature).repeat_interleave(levels_F)
        masks_any = sampling.masks_any

        def draw(hidden_BH: Tensor) -> Tensor:
            noise_BL = sample_gumbel(hidden_BH.new_empty(len(hidden_BH), len(bias_L)), generator).mul_(temperature_L)
            if not masks_any:
                noisy = noise_BL.add_(bias_L).split(self.levels, dim=1)
                return walk(hidden_BH, noisy, lambda logits_BV, f: logits_BV.argmax(dim=1))
            noise = noise_BL.split(self.levels, dim=1)

            def choose(logits_BV: Tensor, f: int) -> Tensor:
                return sampling.mask_logits(logits_BV, f).add_(noise[f]).argmax(dim=1)

            return walk(hidden_BH, biases, choose)

        return draw


class AutoregressiveHead(_OrderedHead):
    """All fields share one layer of hidden units.

    Its input depends on the past, and each field adds a learned vector of its level before the next field is predicted:
    a bias of the field, a ReLU, a softmax.

    Source: NADE, Larochelle and Murray 2011.
    """

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(mode)
        self.past = nn.Linear(inputs, units)
        # What each level adds to the hidden units U of the following fields.
        self.effect_LU = nn.Parameter(torch.randn(sum(self.levels), units) / math.sqrt(4 * mode.num_fields))
        self.bias_FU = nn.Parameter(torch.zeros(mode.num_fields, units))
        self.outs = self._make_outs(units)

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""
        sum_BTU = self.past(hidden_BTH)
        logits = []
        for f, (out, effect_VU) in enumerate(zip(self.outs, self.effect_LU.split(self.levels), strict=True)):
            logits.append(out(functional.relu(sum_BTU + self.bias_FU[f])))
            if f < len(self.levels) - 1:
                sum_BTU = sum_BTU + functional.embedding(targets_BTF[..., f], effect_VU)
        return logits

    def _make_walk(self) -> Walk:
        biases_FU = self.bias_FU.detach()
        # A level's effect and the difference of the biases in one row: one addition between two fields.
        changes_FU = biases_FU.diff(dim=0, append=biases_FU[-1:])
        effects = self.effect_LU.detach().split(self.levels)
        changes = [effect_VU + change_U for effect_VU, change_U in zip(effects, changes_FU, strict=True)]
        weights = self._out_weights()

        def walk(hidden_BH: Tensor, biases: Sequence[Tensor], choose: Choose) -> Tensor:
            sum_BU = self.past(hidden_BH) + biases_FU[0]
            levels = []
            for f, (weight, bias, change_VU) in enumerate(zip(weights, biases, changes, strict=True)):
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
    first_column_F: Tensor

    def __init__(self, inputs: int, units: int, mode: Mode) -> None:
        super().__init__(mode)
        fields = mode.num_fields
        self.reduced = nn.Linear(inputs, self.PAST_WIDTH * units, bias=False)
        self.past = nn.Linear(self.PAST_WIDTH * units, fields * units)
        # What each level of the previous fields adds to a field's hidden units: one table, by field, previous field
        # and level. A frame has C rows in it, one of field 1, two of field 2 and so on, which are looked up at once.
        pairs = [(field, previous) for field in range(fields) for previous in range(field)]
        sizes = [self.levels[previous] for _, previous in pairs]
        self.effect = nn.EmbeddingBag(sum(sizes), units, mode="sum")
        nn.init.normal_(self.effect.weight, std=1 / math.sqrt(4 * fields))
        first_rows = [sum(sizes[:column]) for column in range(len(sizes))]
        self.register_buffer("column_C", torch.tensor([previous for _, previous in pairs]).long(), persistent=False)
        self.register_buffer("first_row_C", torch.tensor(first_rows).long(), persistent=False)
        first_columns = [field * (field - 1) // 2 for field in range(fields)]
        self.register_buffer("first_column_F", torch.tensor(first_columns), persistent=False)
        self.second_FUU = nn.Parameter(torch.empty(fields, units, units).uniform_(-(units**-0.5), units**-0.5))
        self.second_bias_FU = nn.Parameter(torch.zeros(fields, units))
        self.outs = self._make_outs(units)

    def field_logits(self, hidden_BTH: Tensor, targets_BTF: Tensor) -> list[Tensor]:
        """Return each field's logits (B, T, V), given the past and the target's previous fields."""
        targets_NF = targets_BTF.flatten(0, 1)
        rows_NC = targets_NF[:, self.column_C] + self.first_row_C
        first_columns_NF = torch.arange(len(rows_NC), device=rows_NC.device)[:, None] * rows_NC.shape[1]
        effect_XU = self.effect(rows_NC.flatten(), (first_columns_NF + self.first_column_F).flatten())
        sum_NX = self.past(self.reduced(hidden_BTH.flatten(0, 1)))
        first_NFU = functional.relu(sum_NX.view(*targets_NF.shape, -1) + effect_XU.view(*targets_NF.shape, -1))
        second_FNU = torch.baddbmm(self.second_bias_FU[:, None], first_NFU.transpose(0, 1), self.second_FUU)
        second_FNU = functional.relu(first_NFU.transpose(0, 1) + second_FNU)
        return [
            out(second_NU).unflatten(0, targets_BTF.shape[:2])
            for out, second_NU in zip(self.outs, second_FNU, strict=True)
        ]

    def _make_walk(self) -> Walk:
        fields = len(self.levels)
        # The identity, added to the second layer's weights, is its residual connection.
        units = self.second_FUU.shape[1]
        seconds = list(self.second_FUU.detach() + torch.eye(units, device=self.second_FUU.device))
        second_biases = list(self.second_bias_FU.detach()[:, None])
        weights = self._out_weights()
        # For one stream, a product with a matrix of contiguous rows is three times as fast as `nn.Linear` is here.
        past_weight, past_bias = self.past.weight.detach().t().contiguous(), self.past.bias.detach()
        # By field: what its level adds to the hidden units of all following fields, next to each other.
        columns = self.column_C.tolist()
        tables = self.effect.weight.detach().split([self.levels[column] for column in columns])
        changes = [
            torch.cat([table for table, column in zip(tables, columns, strict=True) if column == f], dim=1)
            for f in range(fields - 1)
        ]

        def walk(hidden_BH: Tensor, biases: Sequence[Tensor], choose: Choose) -> Tensor:
            sum_BX = torch.addmm(past_bias, self.reduced(hidden_BH).detach(), past_weight)
            sums = sum_BX.split(units, dim=1)
            levels = []
            for f in range(fields):
                second_BU = torch.addmm(second_biases[f], sums[f].relu(), seconds[f]).relu_()
                levels.append(choose(torch.addmm(biases[f], second_BU, weights[f]), f))
                if f < fields - 1:
                    sum_BX[:, (f + 1) * units :].add_(changes[f].index_select(0, levels[-1]))
            return torch.stack(levels, dim=1)

        return walk
