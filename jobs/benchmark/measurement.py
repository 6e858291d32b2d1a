"""A measured metric next to its floor, and the table of all of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """The values of one metric, and the floor's value from the same turn next to each.

    Attributes:
        name: what was measured, on what.
        unit: unit of `values` and `floors`.
        values: one value per turn.
        floors: the floor's value in each of these turns; empty if the metric has no floor.
        at_least: target: the lowest acceptable median ratio, or median value without a floor.
        at_most: target: the highest acceptable one.
        is_absolute: whether the target is one of the values, although there is a floor.
        note: conditions of the measurement, printed below the table.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    floors: tuple[float, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    is_absolute: bool = False
    note: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each value divided by the floor of its turn; the values themselves without a floor."""
        if not self.floors:
            return self.values
        return tuple(value / floor for value, floor in zip(self.values, self.floors, strict=True))

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.at_least is None and self.at_most is None:
            return None
        found = statistics.median(self.values) if self.is_absolute else self.median
        return (self.at_least is None or found >= self.at_least) and (self.at_most is None or found <= self.at_most)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and what follows from them, ready for JSON."""
        ratios = {"ratio": self.median, "ratio_min": min(self.ratios), "ratio_max": max(self.ratios)}
        return {**asdict(self), **(ratios if self.floors else {}), "is_met": self.is_met}


def format_table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as aligned rows, then their notes; min..max is the range of the ratios."""
    rows = [("metric", "median", "floor", "ratio", "min..max", "target", ""), *map(_format_row, measurements)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"  {m.name}: {m.note}" for m in measurements if m.note)])


def _format_row(m: Measurement) -> tuple[str, ...]:
    target = f">= {m.at_least:g}" if m.at_least is not None else ""
    target += f"<= {m.at_most:g}" if m.at_most is not None else ""
    target += f" {m.unit}" if m.is_absolute else ""
    floor, ratio = (f"{statistics.median(m.floors):,.4g}", f"{m.median:.3f}") if m.floors else ("", "")
    spread = f"{min(m.ratios):.3g}..{max(m.ratios):.3g}" if len(m.values) > 1 else ""
    verdict = {None: "", True: "ok", False: "MISS"}[m.is_met]
    return (m.name, f"{statistics.median(m.values):,.4g} {m.unit}", floor, ratio, spread, target, verdict)


def take_turns(turns: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[tuple[float, ...], ...]:
    """Return the values of both functions, one per turn, after a warm-up of each; who runs first alternates."""
    first(), second()
    pairs = [(first(), second()) if turn % 2 else (second(), first())[::-1] for turn in range(turns)]
    return tuple(zip(*pairs, strict=True))


def per_second(count: int, work: Callable[[], object]) -> float:
    """Return the rate at which `work` makes `count` items."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
