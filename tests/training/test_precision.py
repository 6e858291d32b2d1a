"""Which number format `auto` stands for, and that a run keeps it."""

from pathlib import Path
from unittest import mock

import pytest

from babble.model.config import ModelConfig
from babble.training.config import ComputeConfig, StopConfig, TrainConfig
from babble.training.precision import choose_precision, has_bfloat16_units


def make_config(folder: Path, **settings: object) -> TrainConfig:
    return TrainConfig(
        name="run",
        runs=folder,
        stop=StopConfig(steps=1),
        compute=ComputeConfig(accelerator="cpu", precision="auto"),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("cell", "has_units", "can_train", "chosen"),
    [
        ("lstm", True, True, "bf16-mixed"),
        ("lstm", True, False, "32-true"),
        ("lstm", False, True, "32-true"),
        ("gru", True, True, "32-true"),
    ],
)
def test_bfloat16_is_chosen_where_the_cpu_has_units_for_it(
    cell: str, has_units: bool, can_train: bool, chosen: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path, model=ModelConfig(cell=cell))  # type: ignore[arg-type]
    with (
        mock.patch("babble.training.precision.has_bfloat16_units", return_value=has_units),
        mock.patch("babble.training.precision.can_train_in_bfloat16", return_value=can_train),
    ):
        assert choose_precision(config) == chosen


def test_a_run_keeps_its_precision_on_another_machine(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.run.claim({"compute": {"precision": "bf16-mixed"}})
    with mock.patch("babble.training.precision.has_bfloat16_units", return_value=False):
        assert choose_precision(config) == "bf16-mixed"


def test_the_units_of_a_cpu_are_read_from_what_linux_says(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert not has_bfloat16_units(path)
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2\n")
    assert not has_bfloat16_units(path)
    path.write_text("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n")
    assert has_bfloat16_units(path)
