"""Training on a GPU: every cell and head, unfreezing, resuming to the bit, the CPU's loss curve, several GPUs."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

pytest.importorskip("pytorch_lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("soundfile")

from test_train import _assert_same_run, _checkpoint, _config, _metrics, _rich_config, _train_with_stops

from babble.cli import config_to_dict
from babble.codec.frames import get_mode
from babble.data.config import DataConfig
from babble.model.babbler import Babbler
from babble.model.config import Cell, HeadName, ModelConfig
from babble.train import train
from babble.training import checkpoints
from babble.training.config import ComputeConfig, OptimConfig, StopConfig

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("no_plots")]

MODE = get_mode("1300")
ON_GPU = ComputeConfig(accelerator="gpu")
NETWORKS = [(cell, "autoregressive") for cell in get_args(Cell)]
NETWORKS += [("lstm", head) for head in get_args(HeadName) if head != "autoregressive"]


def _model(cell: Any, head: Any) -> ModelConfig:
    return ModelConfig(cell=cell, head=head, num_layers=2, units=32, head_units=32, skips=True, dropout=0.1)


@pytest.mark.parametrize(("cell", "head"), NETWORKS)
def test_a_training_in_bfloat16_improves_on_its_first_epoch(
    cell: str, head: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    compute = replace(ON_GPU, precision="bf16-mixed")
    optim = OptimConfig(lr=0.01)
    config = _config(shards, tmp_path, "run", model=_model(cell, head), optim=optim, compute=compute, unfreezing=())
    result = train(config)
    assert "cuda, bf16-mixed" in capsys.readouterr().out
    rows = _metrics(result.run)
    validations = [row[result.monitor] for row in rows if result.monitor in row]
    assert all(math.isfinite(value) for value in validations)
    assert min(validations[1:]) < validations[0]


@pytest.mark.parametrize("cell", get_args(Cell))
def test_gradients_in_bfloat16_are_close_to_those_in_float32(cell: Any, gpu: torch.device):
    torch.manual_seed(0)
    model = Babbler(ModelConfig(cell=cell, num_layers=2, units=64, head_units=64), MODE).to(gpu)
    # As many frames as a step of configs/babble.yaml: gradients are as small as there.
    frames_BTF = torch.stack([torch.randint(int(levels), (128, 65)) for levels in MODE.levels], dim=-1).to(gpu)
    gradients = []
    for is_mixed in (False, True):
        model.zero_grad()
        with torch.autocast(gpu.type, torch.bfloat16, enabled=is_mixed):
            hidden_BTH, _ = model(frames_BTF[:, :-1])
            loss = model.head.loss(hidden_BTH, frames_BTF[:, 1:]).mean()
        assert hidden_BTH.dtype != torch.float16
        loss.backward()
        gradients.append({name: weights.grad.double() for name, weights in model.named_parameters()})
    for name, exact in gradients[0].items():
        # In bfloat16 on a CPU they differ by 1 %. Those of the hyper cell are zero at first.
        assert (gradients[1][name] - exact).norm() <= 0.05 * exact.norm(), name


@pytest.mark.parametrize("before_unfreezing", ["frozen", "bypassed"])
def test_each_stage_trains_only_its_layers_on_a_gpu(before_unfreezing: Any, shards: Path, tmp_path: Path):
    config = _rich_config(shards, tmp_path, "run", compute=ON_GPU)
    run = train(replace(config, before_unfreezing=before_unfreezing)).run
    first, second, last = (_checkpoint(run, which)["state_dict"] for which in ("stage-1", "stage-2", "last"))
    layer_1, layer_2 = "model.layers.0.rnn.weight_hh_l0", "model.layers.1.rnn.weight_hh_l0"
    assert not torch.equal(first[layer_1], second[layer_1])
    assert not torch.equal(first[layer_2], second[layer_2])
    assert not torch.equal(second[layer_2], last[layer_2])
    assert any("train/peak_gpu_memory_gb" in line for line in (run / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("cell", "head", "precision"),
    [*((cell, "autoregressive", "bf16-mixed") for cell in get_args(Cell)), ("lstm", "mixture", "32-true")],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    cell: str, head: str, precision: Any, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Restores the variable that Lightning sets.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ["CUBLAS_WORKSPACE_CONFIG"])
    moved: list[torch.device] = []
    keep = checkpoints.keep_numbers_on_host

    def keep_and_note(optimizer: torch.optim.Optimizer) -> None:
        keep(optimizer)
        moved.extend(state["mu_product"].device for state in optimizer.state.values())

    monkeypatch.setattr(checkpoints, "keep_numbers_on_host", keep_and_note)
    compute = replace(ON_GPU, precision=precision, deterministic=True)
    stopped, whole = (_rich_config(shards, tmp_path, name, compute=compute) for name in ("stopped", "whole"))
    stopped, whole = (replace(config, model=_model(cell, head)) for config in (stopped, whole))
    try:
        assert _train_with_stops(stopped, [2, 8, 9]).best == train(whole).best
    finally:
        torch.use_deterministic_algorithms(False)
    _assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert {device.type for device in moved} == {"cpu"}


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 5e-3), ("64-true", 1e-8)])
@pytest.mark.parametrize("cell", get_args(Cell))
def test_the_loss_curve_is_that_of_the_cpu(cell: str, precision: Any, tolerance: float, shards: Path, tmp_path: Path):
    curves = []
    for accelerator in ("cpu", ON_GPU.accelerator):
        # Random numbers differ between devices: no dropout.
        model = replace(_model(cell, "autoregressive"), dropout=0.0)
        compute = ComputeConfig(accelerator=accelerator, precision=precision, threads=1)
        config = _config(shards, tmp_path, accelerator, model=model, compute=compute, log_every_steps=1)
        run = train(replace(config, stop=StopConfig(steps=12))).run
        curves.append([row["train/loss"] for row in _metrics(run) if "train/loss" in row])
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], rel=tolerance)


def test_one_process_per_gpu_trains_like_one_process(shards: Path, tmp_path: Path):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"no GPU: NCCL needs two, this machine has {torch.cuda.device_count()}")
    curves = []
    for devices in (1, 2):
        compute = replace(ON_GPU, devices=devices, precision="64-true")
        data = DataConfig(shards, window_frames=40, batch_size=8 // devices, windows_per_epoch=32)
        # As in tests/training/test_ranks.py, not NAdam.
        optim = OptimConfig(name="adamw", lr=0.01)
        config = _config(shards, tmp_path, f"gpus-{devices}", data=data, compute=compute, optim=optim)
        path = tmp_path / f"gpus-{devices}.yaml"
        path.write_text(yaml.safe_dump(config_to_dict(config)))
        command = [sys.executable, "-m", "babble.train", "--config", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = _metrics(tmp_path / f"gpus-{devices}")
        curves.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
