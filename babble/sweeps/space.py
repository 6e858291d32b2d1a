"""Search spaces: which settings a sweep varies and which values they take.

A space has one axis per key. An axis is a setting of `babble train`; or a name, where several settings change at once
and each choice has a name of its own:

    model.units: {choice: [40, 160, 320]}
    optim.lr: {loguniform: [1e-4, 1e-2]}
    depth:
      choice:
        two: {model.num_layers: 2, unfreezing: [{layers: [1], epochs: 4}, {layers: [1, 2]}]}
        three: {model.num_layers: 3, unfreezing: [...]}
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Ranges are [from, to]; both ends of randint and lograndint belong to the range.
RANGES = ("uniform", "loguniform", "randint", "lograndint")
KINDS = ("choice", *RANGES)

# The value of each axis, by key.
Values = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One thing that a sweep varies.

    Attributes:
        key: a setting such as model.units; or a name, where several settings change at once.
        kind: one of `KINDS`.
        values: the choices (where several settings change at once: their names), or the two ends of a range.
        settings: where several settings change at once, the settings of each choice by its name.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    settings: dict[str, dict[str, Any]] | None = None

    @property
    def varied(self) -> set[str]:
        """The keys of all settings of a training that it changes."""
        return {key for value in self.values for key in self.apply(value)}

    def apply(self, value: Any) -> dict[str, Any]:
        """Return the settings of a training that a value stands for, by key."""
        return dict(self.settings[value]) if self.settings else {self.key: value}

    def parse(self, text: str) -> Any:
        """Return the value that was written as `str(value)`."""
        if self.kind == "choice":
            return next((value for value in self.values if str(value) == text), text)
        return int(text) if self.kind.endswith("int") else float(text)


def read_space(space: dict[str, Any], known: Iterable[str]) -> tuple[Axis, ...]:
    """Return the axes of a space.

    Args:
        space: as in the YAML, by key.
        known: the keys of all settings of a training.

    Raises:
        ValueError: an empty space or choice, an unknown setting, an invalid range, or a setting that two axes vary.
    """
    if not space:
        raise ValueError("space is empty: name the settings to vary, e.g. space: {model.units: {choice: [40, 160]}}.")
    known = set(known)
    axes = tuple(_read_axis(key, spec, known) for key, spec in space.items())
    varied = [key for axis in axes for key in axis.varied]
    if repeated := {key for key in varied if varied.count(key) > 1}:
        raise ValueError(f"space: {min(repeated)} is varied by two axes: remove one of them.")
    return axes


def _read_axis(key: str, spec: Any, known: set[str]) -> Axis:
    if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise ValueError(f"space: {key}: {spec!r} must be one of {', '.join(f'{{{kind}: ...}}' for kind in KINDS)}.")
    kind, values = next(iter(spec.items()))
    if kind in RANGES:
        _check_known([key], known)
        _check_range(key, kind, values)
        return Axis(key, kind, tuple(values))
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"space: {key}: choice={values!r} must be a list of values, or settings by name; not empty.")
    if isinstance(values, list):
        _check_known([key], known)
        return Axis(key, kind, tuple(values))
    for name, settings in values.items():
        if not isinstance(settings, dict) or not settings:
            raise ValueError(f"space: {key}: {name}={settings!r} must be settings and their values.")
        _check_known(settings, known)
    return Axis(key, kind, tuple(values), values)


def _check_range(key: str, kind: str, values: Any) -> None:
    is_whole = kind.endswith("int")
    if (
        not isinstance(values, list)
        or len(values) != 2
        or not all(isinstance(v, int if is_whole else (int, float)) and not isinstance(v, bool) for v in values)
        or not values[0] < values[1]
        or (kind.startswith("log") and values[0] <= 0)
    ):
        numbers = "whole numbers" if is_whole else "numbers"
        above = " above 0" if kind.startswith("log") else ""
        raise ValueError(f"space: {key}: {kind}={values!r} must be [from, to], two {numbers}{above}, the lower first.")


def _check_known(keys: Iterable[str], known: set[str]) -> None:
    for key in keys:
        if key not in known:
            raise ValueError(f"space: `babble train` has no setting {key}: see `babble train --help`.")


def apply_values(axes: Sequence[Axis], values: Values) -> dict[str, Any]:
    """Return the settings of a training that the values of a trial stand for, by key."""
    return {key: setting for axis in axes for key, setting in axis.apply(values[axis.key]).items()}


def every_combination(axes: Sequence[Axis]) -> Iterator[Values]:
    """Yield all combinations of choices, the last axis fastest.

    Raises:
        ValueError: an axis is a range.
    """
    for axis in axes:
        if axis.kind != "choice":
            raise ValueError(f"search=grid: {axis.key} is a range ({axis.kind}): give choices, or --search random.")
    for chosen in itertools.product(*(axis.values for axis in axes)):
        yield {axis.key: value for axis, value in zip(axes, chosen, strict=True)}


def one_at_a_time(axes: Sequence[Axis]) -> Iterator[Values]:
    """Yield combinations in which every choice and both ends of every range occur."""
    first = {axis.key: axis.values[0] for axis in axes}
    yield first
    for axis in axes:
        yield from (first | {axis.key: value} for value in axis.values[1:])


def describe(values: Values) -> str:
    """Return values as one line: model.units=40, depth=two."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in values.items())


def label(values: Values) -> str:
    """Return values as part of a folder name, at most 80 characters: units-40-depth-two."""
    words = (f"{key.rpartition('.')[2]}-{format_value(value)}" for key, value in values.items())
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in "-".join(words))[:80]


def format_value(value: Any) -> str:
    """Return a value as text: floating-point numbers with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
