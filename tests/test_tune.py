"""Sweeps with a real Ray: real trainings, real kills. What needs no Ray is in tests/sweeps."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
import yaml
from paths import ROOT

from babble.cli import CommandError, build_config, read_config
from babble.files import read_json, read_json_lines
from babble.sweeps import tuner
from babble.sweeps.folder import SweepFolder
from babble.sweeps.plan import SweepPlan
from babble.sweeps.ranking import TrialRow
from babble.train import train
from babble.training.config import TrainConfig
from babble.training.metrics import OF_THE_MACHINE
from babble.tune import TuneConfig, main, plan_training, report, tune

Found = TypeVar("Found")

TINY: dict[str, Any] = {
    "data": {"reading": "streams", "window_frames": 16, "batch_size": 4, "windows_per_epoch": 40},
    "model": {"num_layers": 2, "units": 8},
    "unfreezing": [{"layers": [1], "epochs": 1}, {"layers": [1, 2]}],
    "stop": {"epochs": 4},
    "samples": {"every_epochs": 0, "prompts": 1, "frames": 5},
    "log_every_steps": 5,
    "wandb": {"mode": "off"},
}
FRAMES_PER_EPOCH = 40 * 16
# Each training has 400 steps: long enough to be killed.
LONG = {"stop": {"epochs": 40}, "validate_every_epochs": 5}


def _words(folder: Path, shards: Path, space: dict[str, Any], *words: str, **settings: Any) -> list[str]:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**TINY, "space": space, **settings}))
    return ["--config", str(path), "--data.shards", str(shards), "--runs", str(folder), "--name", "sweep", *words]


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


def _sweep(words: list[str], **environment: str) -> str:
    process = _start(words, **environment)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def _stop(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> str:
    """Stop a sweep by a signal and wait until none of its trainings is left; return its output."""
    process.send_signal(number)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    _await(lambda: not _trainings(folder), seconds=60)
    return output


def _metrics(run: Path) -> list[dict[str, float]]:
    rows = read_json_lines(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in OF_THE_MACHINE} for row in rows]


def _trainings(folder: Path) -> list[int]:
    """Return the process ids of the trainings whose arguments lie in this folder: other tests run trainings too.

    A sweep starts each training in a session of its own. A child of a training that has not yet become another
    program (git, which names the source) has its parent's arguments and session, and does not count.
    """
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            is_training = b"babble.train" in words and any(word.startswith(os.fsencode(folder)) for word in words)
            if is_training and os.getsid(pid) == pid:
                found.append(pid)
    return found


def _await(condition: Callable[[], Found], seconds: float = 300) -> Found:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.05)
    return found


def _names(folder: SweepFolder, state: str) -> set[str]:
    return {row.trial for row in folder.read_rows() if row.state == state}


def _modified(folder: SweepFolder, names: set[str]) -> dict[str, int]:
    return {name: (folder.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in names}


def _await_running(folder: SweepFolder) -> str:
    """Wait for a trial that is in the middle of its training; return its name."""

    def middle() -> list[str]:
        return [name for name in _names(folder, "running") if 5 < _count_rows(folder, name) < 50]

    return _await(middle)[0]


def _count_rows(folder: SweepFolder, name: str) -> int:
    return len(read_json_lines(folder.trials / name / "metrics.jsonl"))


# ---- one sweep that is interrupted in every way


@dataclass
class Story:
    """What happened in the sweep.

    Attributes:
        folder: its folder.
        killed: the trial whose training was killed.
        most: most trainings at the same time.
        outputs: of each start of the sweep.
        unchanged: whether each resume left finished trials alone.
    """

    folder: SweepFolder
    killed: str = ""
    most: int = 0
    outputs: list[str] = field(default_factory=list)
    unchanged: list[bool] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, speech_shards: Path) -> Story:
    """A sweep of four trials. A training is killed; Ctrl-C stops the sweep; it is resumed, killed, and resumed again.

    Before the last start the newest state of Ray Tune is cut short.

    Learning rates of 1e30 make all weights infinite: the first validation of that trial is not a number.
    """
    path = tmp_path_factory.mktemp("tune")
    variants = {f"units-{n}": {"model.units": n} for n in (8, 12, 16)} | {"diverging": {"optim.lr": 1e30}}
    words = _words(path, speech_shards, {"variant": {"choice": variants}}, trial={"retries": 1}, **LONG)
    story = Story(SweepFolder(path / "sweep"))
    folder, again = story.folder, ["--resume", "sweep", "--runs", str(path)]

    slurm = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    # Ray has no folder to write to but /tmp: no home, and a path too long for its sockets.
    (long := path / ("temporary" * 12)).mkdir()
    process = _start(words, **slurm, HOME="/dev/null", TMPDIR=str(long))

    def middle() -> list[str]:
        story.most = max(story.most, len(_trainings(path)))
        return [name for name in _names(folder, "running") if _count_rows(folder, name) > 30]

    story.killed = _await(middle)[0]
    for pid in _trainings(folder.trials / f"{story.killed}.yaml"):
        os.kill(pid, signal.SIGKILL)
    _await(lambda: _names(folder, "finished"))
    _await_running(folder)
    story.outputs.append(_stop(process, signal.SIGINT, path))

    finished = _names(folder, "finished")
    before = _modified(folder, finished)
    process = _start(again)
    _await(lambda: _trainings(path))
    story.outputs.append(_stop(process, signal.SIGKILL, path))
    story.unchanged.append(_modified(folder, finished) == before)

    finished = _names(folder, "finished")
    before = _modified(folder, finished)
    # As a full disk leaves it: Ray Tune writes this file in place.
    newest = max(folder.ray.glob("experiment_state-*.json"))
    newest.write_bytes(newest.read_bytes()[:1000])
    story.outputs.append(_sweep(again))
    story.unchanged.append(_modified(folder, finished) == before)
    return story


def test_an_interrupted_sweep_is_resumed_and_finished_trials_are_kept(story: Story):
    # Two trials at once on two cores, with one thread each.
    assert story.most == min(4, len(os.sched_getaffinity(0)))
    assert f"stopped; --resume sweep --runs {story.folder.path.parent} continues the sweep." in story.outputs[0]
    assert "continued, " in story.outputs[2]
    rows = {row.values["variant"]: row for row in story.folder.read_rows()}
    assert len(rows) == 4
    for units in (8, 12, 16):
        row = rows[f"units-{units}"]
        assert (row.state, row.epoch, row.frames) == ("finished", 40, 40 * FRAMES_PER_EPOCH)
        config = yaml.safe_load((story.folder.trials / f"{row.trial}.yaml").read_text())
        assert config["compute"]["threads"] == 1
    assert story.unchanged == [True, True]


def test_a_diverging_trial_is_reported_as_failed(story: Story):
    (row,) = (row for row in story.folder.read_rows() if row.values["variant"] == "diverging")
    assert (row.state, row.retries, row.best) == ("failed", 1, None)
    assert "is not a number" in row.reason
    assert any("is not a number" in output for output in story.outputs)
    assert f"failed: {row.trial}: " in story.outputs[-1]


def test_a_killed_trial_ends_with_the_metrics_of_an_uninterrupted_training(story: Story, tmp_path: Path):
    starts = read_json(story.folder.trials / story.killed / "environment.json")
    assert len(starts) >= 2
    words = ["--config", str(story.folder.trials / f"{story.killed}.yaml"), "--runs", str(tmp_path), "--name", "alone"]
    train(read_config(TrainConfig, words))
    assert _metrics(tmp_path / "alone") == _metrics(story.folder.trials / story.killed)


def test_the_answer_is_complete_and_the_best_run_is_kept(story: Story):
    assert "Variance explained per setting" in story.outputs[-1]
    best = min((row for row in story.folder.read_rows() if row.best is not None), key=lambda row: row.best)
    assert {path.parent.parent.name for path in story.folder.trials.glob("*/checkpoints/best.ckpt")} == {best.trial}
    assert story.folder.best.checkpoint("best").is_file()
    settings = yaml.safe_load((story.folder.path / "best.yaml").read_text())
    assert settings["model"]["units"] == int(best.values["variant"].partition("-")[2])
    for name in ("answer.txt", "answer.png"):
        (story.folder.path / name).unlink()
    assert report(story.folder) in story.outputs[-1]
    assert (story.folder.path / "answer.png").is_file()


def test_a_finished_sweep_says_so_and_other_settings_are_rejected(
    story: Story, speech_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tuner, "connect", lambda address: pytest.fail("Ray was started for nothing"))
    space = story.folder.read_settings()["space"]
    words = _words(story.folder.path.parent, speech_shards, space, trial={"retries": 1}, **LONG)
    assert tune(read_config(TuneConfig, words)) == story.folder
    assert "all 4 trials have ended. Nothing to do." in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"(?s)sweep with other settings.*stop\.epochs.*40.*9"):
        tune(read_config(TuneConfig, [*words, "--stop.epochs", "9"]))


# ---- without Ray


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of one node with two cores, which exists in name only."""
    resources = {"CPU": 2.0}
    monkeypatch.setattr(tuner, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])


