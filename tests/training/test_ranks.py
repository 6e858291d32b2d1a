"""Several processes train as one would: the same loss curve, the same weights everywhere, the same held-out figure."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from babble.files import read_json_lines
from babble.run_folder import RunFolder

# Three stages in seven epochs of three steps, of eight windows each.
SETTINGS = {
    "data": {"window_frames": 24, "windows_per_epoch": 24},
    "model": {"num_layers": 3, "units": 8},
    "optim": {"lr": 0.01, "schedule": "cosine", "warmup_steps": 2},
    "stop": {"epochs": 7},
    "samples": {"every_epochs": 0},
    "log_every_steps": 1,
    "compute": {"accelerator": "cpu", "precision": "64-true", "threads": 1},
    "wandb": {"mode": "off"},
}
STAGES = [{"layers": [1], "epochs": 2}, {"layers": [1, 2], "epochs": 2}, {"layers": [1, 2, 3]}]
LAST_ALONE = [*STAGES[:2], {"layers": [3]}]


def _train(shards: Path, runs: Path, name: str, processes: int, **changes: object) -> RunFolder:
    settings = {**SETTINGS, "unfreezing": STAGES, **changes}
    config = runs / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    words = ["--config", config, "--data.shards", shards, "--runs", runs, "--name", name]
    words += ["--compute.devices", processes]
    command = [sys.executable, "-m", "babble.train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(runs / name)


def _curve(run: RunFolder, name: str) -> list[float]:
    return [row[name] for row in read_json_lines(run.metrics) if name in row]


def _differ_by(run: RunFolder, other: RunFolder) -> float:
    """Return by how much the last weights of two runs differ at most."""
    ours, theirs = (torch.load(r.checkpoint("last"), weights_only=True)["state_dict"] for r in (run, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(("reading", "waiting"), [("windows", "frozen"), ("streams", "bypassed")])
def test_two_processes_learn_what_one_with_twice_the_batch_does(
    reading: str, waiting: str, speech_shards: Path, tmp_path: Path
):
    runs = {
        processes: _train(
            *(speech_shards, tmp_path, f"of-{processes}", processes),
            data={**SETTINGS["data"], "reading": reading, "batch_size": 8 // processes},  # type: ignore[dict-item]
            unfreezing=LAST_ALONE if waiting == "frozen" else STAGES,
            before_unfreezing=waiting,
        )
        for processes in (1, 2)
    }
    one, two = (_curve(run, "train/loss") for run in runs.values())
    assert len(one) == 7 * 3
    assert one[-1] < one[0]
    assert two == pytest.approx(one, rel=0, abs=1e-10)
    figures = [_curve(run, "val/bits_per_frame") for run in runs.values()]
    assert len(figures[0]) == 7
    assert figures[1] == pytest.approx(figures[0], rel=0, abs=1e-9)
    # Adam divides by the root of a mean square that may be next to nothing.
    assert _differ_by(runs[1], runs[2]) < 1e-7


def test_steps_of_several_batches_are_those_of_a_larger_batch(speech_shards: Path, tmp_path: Path):
    one = _train(speech_shards, tmp_path, "one", 1, data={**SETTINGS["data"], "batch_size": 8})  # type: ignore[dict-item]
    accumulated = _train(
        *(speech_shards, tmp_path, "accumulated", 2),
        data={**SETTINGS["data"], "batch_size": 2},  # type: ignore[dict-item]
        compute={**SETTINGS["compute"], "accumulate_batches": 2},  # type: ignore[dict-item]
    )
    assert _curve(accumulated, "val/bits_per_frame") == pytest.approx(
        _curve(one, "val/bits_per_frame"), rel=0, abs=1e-9
    )
    assert _differ_by(one, accumulated) < 1e-7


def test_the_held_out_figure_does_not_depend_on_the_number_of_processes(speech_shards: Path, tmp_path: Path):
    """Without a step that learns: one, two and four processes measure the same network."""
    figures = [
        _curve(
            _train(
                *(speech_shards, tmp_path, f"measured-{processes}", processes),
                data={"window_frames": 24, "batch_size": 8 // processes, "windows_per_epoch": 8},
                optim={"lr": 1e-300},
                stop={"steps": 1},
                unfreezing=[],
            ),
            "val/bits_per_frame",
        )
        for processes in (1, 2, 4)
    ]
    assert len(figures[0]) == 1
    assert figures[0] == pytest.approx(figures[1], rel=0, abs=1e-10)
    assert figures[0] == pytest.approx(figures[2], rel=0, abs=1e-10)
