"""Settings of the benchmark, and the constants that its parts share."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from babble.codec.frames import get_mode

MODE = get_mode("1300")
ROOT = Path(__file__).parent.parent.parent
# The recipe for a machine without GPU: its network is measured where no other is named.
DEFAULT_RECIPE = ROOT / "configs" / "babble-cpu.yaml"
GPU_RECIPE = ROOT / "configs" / "babble.yaml"

Part = Literal[
    "startup",
    "preprocess",
    "training",
    "logging",
    "generation",
    "evaluation",
    "ranks",
    "stopping",
    "sweep",
    "streaming",
    "gpu",
    "scale",
    "plan",
]
# What every machine can measure.
CPU_PARTS: tuple[Part, ...] = tuple(part for part in get_args(Part) if part != "gpu")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure how fast babble is, each metric next to its floor: the same work in a minimal loop.

    Attributes:
        only: The parts to measure; all but gpu if omitted.
        sources: Recordings to preprocess (MP3, FLAC, WAV, OGG), or folders of them. By default, 2 hours of MP3 made
            of tests/speech.
        json: Write every value of every metric to this JSON file.
        turns: Turns per metric; the metric and its floor are measured once per turn. What takes minutes (preprocess,
            evaluation, sweep) is measured in 3 turns at most.
        units: Hidden units of each of the three layers, for the 2017 network of training and generation.
        scale: Multiplies all hours, steps and frames; 0.01 shows quickly that everything works.
        device_frames: Frames per second that one device trains on, for the plan. By default, the rate of one core.
    """

    only: tuple[Part, ...] = CPU_PARTS
    sources: tuple[Path, ...] = ()
    json: Path | None = None
    turns: int = 11
    units: int = 320
    scale: float = 1.0
    device_frames: float | None = None

    def __post_init__(self) -> None:
        """Validate sizes."""
        for key in ("turns", "units"):
            if getattr(self, key) < 1:
                raise ValueError(f"--{key} {getattr(self, key)}: must be at least 1.")
        if self.scale <= 0:
            raise ValueError(f"--scale {self.scale}: must be above 0.")

    @property
    def few_turns(self) -> int:
        """The turns of a metric that takes minutes."""
        return min(3, self.turns)

    def count(self, full: int, at_least: int = 1) -> int:
        """Return a number of steps, frames or trials at this scale."""
        return max(at_least, math.ceil(full * self.scale))