@pytest.mark.usefixtures("no_ray")
def test_trials_too_large_for_every_node_are_rejected_before_anything_is_created(tmp_path: Path, speech_shards: Path):
    words = _words(tmp_path, speech_shards, {"model.units": {"choice": [8]}}, "--trial.cores", "1000")
    with pytest.raises(CommandError, match="a trial needs CPU 1000, and no node has that: CPU 2"):
        tune(read_config(TuneConfig, words))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.usefixtures("no_ray")
def test_the_name_of_a_sweep_is_made_once(tmp_path: Path, speech_shards: Path, monkeypatch: pytest.MonkeyPatch):
    """The default name has the date, or Slurm's job: here the job, because a test can't wait for midnight."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")

    def run_trials(plan: object, folder: SweepFolder, resources: object) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "2")
        folder.write_rows([TrialRow("a", "finished", {"model.units": 8}, 0, best=27.0)])

    monkeypatch.setattr(tuner, "run_trials", run_trials)
    config = read_config(TuneConfig, _words(tmp_path, speech_shards, {"model.units": {"choice": [8]}}))
    config = replace(config, training=replace(config.training, name=None))
    folder = tune(config)
    assert folder.path.name == "sweep-1"
    assert folder.read_rows()[0].trial == "a"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "val/error_levels is not a number at step 4: training diverged.",
            "every trial has diverged .* smaller values of",
        ),
        ("Killed", "every trial has failed, the last one with: Killed"),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_a_sweep_without_any_result_says_so(
    reason: str, message: str, tmp_path: Path, speech_shards: Path, monkeypatch: pytest.MonkeyPatch
):
    def run_trials(plan: object, folder: SweepFolder, resources: object) -> None:
        folder.write_rows([TrialRow("a", "failed", {"model.units": 8}, 0, reason=reason)])

    monkeypatch.setattr(tuner, "run_trials", run_trials)
    with pytest.raises(CommandError, match=message):
        tune(read_config(TuneConfig, _words(tmp_path, speech_shards, {"model.units": {"choice": [8]}})))
    with pytest.raises(CommandError, match=message):
        report(SweepFolder(tmp_path / "sweep"))


SOME_TOKENS = {"data": TINY["data"] | {"tokens": "shards/tokens"}, "token_model": "runs/tokens"}


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ({"model.units": {"choice": [8]}}, SOME_TOKENS),
        ({"tokens": {"choice": {"some": {"data.tokens": "shards/tokens", "token_model": "runs/tokens"}}}}, {}),
    ],
)
@pytest.mark.usefixtures("no_ray")
def test_networks_that_receive_tokens_can_be_swept(
    space: dict[str, Any],
    settings: dict[str, Any],
    tmp_path: Path,
    speech_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    trained = []

    def run_trials(plan: SweepPlan, folder: SweepFolder, resources: object) -> None:
        (values,) = plan.points
        trained.append(build_config(TrainConfig, folder.trial_settings(values, 0, "a")))
        folder.write_rows([TrialRow("a", "finished", values, 0, best=27.0)])

    monkeypatch.setattr(tuner, "run_trials", run_trials)
    tune(read_config(TuneConfig, _words(tmp_path, speech_shards, space, **settings)))
    assert trained[0].data.tokens == Path("shards/tokens").absolute()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_ray")
def test_a_signal_before_ray_tune_handles_signals_stops_the_sweep(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Starting:
        def fit(self) -> None:
            signal.raise_signal(number)
            pytest.fail("trials were started")

    monkeypatch.setattr(tuner, "_make_tuner", lambda *args: Starting())
    config = build_config(TuneConfig, TINY | {"name": "sweep", "space": {"model.units": {"choice": [8]}}})
    plan = plan_training(config.sweep, config.training)
    assert tuner.run_trials(plan, SweepFolder(tmp_path), {"CPU": 1.0}) == number


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["--model.units", "9"], {}, "--model.units has no effect, as the space varies it: remove the flag, or size f"),
        (["--unfreezing", "[]"], {}, "--unfreezing has no effect"),
        ([], {"resume": "first"}, "resume=first: not a setting of a sweep; type babble tune --resume first instead."),
    ],
)
def test_a_setting_without_effect_is_refused(
    words: list[str],
    settings: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    space = {"size": {"choice": {"small": {"model.units": 8, "unfreezing": []}}}}
    monkeypatch.setattr(sys, "argv", ["", *_words(tmp_path, tmp_path / "none", space, *words, **settings)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert message in capsys.readouterr().err


def test_help_explains_how_a_sweep_is_continued_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    text = " ".join(capsys.readouterr().out.split())
    assert "--resume RESUME name of a sweep to continue" in text
    assert "--report REPORT name of a sweep whose results so far" in text


# ---- searches and schedulers


def test_asha_stops_trials_early_and_optuna_samples_configurations(tmp_path: Path, speech_shards: Path):
    space = {"optim.lr": {"loguniform": [1e-7, 0.03]}, "model.units": {"randint": [4, 12]}}
    search = {"search": "optuna", "configurations": 2, "seeds": [3, 4], "scheduler": "asha", "asha": {"factor": 2}}
    output = _sweep(_words(tmp_path, speech_shards, space, **{**search, "stop": {"epochs": 8}}))
    rows = SweepFolder(tmp_path / "sweep").read_rows()
    assert len(rows) == 4
    assert {row.state for row in rows} == {"finished", "stopped"}
    assert len({tuple(row.values.values()) for row in rows}) == 2
    assert [row.seed for row in rows].count(3) == 2
    assert all(row.epoch is not None and 2 <= row.epoch < 8 for row in rows if row.state == "stopped")
    assert "asha stops trials with worse results early, from epoch 2 on" in output


@pytest.mark.slow
def test_random_search_trains_each_configuration_with_all_seeds(tmp_path: Path, speech_shards: Path):
    space = {"optim.lr": {"loguniform": [1e-4, 0.03]}}
    settings = {"search": "random", "configurations": 2, "seeds": [0, 1], "stop": {"epochs": 2}}
    _sweep(_words(tmp_path, speech_shards, space, **settings))
    sampled = [(row.values["optim.lr"], row.seed) for row in SweepFolder(tmp_path / "sweep").read_rows()]
    assert len(set(sampled)) == 4
    assert len({lr for lr, _ in sampled}) == 2


@pytest.mark.slow
def test_a_terminated_sweep_is_resumed_by_the_same_command(tmp_path: Path, speech_shards: Path):
    words = _words(tmp_path, speech_shards, {"model.units": {"choice": [8, 12]}}, **LONG)
    folder = SweepFolder(tmp_path / "sweep")
    process = _start(words)
    _await_running(folder)
    _stop(process, signal.SIGTERM, tmp_path)
    _sweep(words)
    assert [row.state for row in folder.read_rows()] == 2 * ["finished"]


@pytest.mark.slow
def test_trials_of_two_processes_share_a_gpu(tmp_path: Path, speech_shards: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray is given a GPU that does not exist: the test is which trials may use it, and how many at once."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--include-dashboard=false"]
    command += [f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1", "--num-cpus=8", "--num-gpus=1"]
    head = subprocess.Popen(
        command,
        env={**os.environ, **secret},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    folder = SweepFolder(tmp_path / "sweep")
    try:
        _await(lambda: _answers(address), seconds=60)
        space = {"model.units": {"choice": [8, 9, 10]}}
        settings = {"trial": {"cores": 2, "gpus": 0.5}, "compute": {"accelerator": "cpu", "devices": 2}}
        process = _start(_words(tmp_path, speech_shards, space, "--address", address, **settings), **secret)
        most, seen = 0, set()
        while process.poll() is None:
            most = max(most, len(_names(folder, "running")))
            for pid in _trainings(tmp_path):
                with contextlib.suppress(OSError):
                    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
                    seen |= {word for word in environment if word.startswith("CUDA_VISIBLE_DEVICES=")}
            time.sleep(0.05)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
    assert (most, seen) == (2, {"CUDA_VISIBLE_DEVICES=0"})
    assert [(row.state, row.frames) for row in folder.read_rows()] == 3 * [("finished", 4 * FRAMES_PER_EPOCH)]


def _answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as asked:
        return asked.connect_ex((host, int(port))) == 0
