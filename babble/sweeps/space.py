"""What a sweep varies: YAML in the words of the training config, and what it makes of each trial's values.

Such a space has an axis a key; of `depth`, several settings change at once, and each choice has a name:

    model.units: {choice: [40, 160, 320]}
    optim.lr: {loguniform: [1e-4, 1e-2]}
    depth:
      choice:
        two: {model.num_layers: 2, unfreezing: [{layers: [1], epochs: 4}, {layers: [1, 2]}]}
        three: {model.num_layers: 3, unfreezing: [...]}
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Of a range: from, to. Of the whole ones the end belongs to it.
RANGES = ("uniform", "loguniform", "randint", "lograndint")
KINDS = ("choice", *RANGES)


@dataclass(frozen=True)
class Axis:
    """One thing that a sweep varies.

    Attributes:
        key: a setting such as model.units; or, where several settings change at once, a name for that.
        kind: one of `KINDS`.
        values: what can be chosen, of settings that change at once their names; of a range its two ends.
        settings: where several settings change at once: for each name what it sets.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    settings: dict[str, dict[str, Any]] | None = None

    def apply(self, value: Any) -> dict[str, Any]:
        """Return what a value sets, by key."""
        return dict(self.settings[value]) if self.settings else {self.key: value}


Values = dict[str, Any]


def read_space(space: dict[str, Any], known: set[str]) -> tuple[Axis, ...]:
    """Return the axes of a space.

    Args:
        space: as the YAML has it, by key.
        known: the settings that the training config has.

    Raises:
        ValueError: no axis; a setting that training does not know; a range or choice of nothing; a setting twice.
    """
    if not space:
        raise ValueError("the space is empty: name what is to vary, such as space: {model.units: {choice: [40, 160]}}.")
    axes = tuple(_read_axis(key, spec, known) for key, spec in space.items())
    touched = [key for axis in axes for key in {k for value in axis.values for k in axis.apply(value)}]
    if twice := {key for key in touched if touched.count(key) > 1}:
        raise ValueError(f"space: {min(twice)} is varied twice.")
    return axes


def _read_axis(key: str, spec: Any, known: set[str]) -> Axis:
    if not isinstance(spec, dict) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise ValueError(f"space: {key}: {spec!r} is none of {', '.join(f'{{{kind}: ...}}' for kind in KINDS)}.")
    kind, values = next(iter(spec.items()))
    if kind in RANGES:
        _check_known([key], known)
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
            raise ValueError(f"space: {key}: {kind} takes [from, to], two {numbers}{above}, not {values!r}.")
        return Axis(key, kind, tuple(values))
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"space: {key}: choice takes a list of values or named settings, and at least one.")
    if isinstance(values, list):
        _check_known([key], known)
        return Axis(key, kind, tuple(values))
    for name, settings in values.items():
        if not isinstance(settings, dict) or not settings:
            raise ValueError(f"space: {key}: {name} has to name settings and their values, not {settings!r}.")
        _check_known(settings, known)
    return Axis(key, kind, tuple(values), values)


def _check_known(keys: Any, known: set[str]) -> None:
    for key in keys:
        if key not in known:
            raise ValueError(f"space: training has no setting {key}; `python -m babble.train --help` lists them all.")


def apply_values(axes: tuple[Axis, ...], values: Values) -> dict[str, Any]:
    """Return what a trial's values set, by key."""
    return {key: setting for axis in axes for key, setting in axis.apply(values[axis.key]).items()}


def every_combination(axes: tuple[Axis, ...]) -> Iterator[Values]:
    """Yield all combinations of choices, the last axis fastest.

    Raises:
        ValueError: an axis is a range: it has no end of values.
    """
    for axis in axes:
        if axis.kind != "choice":
            raise ValueError(f"search=grid: {axis.key} is a range ({axis.kind}). Give choices, or search=random.")
    for chosen in itertools.product(*(axis.values for axis in axes)):
        yield {axis.key: value for axis, value in zip(axes, chosen, strict=True)}


def one_at_a_time(axes: tuple[Axis, ...]) -> Iterator[Values]:
    """Yield combinations in which every choice and every end of a range occurs."""
    first = {axis.key: axis.values[0] for axis in axes}
    yield first
    for axis in axes:
        yield from (first | {axis.key: value} for value in axis.values[1:])


def check_space(axes: tuple[Axis, ...], is_grid: bool, build: Callable[[dict[str, Any]], object]) -> None:
    """Raise if training would refuse what the space holds.

    Of a grid all combinations are tried; otherwise every value beside the first ones of the other axes.

    Args:
        axes: of the space.
        is_grid: whether all combinations will be trained.
        build: makes a training config of settings by key, or raises ValueError.

    Raises:
        ValueError: names the values and what training says of them.
    """
    for values in every_combination(axes) if is_grid else one_at_a_time(axes):
        try:
            build(apply_values(axes, values))
        except ValueError as error:
            raise ValueError(f"space: training would refuse {describe(values)}: {error}") from None


def describe(values: Values) -> str:
    """Return values in one line: model.units=40, depth=two."""
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def label(values: Values) -> str:
    """Return values as a part of a folder's name: units-40-depth-two."""
    words = (f"{key.rpartition('.')[2]}-{_short(value)}" for key, value in values.items())
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in "-".join(words))[:80]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
