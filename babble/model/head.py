"""What every head has in common: from the outputs of the recurrent layers to the next frame.

The heads themselves are in heads.py and autoregressive_heads.py. V are the levels of one field.
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

Sampler = Callable[[Tensor], Tensor]


class Head(nn.Module, ABC):
    """Predicts the next frame.

    Args:
        inputs: size H of its input.
        units: hidden units of the head itself, or of each of its fields; only autoregressive ones have any.
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


def first_columns(mode: Mode) -> list[int]:
    """Return where each field's levels start among all fields' levels placed end to end."""
    return [0, *np.cumsum(mode.levels)[:-1].tolist()]


def find_median(logits: Tensor) -> Tensor:
    """Return the median level of distributions (..., V): it minimizes the mean absolute error."""
    return (logits.softmax(dim=-1).cumsum(dim=-1) < 0.5).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def measure_bits(logits: Sequence[Tensor], targets_BTF: Tensor) -> Tensor:
    """Return -log2 p (B, T, F) of the targets, from each field's logits (B, T, V)."""
    nats = [
        functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BTF[..., f].flatten(), reduction="none")
        for f, logits_BTV in enumerate(logits)
    ]
    return torch.stack(nats, dim=-1).view(targets_BTF.shape) / math.log(2)


def sample_gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gumbel noise: the argmax of log p + noise is level k with probability p[k]."""
    return torch.empty_like(like).exponential_(generator=generator).log_().neg_()
