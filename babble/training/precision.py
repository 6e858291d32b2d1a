"""The number format of a training: what a machine can compute, and what is fastest on it."""

import re
from pathlib import Path

import torch

from babble.model.cells import can_train_in_bfloat16
from babble.model.config import Cell
from babble.training.config import ComputeConfig, Precision, TrainConfig

# Units of x86-64 CPUs that multiply matrices of bfloat16.
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")


def choose_precision(config: TrainConfig) -> Precision:
    """Return the precision that `auto` stands for: that of the run if it exists, so that it can continue anywhere.

    Else bf16-mixed where the GPU, or the CPU for an LSTM, has units for bfloat16, and 32-true elsewhere.
    """
    if config.run.config.is_file():
        found: Precision = config.run.read_config()["compute"]["precision"]
        return found
    if _uses_gpu(config.compute):
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    is_faster = config.model.cell == "lstm" and has_bfloat16_units() and can_train_in_bfloat16()
    return "bf16-mixed" if is_faster else "32-true"


def has_bfloat16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU has units for bfloat16, as far as Linux says so."""
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return flags is not None and any(unit in flags[1].split() for unit in BFLOAT16_UNITS)


def check_precision(compute: ComputeConfig, cell: Cell) -> None:
    """Raise if this CPU can not compute with the precision; Lightning would use another, or fail in the first step.

    Raises:
        ValueError: names the precision, and one to use.
    """
    if _uses_gpu(compute):
        return
    if compute.precision == "16-mixed":
        raise ValueError("compute.precision=16-mixed needs a GPU. On a CPU use 32-true, or bf16-mixed.")
    if compute.precision == "bf16-mixed" and cell == "lstm" and not can_train_in_bfloat16():
        raise ValueError("compute.precision=bf16-mixed: this CPU can't compute an LSTM in bfloat16. Use 32-true.")


def _uses_gpu(compute: ComputeConfig) -> bool:
    return compute.accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
