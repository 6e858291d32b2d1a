"""`gpu`: training and generation on one GPU, for the network of configs/babble.yaml.

1. `train` next to a plain PyTorch loop, and next to bare cuDNN LSTM layers of the same shapes.
2. Training steps by batch size, as a share of the GPU's peak where that is known: which batch saturates it.
3. Steps of the other cells next to the LSTM's.
4. Generation by number of streams.

The tests run `measure_device` on a CPU, with a tiny network.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from jobs.benchmark.config import GPU_RECIPE, MODE, BenchmarkConfig
from jobs.benchmark.corpus import make_corpus
from jobs.benchmark.floors import make_training, wait_for
from jobs.benchmark.measurement import Measurement, per_second, take_turns
from jobs.benchmark.process_usage import run_in_process
from jobs.benchmark.training import TRAINING_ALONE, read_training, train_beside_floor

if TYPE_CHECKING:
    import torch

    from babble.model.babbler import Babbler
    from babble.model.config import ModelConfig

# Dense bfloat16 operations per second, from NVIDIA's data sheets; by what torch.cuda.get_device_name returns.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}
# cuDNN's LSTM computes in bfloat16 from this version on.
CUDNN_WITH_BFLOAT16 = 91300


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        settings: changes of the recipe.
        batches: numbers of windows per step.
        streams: numbers of streams that are generated at once.
        steps: training steps per turn.
        formats: number formats of the bare cuDNN layers, by torch's names.
    """

    settings: dict[str, Any]
    batches: tuple[int, ...]
    streams: tuple[int, ...]
    steps: int
    formats: tuple[str, ...]


FULL = Sizes({}, (16, 32, 64, 128, 256, 512, 1024), (1, 64, 512, 4096), 20, ("float32", "float16", "bfloat16"))


def check_gpu() -> None:
    """Raise ValueError if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("--only gpu: PyTorch finds no GPU on this machine. Leave out gpu.")


def measure_gpu(config: BenchmarkConfig, folder: Path) -> list[Measurement]:
    """Return the speed of training and generation on the first GPU."""
    return run_in_process(measure_device, config, folder, "cuda", FULL)


def measure_device(config: BenchmarkConfig, folder: Path, device_name: str, sizes: Sizes) -> list[Measurement]:
    """Return the measurements of the module docstring on any device of torch."""
    import torch

    device = torch.device(device_name)
    steps = config.count(sizes.steps)
    recipe: dict[str, Any] = {
        "compute.accelerator": "gpu" if device.type == "cuda" else "cpu",
        "compute.threads": "null",
    }
    # What the plain loop does not do.
    recipe |= {"optim.clip_norm": "null", "optim.schedule": "constant", "optim.warmup_steps": 0, "optim.lr": "null"}
    recipe |= {"runs": folder, "name": "gpu", "log_every_steps": steps}
    recipe |= {"stop.steps": (config.few_turns + 1) * steps}
    training = read_training({**TRAINING_ALONE, **recipe, **sizes.settings}, GPU_RECIPE)
    corpus_frames = training.data.batch_size * training.data.window_frames * (config.few_turns + 2) * steps
    corpus = make_corpus(folder, corpus_frames / MODE.frames_per_second / 3600)
    training = dataclasses.replace(training, data=dataclasses.replace(training.data, shards=corpus))
    return [
        *_measure_train(training, steps, sizes, device),
        *_measure_batches(training, steps, sizes, device, config.few_turns),
        *_measure_cells(training, steps, device, config.few_turns),
        *_measure_streams(training.model, sizes, device, config),
    ]


def _measure_train(training: Any, steps: int, sizes: Sizes, device: "torch.device") -> list[Measurement]:
    """Return the speed of `train` beside the plain loop's, and beside that of its LSTM layers alone."""
    ours, floors = train_beside_floor(training, steps)
    batch_size, window_frames = training.data.batch_size, training.data.window_frames
    note = f"{training.compute.precision}, {batch_size} windows of {window_frames} frames, turns of {steps} steps"
    measurements = [Measurement("train", "frames/s", ours, floors, at_least=0.95, note=f"{note}; floor: a plain loop")]
    for number_format in sizes.formats:
        if number_format == "bfloat16" and not _has_bfloat16(device):
            continue
        run = make_bare_layers(training.model, batch_size, window_frames, number_format, device)
        run(1)
        alone = _measure_turns(len(ours), steps * batch_size * window_frames, partial(run, steps))
        name, note = f"train next to bare LSTM layers, {number_format}", "floor: cuDNN alone, without input and head"
        measurements.append(Measurement(name, "frames/s", ours, alone, note=note))
    return measurements


def _has_bfloat16(device: "torch.device") -> bool:
    import torch

    return device.type == "cuda" and (torch.backends.cudnn.version() or 0) >= CUDNN_WITH_BFLOAT16


