"""Sweeps with a real Ray: real trainings, real kills."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from paths import ROOT

from babble.cli import read_config
from babble.files import read_json_lines
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.training.metrics import OF_THE_MACHINE
from babble.tune import TuneConfig

TINY: dict[str, Any] = {
    "data": {"reading": "streams", "window_frames": 16, "batch_size": 4, "windows_per_epoch": 40},
    "model": {"num_layers": 2, "units": 8},
    "unfreezing": [{"layers": [1], "epochs": 1}, {"layers": [1, 2]}],
    "stop": {"epochs": 4},
    "samples": {"every_epochs": 0, "seeds": 1, "frames": 5},
    "log_every_steps": 5,
    "wandb": {"mode": "off"},
}


def _words(folder: Path, shards: Path, space: dict[str, Any], *words: str, **settings: Any) -> list[str]:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**TINY, "space": space, **settings}))
    return ["--config", str(path), "--data.shards", str(shards), "--runs", str(folder), "--name", "sweep", *words]


def _config(folder: Path, shards: Path, space: dict[str, Any], **settings: Any) -> TuneConfig:
    return read_config(TuneConfig, _words(folder, shards, space, **settings))


def _start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "babble.tune", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _sweep(words: list[str], code: int = 0, **environment: str) -> str:
    process = _start(words, **environment)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, said
    return said


def _weights(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return weights


def _figures(run: Path) -> list[dict[str, float]]:
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


def _trainings(folder: Path) -> list[int]:
    """The trainings of a sweep that run now, by process: of one in this folder, as other tests may run theirs."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"babble.train" in words and any(word.startswith(os.fsencode(folder)) for word in words):
            found.append(int(entry))
    return found


