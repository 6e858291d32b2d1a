"""How a next level is drawn from its distribution: temperature, top-p and min-p, for all fields or by field.

First what is too unlikely is cut away, as the distribution was learned (min-p, then top-p); then the temperature
sharpens or flattens what is left.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from babble.codec.frames import Mode


def _read_setting(text: str, key: str, mode: Mode, default: float) -> tuple[float, ...]:
    """Return a setting's value for each field (F,) from what the user typed: "0.9", "pitch=0.7,lsp=0.9", or both.

    Raises:
        ValueError: no number, or neither a field nor a group of the mode.
    """
    values = [default] * mode.num_fields
    names = [field.name for field in mode.fields]
    # The value for all fields first, then those of groups, then those of single fields, however they were ordered.
    parts = [part.strip().rpartition("=") for part in str(text).split(",")]
    ranks = {"": 0, **dict.fromkeys(mode.groups, 1), **dict.fromkeys(names, 2)}
    for name, _, _ in parts:
        if name not in ranks:
            raise ValueError(
                f"--{key} {text}: mode {mode.name} has no {name!r}; it has the groups {', '.join(mode.groups)} and the "
                f"fields {', '.join(names)}."
            )
    for name, _, number in sorted(parts, key=lambda part: ranks[part[0]]):
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--{key} {text}: {number!r} is no number; such as 0.9, or pitch=0.7,lsp=0.9.") from None
        if name == "":
            columns = list(range(mode.num_fields))
        else:
            columns = [names.index(name)] if name in names else mode.group_indices(name)
        for f in columns:
            values[f] = value
    return tuple(values)


@dataclass(frozen=True)
class Sampling:
    """Each field's temperature, top-p and min-p, tuples (F,).

    Attributes:
        temperature: above 0; below 1 keeps to what is likely, above 1 dares more, 1 is what was learned.
        top_p: above 0 to 1: of the likeliest levels as many as hold this probability together; 1 keeps all (nucleus
            sampling, Holtzman et al. 2020).
        min_p: 0 to below 1: levels at least this probable, in parts of the likeliest one; 0 keeps all (Nguyen et al.
            2024).
    """

    temperature: tuple[float, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse values that leave nothing to draw from."""
        checks = {
            "temperature": (lambda value: 0 < value < math.inf, "above 0"),
            "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
            "min_p": (lambda value: 0 <= value < 1, "0 or more and below 1"),
        }
        for key, (is_legal, wanted) in checks.items():
            for value in getattr(self, key):
                if not is_legal(value):
                    raise ValueError(f"--{key} {value:g}: {wanted} is needed.")

    @classmethod
    def for_mode(cls, mode: Mode, temperature: str = "1", top_p: str = "1", min_p: str = "0") -> "Sampling":
        """Return the sampling that a user typed: each setting a number, NAME=NUMBER,... by group or field, or both.

        Raises:
            ValueError: names the setting and what is wrong with it.
        """
        return cls(
            _read_setting(temperature, "temperature", mode, 1.0),
            _read_setting(top_p, "top_p", mode, 1.0),
            _read_setting(min_p, "min_p", mode, 0.0),
        )

    @property
    def masks_any(self) -> bool:
        """Whether any field's unlikely levels are cut away."""
        return min(self.top_p) < 1 or max(self.min_p) > 0

    def mask_logits(self, logits_BV: Tensor, f: int) -> Tensor:
        """Return one field's logits, -inf where a level is too unlikely; the likeliest one always stays."""
        p = logits_BV.softmax(dim=-1)
        unlikely = p < self.min_p[f] * p.amax(dim=-1, keepdim=True)
        if self.top_p[f] < 1:
            sorted_p, levels = p.masked_fill(unlikely, 0).sort(dim=-1, descending=True)
            before = sorted_p.cumsum(dim=-1) - sorted_p
            is_behind = before >= self.top_p[f] * sorted_p.sum(dim=-1, keepdim=True)
            unlikely = unlikely | torch.zeros_like(unlikely).scatter(-1, levels, is_behind)
        return logits_BV.masked_fill(unlikely, -math.inf)
