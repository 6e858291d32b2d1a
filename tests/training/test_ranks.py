"""Several processes train like one: the same loss curve, weights and validation metrics."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from babble.cli import build_config
from babble.files import read_json_lines
from babble.run_folder import RunFolder
from babble.train import train
from babble.training.config import TrainConfig

# Three stages in seven epochs of three steps with eight windows each.
SETTINGS = {
    "data": {"window_frames": 24, "windows_per_epoch": 24, "batch_size": 8},
    "model": {"num_layers": 3, "units": 8},
    "optim": {"lr": 0.01, "schedule": "cosine", "warmup_steps": 2},
    "unfreezing": [{"layers": [1], "epochs": 2}, {"layers": [1, 2], "epochs": 2}, {"layers": [3]}],
    "stop": {"epochs": 7},
    "samples": {"every_epochs": 0, "prompts": 1, "prompt_frames": 20, "frames": 20},
    "log_every_steps": 1,
    "compute": {"accelerator": "cpu", "precision": "64-true", "threads": 1, "devices": 1},
    "wandb": {"mode": "off"},
}
# The other way to read and to unfreeze.
STREAMS = {
    "data": SETTINGS["data"] | {"reading": "streams"},  # type: ignore[operator]
    "unfreezing": [{"layers": [1], "epochs": 2}, {"layers": [1, 2], "epochs": 2}, {"layers": [1, 2, 3]}],
    "before_unfreezing": "bypassed",
    # Not NAdam: PyTorch computes one of its factors in float32, but in float64 after a training in float64 is resumed.
    "optim": {"name": "adamw", "lr": 0.01, "schedule": "cosine", "warmup_steps": 2},
}


def _settings(shards: Path, runs: Path, name: str, **changes: object) -> dict[str, object]:
    """SETTINGS with changes; the settings of data and compute are changed one by one."""
    settings: dict[str, object] = {**SETTINGS, "runs": str(runs), "name": name}
    for key, value in changes.items():
        settings[key] = {**SETTINGS[key], **value} if key in ("data", "compute") else value  # type: ignore[dict-item]
    settings["data"] = {**settings["data"], "shards": str(shards)}  # type: ignore[dict-item]
    return settings


def _train_alone(shards: Path, runs: Path, name: str, **changes: object) -> RunFolder:
    """Train in this process."""
    return RunFolder(train(build_config(TrainConfig, _settings(shards, runs, name, **changes))).run)


def _train_together(shards: Path, runs: Path, name: str, is_stopped: bool = False, **changes: object) -> RunFolder:
    """Train in processes of their own, with a stop by SIGTERM and a resume if asked for."""
    run, path = RunFolder(runs / name), runs / f"{name}.yaml"
    path.write_text(yaml.safe_dump(_settings(shards, runs, name, **changes)))
    command = [sys.executable, "-m", "babble.train", "--config", str(path)]
    if is_stopped:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None and not read_json_lines(run.metrics):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            printed = process.communicate(timeout=300)[0]
        assert process.returncode == 128 + signal.SIGTERM, printed
        assert "by SIGTERM; the same command resumes from there." in printed
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def _curve(run: RunFolder, name: str) -> list[float]:
    return [row[name] for row in read_json_lines(run.metrics) if name in row]


def _differ_by(run: RunFolder, other: RunFolder) -> float:
    """Return the largest difference between the last weights of two runs."""
    ours, theirs = (torch.load(r.checkpoint("last"), weights_only=True)["state_dict"] for r in (run, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def windows(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process that reads windows."""
    return _train_alone(speech_shards, tmp_path_factory.mktemp("runs"), "one")


def _assert_equal(one: RunFolder, two: RunFolder) -> None:
    losses, bits = _curve(one, "train/loss"), _curve(one, "val/bits_per_frame")
    assert (len(losses), len(bits)) == (7 * 3, 7)
    assert losses[-1] < losses[0]
    assert _curve(two, "train/loss") == pytest.approx(losses, rel=0, abs=1e-10)
    assert _curve(two, "val/bits_per_frame") == pytest.approx(bits, rel=0, abs=1e-9)
    # NAdam divides by the root of a mean square that may be almost zero.
    assert _differ_by(one, two) < 1e-7


def test_two_processes_train_like_one_with_twice_the_batch(windows: RunFolder, speech_shards: Path, tmp_path: Path):
    two = _train_together(speech_shards, tmp_path, "two", data={"batch_size": 4}, compute={"devices": 2})
    _assert_equal(windows, two)