def _await(condition: Any, seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        ({}, {}, "the space is empty"),
        ({"model.unitz": {"choice": [8]}}, {}, "training has no setting model.unitz"),
        ({"model.cell": {"choice": ["lstm", "abacus"]}}, {}, "refuse model.cell=abacus"),
        ({"model.num_layers": {"choice": [2, 1]}}, {}, "refuse model.num_layers=1: unfreezing: stage 2"),
        ({"model.units": {"choice": ["many"]}}, {}, "refuse model.units=many"),
        ({"seed": {"choice": [1]}}, {}, "give seeds"),
        ({"model.units": {"choice": [8]}}, {"search": "luck"}, "search='luck' is none of grid, random, optuna"),
        ({"optim.lr": {"uniform": [0.1, 0.2]}}, {}, "search=grid: optim.lr is a range"),
        ({"model.units": {"choice": [8]}}, {"seeds": [1, 1]}, "none twice"),
        (
            {"model.units": {"choice": [8]}},
            {"scheduler": "asha", "asha": {"grace_epochs": 1}},
            r"asha.grace_epochs=1: the last layer wakes after 1 epochs",
        ),
        ({"model.units": {"choice": [8]}}, {"scheduler": "asha", "stop": {"epochs": 2}}, "would stop no trial"),
        ({"model.units": {"choice": [8]}}, {"compute": {"threads": 2}}, "more than trial.cores=1"),
    ],
)
def test_what_could_not_be_swept_is_refused_by_name(
    tmp_path: Path, speech_shards: Path, space: dict[str, Any], settings: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        _config(tmp_path, speech_shards, space, **settings)


def test_bits_are_compared_where_all_have_a_likelihood(tmp_path: Path, speech_shards: Path):
    space = {"model.head": {"choice": ["categorical", "mixture"]}}
    assert _config(tmp_path, speech_shards, space).figure == "val/bits_per_frame"
    space["model.head"]["choice"].append("regression")
    settings = {"model": {**TINY["model"], "inputs": "scaled"}}
    assert _config(tmp_path, speech_shards, space, **settings).figure == "val/error_levels"


def test_asha_waits_for_the_slowest_unfreezing(tmp_path: Path, speech_shards: Path):
    slow = [{"layers": [1], "epochs": 2}, {"layers": [1, 2]}]
    space = {"stages": {"choice": {"none": {"unfreezing": []}, "slow": {"unfreezing": slow}}}}
    assert _config(tmp_path, speech_shards, space, scheduler="asha").grace_epochs == 3
    # 2017's last stage wakes layer 3 and lets the others sleep; one that only sends layers to sleep wakes none.
    space["stages"]["choice"]["slow"]["unfreezing"] = [{"layers": [1, 2], "epochs": 3}, {"layers": [2]}]
    assert _config(tmp_path, speech_shards, space).grace_epochs == 1


def test_a_grid_gives_an_answer_and_a_trial_alone_learns_the_same(tmp_path: Path, speech_shards: Path):
    space = {"model.units": {"choice": [8, 12]}, "optim.lr": {"choice": [1e-9, 0.01]}}
    slurm = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    process, most = _start(_words(tmp_path, speech_shards, space), **slurm), 0
    while process.poll() is None:
        most = max(most, len(_trainings(tmp_path)))
        time.sleep(0.05)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    # Two trials at work on two cores, a thread each.
    assert most == min(4, len(os.sched_getaffinity(0)))
    sweep = SweepFolder(tmp_path / "sweep")
    config = yaml.safe_load(next(sweep.trials.glob("*.yaml")).read_text())
    assert config["compute"]["threads"] == 1
    rows = sweep.read_rows()
    assert [row["state"] for row in rows] == 4 * ["finished"]
    assert {row["frames"] for row in rows} == {str(4 * 40 * 16)}
    # All combinations, in an order that was drawn.
    asked = [(row["model.units"], float(row["optim.lr"])) for row in sorted(rows, key=lambda row: row["trial"])]
    assert asked != sorted(asked, key=lambda pair: (int(pair[0]), pair[1]))
    assert set(asked) == {("8", 1e-9), ("8", 0.01), ("12", 1e-9), ("12", 0.01)}
    assert "optim.lr" in said
    assert "What mattered" in said
    best = yaml.safe_load((sweep.path / "best.yaml").read_text())
    assert best["optim"]["lr"] == 0.01
    assert "name" not in best
    # Of four trials' checkpoints the best one's are left, and a copy of it speaks.
    (kept,) = {path.parent.parent.name for path in sweep.trials.glob("*/checkpoints/best.ckpt")}
    out = tmp_path / "babble.wav"
    speak = [sys.executable, "-m", "babble.generate", str(sweep.best.path), "--seconds", "2", "--out", str(out)]
    subprocess.run(speak, cwd=ROOT, check=True, capture_output=True)
    assert out.is_file()
    # The same training outside the sweep, and one from best.yaml.
    words = ["--config", str(sweep.trials / f"{kept}.yaml"), "--runs", str(tmp_path), "--name", "alone"]
    for more in (words, ["--config", str(sweep.path / "best.yaml"), "--runs", str(tmp_path), "--name", "again"]):
        subprocess.run([sys.executable, "-m", "babble.train", *more], cwd=ROOT, check=True, capture_output=True)
    for name in ("alone", "again"):
        assert _figures(tmp_path / name) == _figures(sweep.trials / kept)
    # Again, it says what it said; other settings are refused.
    before = {path: path.stat().st_mtime_ns for path in sweep.trials.rglob("metrics.jsonl")}
    assert _sweep(["--resume", "sweep", "--runs", str(tmp_path)]).endswith(said[said.index("The answer is in") :])
    assert {path: path.stat().st_mtime_ns for path in sweep.trials.rglob("metrics.jsonl")} == before
    said = _sweep(_words(tmp_path, speech_shards, space, "--stop.epochs", "9"), code=1)
    assert "stop.epochs: 4 in the run, 9 now" in said
    assert "best.yaml" in _sweep(["--report", "sweep", "--runs", str(tmp_path)])


def test_a_killed_trial_goes_on_and_one_that_runs_away_is_reported(tmp_path: Path, speech_shards: Path):
    # A step of 1e30 makes every weight infinite: its first held-out figure is not a number.
    space = {"optim.lr": {"choice": [0.01, 1e30]}}
    settings = {"stop": {"epochs": 40}, "trial": {"retries": 1}}
    process = _start(_words(tmp_path, speech_shards, space, **settings))
    sweep = SweepFolder(tmp_path / "sweep")
    _await(
        lambda: [
            path for path in sweep.trials.glob("*lr-0.01*/metrics.jsonl") if len(path.read_text().splitlines()) > 30
        ]
    )
    name = next(sweep.trials.glob("*lr-0.01*.yaml"))
    for pid in _trainings(name):
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    rows = {row["optim.lr"]: row for row in sweep.read_rows()}
    assert (rows["0.01"]["state"], rows["0.01"]["retries"]) == ("finished", "1")
    assert (rows["1e+30"]["state"], rows["1e+30"]["retries"]) == ("failed", "1")
    assert "is not a number" in rows["1e+30"]["reason"]
    assert "is not a number" in said
    log = sweep.log(rows["0.01"]["trial"]).read_text()
    assert "going on at step" in log
    # Bit for bit as if nothing had happened.
    words = ["--config", str(name), "--runs", str(tmp_path), "--name", "alone"]
    subprocess.run([sys.executable, "-m", "babble.train", *words], cwd=ROOT, check=True, capture_output=True)
    assert _figures(tmp_path / "alone") == _figures(sweep.trials / rows["0.01"]["trial"])


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))],
)
def test_a_stopped_sweep_goes_on(tmp_path: Path, speech_shards: Path, number: signal.Signals):
    space = {"model.units": {"choice": [8, 12, 16]}}
    settings = {"stop": {"epochs": 40}}
    words = _words(tmp_path, speech_shards, space, **settings)
    process = _start(words)
    sweep = SweepFolder(tmp_path / "sweep")
    _await(lambda: "finished" in [row["state"] for row in sweep.read_rows()])
    # Another one is at work.
    _await(lambda: [run for run in sweep.trials.glob("*/metrics.jsonl") if 5 < len(_figures(run.parent)) < 50])
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    # Nothing of it lives on.
    _await(lambda: not _trainings(tmp_path), seconds=60)
    finished = {row["trial"] for row in sweep.read_rows() if row["state"] == "finished"}
    before = {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished}
    _sweep(["--resume", "sweep", "--runs", str(tmp_path)])
    rows = sweep.read_rows()
    assert [row["state"] for row in rows] == 3 * ["finished"]
    assert finished <= {row["trial"] for row in rows}
    assert {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished} == before
    assert any("going on at step" in sweep.log(row["trial"]).read_text() for row in rows)


