"""A GPU with too little memory: one line that says what to lower, from training and from generation."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse")
pytest.importorskip("soundfile")

from babble import train as train_module
from babble.cli import run_command
from babble.codec.frames import get_mode
from babble.generate import GenerateConfig
from babble.generation.free_run import FreeRun
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig

pytestmark = pytest.mark.gpu

MEMORY_BYTES = 300e6


@pytest.fixture
def little_memory(gpu: torch.device) -> Iterator[None]:
    """Let torch use 300 MB of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(MEMORY_BYTES / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_a_training_that_needs_more_says_what_to_lower(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["--data.shards", str(shards), "--runs", str(tmp_path), "--name=large", "--stop.steps=2"]
    words += ["--model.units=512", "--data.batch-size=256", "--data.window-frames=200", "--data.hop-frames=1"]
    words += ["--compute.accelerator=gpu", "--wandb.mode=off", "--samples.every-epochs=0"]
    monkeypatch.setattr(sys, "argv", ["babble train", *words])
    with pytest.raises(SystemExit) as stop:
        train_module.main()
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("babble train: the GPU has too little memory: tried to allocate ")
    assert last.endswith("lower --data.batch-size or --data.window-frames under another --name.")


@pytest.mark.usefixtures("little_memory")
def test_streams_that_need_more_say_what_to_lower(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def work(config: GenerateConfig) -> None:
        mode = get_mode("1300")
        model = Babbler(ModelConfig(units=512), mode).eval().to(gpu)
        FreeRun(model, np.zeros((4096, 200, mode.num_fields), mode.dtype))

    monkeypatch.setattr(sys, "argv", ["babble generate"])
    with pytest.raises(SystemExit) as stop:
        run_command(GenerateConfig, work, "babble generate")
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("babble generate: the GPU has too little memory: tried to allocate ")
    assert line.endswith("lower --streams, or use --device cpu.")