def make_bare_layers(
    model: "ModelConfig", batch_size: int, window_frames: int, number_format: str, device: "torch.device"
) -> Callable[[int], None]:
    """Return a function that runs bare LSTM layers of a network's shapes forward and backward for some steps."""
    import torch
    from torch import nn

    form = getattr(torch, number_format)
    above = model.units + (model.embedding_size if model.skips else 0)
    widths = [model.embedding_size] + [above] * (model.num_layers - 1)
    layers = [nn.LSTM(width, model.units, batch_first=True, device=device, dtype=form) for width in widths]
    inputs_BTI = torch.randn(batch_size, window_frames, model.embedding_size, device=device, dtype=form)

    def run(steps: int) -> None:
        for _ in range(steps):
            x_BTI = inputs_BTI
            for number, layer in enumerate(layers):
                x_BTI, _ = layer(torch.cat([x_BTI, inputs_BTI], dim=-1) if model.skips and number else x_BTI)
            for layer in layers:
                layer.zero_grad()
            x_BTI.sum().backward()
        wait_for(device)

    return run


def make_steps(training: Any, model: "ModelConfig", batch_size: int, device: "torch.device") -> Callable[[int], None]:
    """Return a function that trains a new network for some steps on one batch of random frames."""
    import torch

    from babble.data.loaders import Batch
    from babble.model.babbler import Babbler

    torch.manual_seed(0)
    shape = (batch_size, training.data.window_frames + 1, MODE.num_fields)
    frames = torch.from_numpy(np.random.default_rng(0).integers(MODE.levels, size=shape)).to(device)
    batch = Batch(frames, torch.ones(batch_size, dtype=torch.bool))
    network = Babbler(model, MODE).to(device)
    return make_training(network, itertools.repeat(batch), training.compute.precision == "bf16-mixed")


def _rate(frames: int, train: Callable[[int], None], steps: int) -> float:
    return per_second(frames, lambda: train(steps))


def _measure_turns(turns: int, count: int, work: Callable[[], object]) -> tuple[float, ...]:
    return tuple(per_second(count, work) for _ in range(turns))


def _measure_batches(training: Any, steps: int, sizes: Sizes, device: "torch.device", turns: int) -> list[Measurement]:
    """Return the speed of training steps by batch size, with the share of the GPU's peak as a note."""
    import torch

    from babble.model.babbler import Babbler

    peak = PEAKS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    operations = count_operations(Babbler(training.model, MODE))
    measurements = []
    for batch_size in sizes.batches:
        run = make_steps(training, training.model, batch_size, device)
        run(1)
        frames = steps * batch_size * training.data.window_frames
        speeds = _measure_turns(turns, frames, partial(run, steps))
        share = f"{operations * max(speeds) / peak:.1%} of the peak in bfloat16" if peak else ""
        measurements.append(Measurement(f"training steps, batch {batch_size}", "frames/s", speeds, note=share))
    return measurements


def count_operations(model: "Babbler") -> float:
    """Return the operations of a training step per frame: two per weight of a matrix product, forward once, back twice.

    Without look-ups and what acts on single numbers, so it is exact for LSTM and GRU only.
    """
    from torch import nn

    weights = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.RNNBase):
            weights += sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
    return 6.0 * weights


def _measure_cells(training: Any, steps: int, device: "torch.device", turns: int) -> list[Measurement]:
    """Return the speed of training steps with each cell beside the LSTM's."""
    from babble.model.config import Cell

    batch_size = training.data.batch_size
    frames = steps * batch_size * training.data.window_frames
    lstm = make_steps(training, dataclasses.replace(training.model, cell="lstm"), batch_size, device)
    measurements = []
    for cell in (cell for cell in get_args(Cell) if cell != "lstm"):
        run = make_steps(training, dataclasses.replace(training.model, cell=cell), batch_size, device)
        ours, floors = take_turns(turns, partial(_rate, frames, run, steps), partial(_rate, frames, lstm, steps))
        measurements.append(Measurement(f"training steps, {cell}", "frames/s", ours, floors, note="floor: lstm"))
    return measurements


def _measure_streams(
    model: "ModelConfig", sizes: Sizes, device: "torch.device", config: BenchmarkConfig
) -> list[Measurement]:
    """Return the speed of generation by number of streams."""
    import torch

    from babble.generation.free_run import FreeRun
    from babble.model.babbler import Babbler

    torch.manual_seed(0)
    network = Babbler(model, MODE).eval().to(device)
    num_frames = config.count(100)
    measurements = []
    for streams in sizes.streams:
        free_run = FreeRun(network, np.zeros((streams, 1, MODE.num_fields), MODE.dtype))
        free_run.make_block(1)
        # A block ends on the CPU, so there is nothing to wait for.
        speeds = _measure_turns(config.few_turns, num_frames * streams, partial(free_run.make_block, num_frames))
        note = "all together; 25 frames/s per stream is real time"
        measurements.append(Measurement(f"generation, {streams} streams", "frames/s", speeds, note=note))
    return measurements
