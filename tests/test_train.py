"""A whole training: stages, the run folder, and that nothing stops it for good."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from babble.cli import CommandError, Interrupted, config_to_dict
from babble.data.loaders import DataConfig
from babble.files import read_json_lines
from babble.model.babbler import ModelConfig
from babble.run_folder import RunFolder
from babble.train import StopConfig, TrainConfig, TrainResult, WandbConfig, _report, train
from babble.training.checkpoints import Checkpoints
from babble.training.metrics import OF_THE_MACHINE
from babble.training.module import OptimConfig
from babble.training.samples import SamplesConfig
from babble.training.unfreezing import Stage

EPOCH_STEPS, EPOCHS = 4, 5


def _config(shards: Path, runs: Path, name: str, **changes: Any) -> TrainConfig:
    """Two tiny layers, three stages, five epochs of four steps; a checkpoint after every step."""
    config = TrainConfig(
        name=name,
        runs=runs,
        data=DataConfig(shards=shards, window_frames=40, batch_size=4, windows_per_epoch=4 * EPOCH_STEPS),
        model=ModelConfig(num_layers=2, units=8, head="regression", inputs="scaled"),
        optim=OptimConfig(clip_norm=None),
        unfreezing=(Stage((1,), 2), Stage((1, 2), 1), Stage((2,))),
        stop=StopConfig(epochs=EPOCHS),
        samples=SamplesConfig(every_epochs=0, prompts=1, prompt_frames=20, frames=20),
        checkpoint_minutes=0,
        log_every_steps=2,
        wandb=WandbConfig(mode="off"),
    )
    return dataclasses.replace(config, **changes)


def _checkpoint(run: Path, which: str = "last") -> dict[str, Any]:
    return torch.load(RunFolder(run).checkpoint(which), weights_only=True)


def _metrics(run: Path) -> list[dict[str, float]]:
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


def _assert_same_run(run: Path, other: Path) -> None:
    for which in ("last", "best", "stage-1", "stage-2"):
        weights, others = _checkpoint(run, which)["state_dict"], _checkpoint(other, which)["state_dict"]
        assert all(torch.equal(weights[name], others[name]) for name in weights), which
    assert _metrics(run) == _metrics(other)


@pytest.fixture(scope="module")
def undisturbed(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(_config(speech_shards, tmp_path_factory.mktemp("runs"), "undisturbed"))


def test_a_run_folder_explains_itself(undisturbed: TrainResult, speech_shards: Path):
    run = undisturbed.run
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"]["shards"] == str(speech_shards)
    assert settings["unfreezing"][1] == {"layers": [1, 2], "epochs": 1}
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["versions"]["torch"] == torch.__version__
    baselines = json.loads((run / "baselines.json").read_text())
    assert baselines["copy baseline"].keys() >= {"error_levels", "error/lsp"}
    assert sorted(path.stem for path in (run / "checkpoints").iterdir()) == [
        *("best", "last", "previous", "stage-1", "stage-2")
    ]
    steps = [row["step"] for row in _metrics(run) if "val/error_levels" in row]
    assert steps == [EPOCH_STEPS * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    heard = sorted(path.name for path in (run / "samples").iterdir())
    assert heard == ["epoch-0002", "epoch-0003", "epoch-0005", "prompts", "real"]
    assert json.loads((run / "finished.json").read_text())["best"] == undisturbed.best


def test_each_stage_moves_its_layers_alone(undisturbed: TrainResult):
    stages = ("stage-1", "stage-2", "last")
    first, second, last = (_checkpoint(undisturbed.run, which)["state_dict"] for which in stages)
    layer_1, layer_2 = "model.layers.0.rnn.weight_hh_l0", "model.layers.1.rnn.weight_hh_l0"
    assert not torch.equal(first[layer_1], second[layer_1])
    assert not torch.equal(first[layer_2], second[layer_2])
    assert torch.equal(second[layer_1], last[layer_1])
    assert not torch.equal(second[layer_2], last[layer_2])


def test_a_training_learns(undisturbed: TrainResult):
    figures = [row["val/error_levels"] for row in _metrics(undisturbed.run) if "val/error_levels" in row]
    assert undisturbed.best == pytest.approx(min(figures), rel=1e-6)
    assert figures[-1] < figures[0]


def _train_with_stops(config: TrainConfig, stops: Iterable[int]) -> TrainResult:
    """Train to the end, asked to stop after each of these steps."""
    for stop in stops:
        with (
            mock.patch.object(Checkpoints, "_is_asked", lambda self, trainer, stop=stop: trainer.global_step >= stop),
            pytest.raises(Interrupted, match=f"stopped at step {stop}"),
        ):
            train(config)
    return train(config)


@pytest.mark.parametrize("stops", [[1], [4], [6], [2, 8, 9, 19], [20]], ids=str)
def test_stopped_between_any_two_steps_a_run_ends_the_same(
    stops: list[int], undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    config = _config(speech_shards, tmp_path, "stopped")
    assert _train_with_stops(config, stops).best == undisturbed.best
    _assert_same_run(tmp_path / "stopped", undisturbed.run)


@pytest.mark.parametrize("steps", [16, 18], ids=["an epoch's end", "within an epoch"])
def test_stopped_everywhere_a_run_of_so_many_steps_ends_the_same(steps: int, speech_shards: Path, tmp_path: Path):
    stop = StopConfig(steps=steps)
    config, undisturbed = (
        _rich_config(speech_shards, tmp_path, name, stop=stop, validate_every_epochs=2) for name in ("stopped", "whole")
    )
    assert _train_with_stops(config, range(1, steps + 1)) == dataclasses.replace(
        train(undisturbed), run=tmp_path / "stopped"
    )
    _assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def _rich_config(shards: Path, runs: Path, name: str, **changes: Any) -> TrainConfig:
    """The same with all that keeps a state of its own: streams, random noise and dropout, averaged weights."""
    return _config(
        shards,
        runs,
        name,
        data=DataConfig(shards, reading="streams", window_frames=16, batch_size=4, windows_per_epoch=4 * EPOCH_STEPS),
        model=ModelConfig(num_layers=2, units=8, skips=True, dropout=0.2, frames_ahead=2),
        optim=OptimConfig(input_noise=0.1, ema_decay=0.8, schedule="cosine"),
        before_unfreezing="bypassed",
        **changes,
    )


@pytest.fixture(scope="module")
def rich(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(_rich_config(speech_shards, tmp_path_factory.mktemp("runs"), "rich"))


@pytest.mark.parametrize("stops", [[6], [2, 8, 9, 19]], ids=str)
def test_streams_noise_and_averaged_weights_survive_a_stop(
    stops: list[int], rich: TrainResult, speech_shards: Path, tmp_path: Path
):
    config = _rich_config(speech_shards, tmp_path, "stopped")
    assert _train_with_stops(config, stops).best == rich.best
    _assert_same_run(tmp_path / "stopped", rich.run)
    assert _checkpoint(tmp_path / "stopped", "stage-1")["bypassed_layers"] == [2]
    assert _checkpoint(tmp_path / "stopped", "stage-2")["bypassed_layers"] == []


def test_weights_that_run_away_end_the_training_with_the_cure(speech_shards: Path, tmp_path: Path):
    config = _rich_config(speech_shards, tmp_path, "away")
    config = dataclasses.replace(config, optim=OptimConfig(name="sgd", lr=1e30, clip_norm=None))
    with pytest.raises(CommandError, match=r"val/bits_per_frame is not a number at step 4: .*smaller optim\.lr"):
        train(config)
    assert not (tmp_path / "away" / "finished.json").exists()


def test_what_is_kept_is_the_average_of_the_weights(rich: TrainResult, speech_shards: Path, tmp_path: Path):
    last = _checkpoint(rich.run)
    averaged, current = last["state_dict"], last["current_model_state"]
    name = "model.layers.0.rnn.weight_hh_l0"
    assert not torch.equal(averaged[name], current[name])
    plain = _rich_config(speech_shards, tmp_path, "plain")
    plain = dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, ema_decay=None))
    # Averaging changes what is kept, not what is learned.
    assert torch.equal(_checkpoint(train(plain).run)["state_dict"][name], current[name])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_really_killed_ends_the_same(
    number: signal.Signals, undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    run = tmp_path / "killed"
    words = [
        *("--data.shards", str(speech_shards), "--runs", str(tmp_path), "--name", "killed"),
        *("--config", str(_as_yaml(tmp_path, _config(speech_shards, tmp_path, "killed")))),
    ]
    command = [sys.executable, "-m", "babble.train", *words]
    codes = []
    for rows in (2, 7):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None and not (
                _count_rows(run) >= rows and (run / "checkpoints/last.ckpt").exists()
            ):
                time.sleep(0.005)
            process.send_signal(number)
            said = process.communicate()[0]
            codes.append(process.returncode)
        if number != signal.SIGKILL:
            assert f"by {number.name}; the same command goes on from there." in said
    assert codes == 2 * [-9 if number == signal.SIGKILL else 128 + number]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{run}: going on at step" in done.stdout
    _assert_same_run(run, undisturbed.run)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert f"{run} is finished: {EPOCHS * EPOCH_STEPS} steps" in again.stdout


def _as_yaml(folder: Path, config: TrainConfig) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    return path


def _count_rows(run: Path) -> int:
    return len(read_json_lines(run / "metrics.jsonl"))


def test_other_settings_are_refused_naming_each(undisturbed: TrainResult, speech_shards: Path):
    changed = _config(speech_shards, undisturbed.run.parent, "undisturbed", seed=3, optim=OptimConfig(lr=0.5))
    with pytest.raises(ValueError, match="is a run of other settings") as refused:
        train(changed)
    message = str(refused.value)
    assert "seed: 0 in the run, 3 now" in message
    assert "optim.lr: None in the run, 0.5 now" in message
    assert "optim.clip_norm: None in the run, 1.0 now" in message
    assert "units" not in message


def test_a_finished_run_says_so_and_does_nothing(undisturbed: TrainResult, speech_shards: Path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.run.rglob("*") if path.is_file()}
    again = train(_config(speech_shards, undisturbed.run.parent, "undisturbed"))
    assert again == dataclasses.replace(undisturbed, already_finished=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_folder_in_use_is_refused(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "busy")
    with RunFolder(tmp_path / "busy").locked(), pytest.raises(CommandError, match="in use by another training"):
        train(config)


def test_starting_from_another_runs_weights(undisturbed: TrainResult, speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "child", init_from=undisturbed.run, stop=StopConfig(steps=1))
    train(config)
    parent, child = _checkpoint(undisturbed.run, "best"), _checkpoint(tmp_path / "child")
    waiting = "model.layers.1.rnn.weight_hh_l0"
    assert torch.equal(child["state_dict"][waiting], parent["state_dict"][waiting])
    assert child["global_step"] == 1
    wider = _config(
        speech_shards, tmp_path, "wider", init_from=undisturbed.run, model=ModelConfig(num_layers=2, units=9)
    )
    with pytest.raises(ValueError, match="of another shape"):
        train(wider)


@pytest.mark.parametrize("damage", ["half", "a byte", "missing"])
def test_where_the_last_checkpoint_is_damaged_the_one_before_is_taken(
    damage: str, undisturbed: TrainResult, speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = _config(speech_shards, tmp_path, "damaged")
    with (
        mock.patch.object(Checkpoints, "_is_asked", lambda self, trainer: trainer.global_step >= 7),
        pytest.raises(Interrupted),
    ):
        train(config)
    last = RunFolder(tmp_path / "damaged").checkpoint("last")
    whole = last.read_bytes()
    if damage == "half":
        last.write_bytes(whole[: len(whole) // 2])
    elif damage == "a byte":
        # In the middle of the weights, which no parser would miss.
        place = whole.index(
            _checkpoint(tmp_path / "damaged")["state_dict"]["model.layers.0.rnn.weight_hh_l0"].numpy().tobytes()
        )
        last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    else:
        last.unlink()
    assert train(config).best == undisturbed.best
    said = capsys.readouterr()
    assert "going on at step 6" in said.out
    assert ("last.ckpt is no checkpoint, or damaged" in said.err) == (damage != "missing")
    assert ("; the one before is taken" in said.err) == (damage != "missing")
    _assert_same_run(tmp_path / "damaged", undisturbed.run)


def test_with_no_whole_checkpoint_a_run_is_not_begun_anew_in_silence(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "damaged", stop=StopConfig(steps=2))
    with (
        mock.patch.object(Checkpoints, "_is_asked", lambda self, trainer: trainer.global_step >= 1),
        pytest.raises(Interrupted),
    ):
        train(config)
    RunFolder(tmp_path / "damaged").checkpoint("last").write_bytes(b"")
    with pytest.raises(CommandError, match="No other is left: delete"):
        train(config)


def test_a_damaged_checkpoint_is_named(undisturbed: TrainResult, speech_shards: Path, tmp_path: Path):
    path = tmp_path / "half.ckpt"
    whole = RunFolder(undisturbed.run).checkpoint("best").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.ckpt is no checkpoint, or damaged"):
        train(_config(speech_shards, tmp_path, "x", init_from=path))


def test_a_run_stops_when_nothing_gets_better_and_at_its_hour(speech_shards: Path, tmp_path: Path):
    still = _config(
        speech_shards, tmp_path, "still", optim=OptimConfig(name="sgd", lr=1e-30), stop=StopConfig(patience=2)
    )
    assert train(still).steps == 3 * EPOCH_STEPS
    brief = _config(speech_shards, tmp_path, "brief", stop=StopConfig(hours=1e-9))
    result = train(brief)
    assert result.steps == 1
    assert result.best < 100, "a run that ends before its first validation is validated at its end"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": StopConfig()}, "nothing says when to stop"),
        ({"name": "a/b"}, "can't be a folder's name"),
        ({"unfreezing": (Stage((3,)),)}, "model.num_layers=2"),
        ({"optim": OptimConfig(schedule="cosine"), "stop": StopConfig(hours=1)}, "cosine needs an end"),
    ],
)
def test_settings_that_can_not_be_are_refused_before_any_work(
    changes: dict[str, Any], message: str, speech_shards: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_config(speech_shards, tmp_path, "bad"), **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_default_name_is_the_recipe_and_the_day_or_the_job(speech_shards: Path, tmp_path: Path):
    config = dataclasses.replace(_config(speech_shards, tmp_path, "x"), name=None, recipe="babble")
    with mock.patch.dict(os.environ):
        for variable in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[variable]
        assert config.run_name == f"babble-{time.strftime('%Y-%m-%d')}"
        os.environ["SLURM_JOB_ID"] = "65"
        assert config.run_name == "babble-65"
        os.environ.update(SLURM_ARRAY_JOB_ID="60", SLURM_ARRAY_TASK_ID="2")
        assert config.run_name == "babble-60_2"


def test_a_resumed_run_is_the_same_wandb_run(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "logged", wandb=WandbConfig(mode="offline"))
    with (
        mock.patch.object(Checkpoints, "_is_asked", lambda self, trainer: trainer.global_step >= 3),
        pytest.raises(Interrupted),
    ):
        train(config)
    train(config)
    name = (tmp_path / "logged" / "wandb_id").read_text()
    offline = sorted((tmp_path / "logged" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(offline) == 2
    assert all(path.stat().st_size > 0 for path in offline)


def test_a_report_that_fails_does_not_fail_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mock.patch("babble.train.write_report", side_effect=KeyError("bug")):
        _report(RunFolder(tmp_path))
    assert f"Try: python -m babble.report {tmp_path}" in capsys.readouterr().err