@pytest.mark.slow
def test_random_search_draws_a_configuration_for_all_random_seeds(tmp_path: Path, speech_shards: Path):
    space = {"optim.lr": {"loguniform": [1e-4, 0.03]}}
    settings = {"search": "random", "configurations": 2, "seeds": [0, 1], "stop": {"epochs": 2}}
    _sweep(_words(tmp_path, speech_shards, space, **settings))
    rows = SweepFolder(tmp_path / "sweep").read_rows()
    drawn = [(row["optim.lr"], row["seed"]) for row in rows]
    assert len(set(drawn)) == 4
    assert len({lr for lr, _ in drawn}) == 2


def test_asha_stops_who_lags_behind_and_optuna_draws(tmp_path: Path, speech_shards: Path):
    space = {"optim.lr": {"loguniform": [1e-7, 0.03]}, "model.units": {"randint": [4, 12]}}
    settings = {
        "search": "optuna",
        "configurations": 5,
        "seeds": [3, 4],
        "scheduler": "asha",
        "asha": {"factor": 2},
    }
    said = _sweep(_words(tmp_path, speech_shards, space, stop={"epochs": 8}, **settings))
    rows = SweepFolder(tmp_path / "sweep").read_rows()
    assert len(rows) == 10
    assert {row["state"] for row in rows} == {"finished", "stopped"}
    assert len({(row["optim.lr"], row["model.units"]) for row in rows}) == 5
    assert [row["seed"] for row in rows].count("3") == 5
    stopped = [row for row in rows if row["state"] == "stopped"]
    assert all(2 <= int(row["epoch"]) < 8 for row in stopped)
    assert "trials that lag behind, from epoch 2 on" in said


def test_a_trial_of_two_processes(tmp_path: Path, speech_shards: Path):
    space = {"model.units": {"choice": [8]}}
    _sweep(_words(tmp_path, speech_shards, space, trial={"cores": 2}, compute={"devices": 2}))
    sweep = SweepFolder(tmp_path / "sweep")
    (row,) = sweep.read_rows()
    assert (row["state"], row["frames"]) == ("finished", str(4 * 40 * 16))
    assert "runs on 2 processes on 1 node" in sweep.log(row["trial"]).read_text()
    assert yaml.safe_load((sweep.trials / f"{row['trial']}.yaml").read_text())["compute"]["threads"] == 1


@pytest.mark.slow
def test_trials_share_a_gpu(tmp_path: Path, speech_shards: Path):
    """A Ray that believes in a GPU: what is tested is who may use it, and how many at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--include-dashboard=false"]
    here = [f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(
        [*ray, *here, "--num-cpus=8", "--num-gpus=1"],
        env={**os.environ, **secret},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _await(lambda: _answers(address), seconds=60)
        space = {"model.units": {"choice": [8, 9, 10, 11]}}
        settings = {"trial": {"gpus": 0.5}, "compute": {"accelerator": "cpu"}}
        process = _start(_words(tmp_path, speech_shards, space, "--address", address, **settings), **secret)
        most, seen = 0, set()
        while process.poll() is None:
            trainings = _trainings(tmp_path)
            most = max(most, len(trainings))
            for pid in trainings:
                with contextlib.suppress(OSError):
                    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
                    seen |= {word for word in environment if word.startswith("CUDA_VISIBLE_DEVICES=")}
            time.sleep(0.05)
        said, _ = process.communicate()
        assert process.returncode == 0, said
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
    assert (most, seen) == (2, {"CUDA_VISIBLE_DEVICES=0"})
    assert [row["state"] for row in SweepFolder(tmp_path / "sweep").read_rows()] == 4 * ["finished"]


def _answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as asked:
        return asked.connect_ex((host, int(port))) == 0


def test_trials_too_large_for_every_node_are_refused(tmp_path: Path, speech_shards: Path):
    space = {"model.units": {"choice": [8]}}
    said = _sweep(_words(tmp_path, speech_shards, space, "--trial.cores", "1000"), code=1)
    assert "a trial takes CPU 1000, which no node has" in said
    assert not RunFolder(tmp_path / "sweep").path.joinpath("trials.csv").exists()


def test_configs_of_sweeps_are_what_they_say():
    config = read_config(
        TuneConfig, ["--config", str(ROOT / "configs/tune-babble-rnn-2017.yaml"), "--data.shards", "shards/tale"]
    )
    assert config.total == 3 * 2 * 2 * 3
    assert json.loads(json.dumps(config.seeds)) == [0, 1, 2]