def test_two_processes_with_streams_stop_together_and_resume(speech_shards: Path, tmp_path: Path):
    one = _train_alone(speech_shards, tmp_path, "one", **STREAMS)
    changes = {**STREAMS, "data": {**STREAMS["data"], "batch_size": 4}}  # type: ignore[dict-item]
    two = _train_together(speech_shards, tmp_path, "two", is_stopped=True, compute={"devices": 2}, **changes)
    _assert_equal(one, two)


def test_a_lost_process_ends_the_others_with_a_message(speech_shards: Path, tmp_path: Path):
    path = tmp_path / "two.yaml"
    settings = _settings(speech_shards, tmp_path, "two", stop={"epochs": 1000}, compute={"devices": 2})
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "babble.train", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not read_json_lines(tmp_path / "two" / "metrics.jsonl"):
            time.sleep(0.005)
        (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(second), signal.SIGKILL)
        printed = process.communicate(timeout=300)[0]
    assert "Traceback" not in printed
    # Lightning looks for lost processes every five seconds, and kills the first one if that has not noticed yet.
    if process.returncode != -signal.SIGKILL:
        assert process.returncode == 1, printed
        assert "another process of this training has failed or was killed" in printed


def test_a_process_ends_with_the_first_one_before_they_are_connected(speech_shards: Path, tmp_path: Path):
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(_settings(speech_shards, tmp_path, "two", compute={"devices": 2})))
    with subprocess.Popen([sys.executable, "-m", "babble.train", "--config", str(path)]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (second := [pid for pid in children.read_text().split() if _is_rank(pid, 1)]):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    while _is_rank(second[0], 1):
        time.sleep(0.05)


def _is_rank(pid: str, rank: int) -> bool:
    """Return whether a process runs as this rank; a zombie has no environment."""
    try:
        return f"LOCAL_RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def test_accumulated_batches_train_like_one_large_batch(windows: RunFolder, speech_shards: Path, tmp_path: Path):
    compute = {"devices": 2, "accumulate_batches": 2}
    accumulated = _train_together(speech_shards, tmp_path, "accumulated", data={"batch_size": 2}, compute=compute)
    bits = _curve(windows, "val/bits_per_frame")
    assert _curve(accumulated, "val/bits_per_frame") == pytest.approx(bits, rel=0, abs=1e-9)
    assert _differ_by(windows, accumulated) < 1e-7


def test_four_processes_measure_like_one(speech_shards: Path, tmp_path: Path):
    """There are more processes than validation recordings; with a tiny learning rate all measure the same network."""
    changes = {"optim": {"lr": 1e-300}, "stop": {"steps": 1}, "unfreezing": []}
    one = _train_alone(speech_shards, tmp_path, "one", data={"windows_per_epoch": 8}, **changes)
    data = {"windows_per_epoch": 8, "batch_size": 2}
    four = _train_together(speech_shards, tmp_path, "four", data=data, compute={"devices": 4}, **changes)
    assert len(_curve(one, "val/bits_per_frame")) == 1
    assert _curve(four, "val/bits_per_frame") == pytest.approx(_curve(one, "val/bits_per_frame"), rel=0, abs=1e-10)


@pytest.mark.slow
def test_thirty_two_processes_have_the_loss_of_one(speech_shards: Path, tmp_path: Path):
    """As many processes as four nodes of eight devices, each with one window per step. They take 10 GB together."""
    changes = {"unfreezing": [], "stop": {"steps": 3}}
    data = {"windows_per_epoch": 32, "window_frames": 16}
    one = _train_alone(speech_shards, tmp_path, "one", data={**data, "batch_size": 32}, **changes)
    many = _train_together(
        speech_shards, tmp_path, "many", data={**data, "batch_size": 1}, compute={"devices": 32}, **changes
    )
    losses, bits = _curve(one, "train/loss"), _curve(one, "val/bits_per_frame")
    assert len(losses) == 3
    assert _curve(many, "train/loss") == pytest.approx(losses, rel=0, abs=1e-10)
    # Every process logs the same value, but Lightning averages these in float32.
    assert _curve(many, "val/bits_per_frame") == pytest.approx(bits, rel=1e-6, abs=0)
    assert _differ_by(one, many) < 1e-7
