"""Sampling: how a level is drawn from its distribution, for all fields or by group or field.

    sampling = Sampling.for_mode(MODES["1300"], temperature="0.9,pitch=0.7", top_p="0.95")

Unlikely levels are removed first, by min-p and then top-p, both measured on the distribution at temperature 1. Then the
temperature is applied to the remaining ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from babble.codec.frames import Mode


def _read_setting(text: str, key: str, mode: Mode, default: float) -> tuple[float, ...]:
    """Return a setting's value for each field (F,) from what the user typed: "0.9", "pitch=0.7,lsp=0.9", or both.

    Raises:
        ValueError: a value is not a number, a name is neither a field nor a group of the mode, or is given twice.
    """
    values = [default] * mode.num_fields
    names = [field.name for field in mode.fields]
    # Whatever their order: the value for all fields first, then those of groups, then those of single fields.
    parts = [part.strip().rpartition("=") for part in str(text).split(",")]
    ranks = {"": 0, **dict.fromkeys(mode.groups, 1), **dict.fromkeys(names, 2)}
    given = [name for name, _, _ in parts]
    for name in given:
        if given.count(name) > 1:
            what = repr(name) if name else "the number for all fields"
            raise ValueError(f"--{key} {text}: {what} is given {given.count(name)} times; give it once.")
        if name not in ranks:
            raise ValueError(
                f"--{key} {text}: mode {mode.name} has no {name!r}; it has the groups {', '.join(mode.groups)} and the "
                f"fields {', '.join(names)}."
            )
    for name, _, number in sorted(parts, key=lambda part: ranks[part[0]]):
        try:
            value = float(number)
        except ValueError:
            raise ValueError(
                f"--{key} {text}: {number!r} is not a number; examples are 0.9 and pitch=0.7,lsp=0.9."
            ) from None
        if name == "":
            columns = list(range(mode.num_fields))
        else:
            columns = [names.index(name)] if name in names else mode.group_indices(name)
        for f in columns:
            values[f] = value
    return tuple(values)


@dataclass(frozen=True)
class Sampling:
    """Temperature, top-p and min-p of each field, tuples (F,).

    Attributes:
        temperature: above 0; below 1 sharpens, above 1 flattens the distribution.
        top_p: above 0, at most 1: keep the most likely levels, up to this total probability; 1 keeps all (nucleus
            sampling, Holtzman et al. 2020).
        min_p: at least 0, below 1: keep levels at least this probable relative to the most likely one; 0 keeps all
            (Nguyen et al. 2024).
    """

    temperature: tuple[float, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validate the values."""
        checks = {
            "temperature": (lambda value: 0 < value < math.inf, "above 0"),
            "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
            "min_p": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
        }
        for key, (is_valid, expected) in checks.items():
            for value in getattr(self, key):
                if not is_valid(value):
                    raise ValueError(f"--{key.replace('_', '-')} {value:g}: must be {expected}.")

    @classmethod
    def for_mode(cls, mode: Mode, temperature: str = "1", top_p: str = "1", min_p: str = "0") -> "Sampling":
        """Return the sampling that a user typed.

        Args:
            mode: its fields and groups can be named.
            temperature, top_p, min_p: a number for all fields, `NAME=NUMBER,...` by group or field, or both.

        Raises:
            ValueError: names the setting and what is wrong with it.
        """
        return cls(
            _read_setting(temperature, "temperature", mode, 1.0),
            _read_setting(top_p, "top-p", mode, 1.0),
            _read_setting(min_p, "min-p", mode, 0.0),
        )

    @property
    def masks_any(self) -> bool:
        """Whether unlikely levels of any field are removed."""
        return min(self.top_p) < 1 or max(self.min_p) > 0

    def mask_logits(self, logits_BV: Tensor, f: int) -> Tensor:
        """Return the logits of field f with -inf for removed levels; the most likely level always remains."""
        p = logits_BV.softmax(dim=-1)
        unlikely = p < self.min_p[f] * p.amax(dim=-1, keepdim=True)
        if self.top_p[f] < 1:
            sorted_p, levels = p.masked_fill(unlikely, 0).sort(dim=-1, descending=True)
            before = sorted_p.cumsum(dim=-1) - sorted_p
            is_past_top_p = before >= self.top_p[f] * sorted_p.sum(dim=-1, keepdim=True)
            unlikely = unlikely | torch.zeros_like(unlikely).scatter(-1, levels, is_past_top_p)
        return logits_BV.masked_fill(unlikely, -math.inf)
