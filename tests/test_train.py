"""A whole training: stages, run folder, resuming, and what is rejected before the run folder exists."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from player.conftest import write_voice
from shard_folder import write_folder

from babble import train as train_module
from babble.cli import CommandError, Interrupted, config_to_dict
from babble.codec.frames import TOKENS, get_mode
from babble.codec.token_sequences import join_tokens
from babble.data.config import DataConfig
from babble.data.shards import read_manifest, read_recordings, write_manifest
from babble.files import read_json_lines
from babble.model.config import ModelConfig
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.tokenizer.clusters import Clusters
from babble.tokenizer.encoder import TokenEncoder
from babble.tokenizer.tokenizer import FILE, Tokenizer
from babble.train import _write_report, train
from babble.training import config as config_module
from babble.training.config import ComputeConfig, OptimConfig, SamplesConfig, Stage, StopConfig, TrainConfig
from babble.training.metrics import OF_THE_MACHINE
from babble.training.stopping import Consensus
from babble.training.topology import Topology
from babble.training.trainer import TrainResult, build_trainer
from babble.training.wandb_run import WandbConfig

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
    checkpoints = ["best.ckpt", "last.ckpt", "previous.ckpt", "stage-1.ckpt", "stage-2.ckpt"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == checkpoints
    steps = [row["step"] for row in _metrics(run) if "val/error_levels" in row]
    assert steps == [EPOCH_STEPS * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    samples = sorted(path.name for path in (run / "samples").iterdir())
    assert samples == ["epoch-0002", "epoch-0003", "epoch-0005", "prompts", "real"]
    finished = json.loads((run / "finished.json").read_text())
    assert (finished["monitor"], finished["best"]) == ("val/error_levels", undisturbed.best)


def test_each_stage_trains_only_its_layers(undisturbed: TrainResult):
    stages = ("stage-1", "stage-2", "last")
    first, second, last = (_checkpoint(undisturbed.run, which)["state_dict"] for which in stages)
    layer_1, layer_2 = "model.layers.0.rnn.weight_hh_l0", "model.layers.1.rnn.weight_hh_l0"
    assert not torch.equal(first[layer_1], second[layer_1])
    assert not torch.equal(first[layer_2], second[layer_2])
    assert torch.equal(second[layer_1], last[layer_1])
    assert not torch.equal(second[layer_2], last[layer_2])


def test_the_error_falls(undisturbed: TrainResult):
    errors = [row["val/error_levels"] for row in _metrics(undisturbed.run) if "val/error_levels" in row]
    assert undisturbed.best == pytest.approx(min(errors), rel=1e-6)
    assert errors[-1] < errors[0]


@contextlib.contextmanager
def _stop_after(step: int) -> Iterator[None]:
    """Ask a training to stop after this step, as Ctrl-C does."""
    decide = Consensus.decide

    def ask(self: Consensus, trainer: Any, wants_to_save: bool) -> bool:
        if trainer.global_step >= step:
            self.request.number = signal.SIGINT
        return decide(self, trainer, wants_to_save)

    with mock.patch.object(Consensus, "decide", ask), pytest.raises(Interrupted, match=f"stopped at step {step} by"):
        yield


def _train_with_stops(config: TrainConfig, stops: Iterable[int]) -> TrainResult:
    """Train to the end, with a stop after each of these steps."""
    for stop in stops:
        with _stop_after(stop):
            train(config)
    return train(config)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("stops", [[1, 4, 6, 20], [2, 8, 9, 19]], ids=str)
def test_a_run_stopped_between_any_two_steps_ends_with_the_same_weights(
    stops: list[int], undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    config = _config(speech_shards, tmp_path, "stopped")
    assert _train_with_stops(config, stops).best == undisturbed.best
    _assert_same_run(tmp_path / "stopped", undisturbed.run)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("steps", "stops"), [(16, (3, 8, 15, 16)), (18, (12, 17, 18))], ids=["at the end of an epoch", "within an epoch"]
)
def test_a_run_with_a_step_limit_ends_with_the_same_weights(
    steps: int, stops: tuple[int, ...], speech_shards: Path, tmp_path: Path
):
    config, undisturbed = (
        _rich_config(speech_shards, tmp_path, name, stop=StopConfig(steps=steps), validate_every_epochs=2)
        for name in ("stopped", "whole")
    )
    assert _train_with_stops(config, stops) == dataclasses.replace(train(undisturbed), run=tmp_path / "stopped")
    _assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "place", ["babble.training.samples.SampleWriter.on_train_end", "babble.training.trainer.finish"]
)
def test_a_run_killed_after_its_last_step_ends_with_the_same_metrics(
    place: str, speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    killed, whole = (_config(speech_shards, tmp_path, name, validate_every_epochs=2) for name in ("killed", "whole"))
    train(whole)
    rows = [(row["step"], row["epoch"]) for row in _metrics(tmp_path / "whole") if "val/error_levels" in row]
    assert rows == [(7, 1), (15, 3), (19, 4)]
    assert "\nepoch 5/5, stage 3, step 20: " in capsys.readouterr().out
    with mock.patch(place, side_effect=RuntimeError("killed here")), pytest.raises(RuntimeError, match="killed here"):
        train(killed)
    train(killed)
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")


def _rich_config(shards: Path, runs: Path, name: str, **changes: Any) -> TrainConfig:
    """The same with everything that has a state of its own: streams, noise and dropout, averaged weights."""
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


@pytest.mark.usefixtures("no_plots")
def test_streams_noise_and_averaged_weights_survive_a_stop(rich: TrainResult, speech_shards: Path, tmp_path: Path):
    config = _rich_config(speech_shards, tmp_path, "stopped")
    assert _train_with_stops(config, [2, 6, 8, 9, 19]).best == rich.best
    _assert_same_run(tmp_path / "stopped", rich.run)
    assert _checkpoint(tmp_path / "stopped", "stage-1")["bypassed_layers"] == [2]
    assert _checkpoint(tmp_path / "stopped", "stage-2")["bypassed_layers"] == []


def test_deterministic_kernels_are_used_only_if_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    for deterministic in (False, True):
        config = _config(tmp_path, tmp_path, "run", compute=ComputeConfig(deterministic=deterministic))
        build_trainer(config, Topology(1, 1, is_started_by_srun=False), [])
    assert asked == [True]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_bits_per_frame_and_learning_rate_are_logged_for_training_batches(rich: TrainResult):
    rows = [row for row in _metrics(rich.run) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, EPOCHS * EPOCH_STEPS, 2))
    for row in rows:
        # The loss is the mean over the 16 fields.
        assert row["train/bits_per_frame"] == pytest.approx(16 * row["train/loss"], rel=1e-5)
    rates = [row["train/lr"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0.002


@pytest.mark.usefixtures("no_plots")
def test_a_training_that_diverges_ends_with_advice(speech_shards: Path, tmp_path: Path):
    config = _rich_config(speech_shards, tmp_path, "diverges")
    config = dataclasses.replace(config, optim=OptimConfig(name="sgd", lr=1e30, clip_norm=None))
    message = r"val/bits_per_frame is not a number at step 4: training diverged\. .*smaller optim\.lr"
    with pytest.raises(CommandError, match=message):
        train(config)
    assert not (tmp_path / "diverges" / "finished.json").exists()


@pytest.mark.usefixtures("no_plots")
def test_checkpoints_hold_the_averaged_weights(rich: TrainResult, speech_shards: Path, tmp_path: Path):
    last = _checkpoint(rich.run)
    averaged, current = last["state_dict"], last["current_model_state"]
    name = "model.layers.0.rnn.weight_hh_l0"
    assert not torch.equal(averaged[name], current[name])
    # The last validation is the best one, after the last step.
    best = _checkpoint(rich.run, "best")
    assert best["global_step"] == last["global_step"]
    assert torch.equal(best["state_dict"][name], averaged[name])
    plain = _rich_config(speech_shards, tmp_path, "plain")
    plain = dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, ema_decay=None))
    # Averaging does not change the training.
    assert torch.equal(_checkpoint(train(plain).run)["state_dict"][name], current[name])


def test_a_run_stopped_by_every_signal_ends_with_the_same_weights(speech_shards: Path, tmp_path: Path):
    run, epochs = tmp_path / "killed", 10
    config = _config(speech_shards, tmp_path, "killed", stop=StopConfig(epochs=epochs))
    command = [sys.executable, "-m", "babble.train", "--config", str(_as_yaml(tmp_path, config))]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        rows = max(1, _count_rows(run))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None and _count_rows(run) <= rows:
                time.sleep(0.005)
            process.send_signal(number)
            printed = process.communicate()[0]
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), printed
        if number != signal.SIGKILL:
            assert f"by {number.name}; the same command resumes from there." in printed
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{run}: resumes at step" in done.stdout
    undisturbed = train(_config(speech_shards, tmp_path, "undisturbed", stop=StopConfig(epochs=epochs)))
    _assert_same_run(run, undisturbed.run)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert f"{run} is finished: {epochs * EPOCH_STEPS} steps" in again.stdout


def _as_yaml(folder: Path, config: TrainConfig) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    return path


def _count_rows(run: Path) -> int:
    return len(read_json_lines(run / "metrics.jsonl"))


def test_other_settings_are_rejected_by_name(undisturbed: TrainResult, speech_shards: Path):
    changed = _config(speech_shards, undisturbed.run.parent, "undisturbed", seed=3, optim=OptimConfig(lr=0.5))
    with pytest.raises(ValueError, match="is a run with other settings") as rejected:
        train(changed)
    message = str(rejected.value)
    assert "seed: was 0, now 3" in message
    assert "optim.lr: was None, now 0.5" in message
    assert "optim.clip_norm: was None, now 1.0" in message
    assert "units" not in message


def test_a_run_from_before_a_setting_existed_is_continued(
    undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    run = tmp_path / "undisturbed"
    shutil.copytree(undisturbed.run, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["token_model"], settings["model"]["tokens"], settings["data"]["tokens"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert train(_config(speech_shards, tmp_path, "undisturbed")).already_finished
    settings["model"]["layers"] = 2
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"was written by another version of babble: .*layers"):
        train(_config(speech_shards, tmp_path, "undisturbed"))


def test_a_run_is_not_continued_on_other_shards(undisturbed: TrainResult, speech_shards: Path, tmp_path: Path):
    run, moved = tmp_path / "runs" / "undisturbed", tmp_path / "moved"
    shutil.copytree(undisturbed.run, run)
    shutil.copytree(speech_shards, moved)
    # The same shards in another folder are the same shards.
    assert train(_config(moved, run.parent, "undisturbed")).already_finished
    manifest = read_manifest(moved)
    write_manifest(moved, dataclasses.replace(manifest, settings={"gain_db": 3.0}))
    with pytest.raises(ValueError, match=f"was trained on other shards than {moved} holds now"):
        train(_config(moved, run.parent, "undisturbed"))


def test_changed_shards_are_found_at_the_start(speech_shards: Path, tmp_path: Path):
    folder = tmp_path / "shards"
    shutil.copytree(speech_shards, folder)
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[-1500] ^= 1
    shard.write_bytes(data)
    config = _config(folder, tmp_path / "runs", "a")
    with pytest.raises(ValueError, match=r"train-000000\.tar has changed since its manifest was written"):
        train(config)
    assert not (tmp_path / "runs").exists()
    unverified = dataclasses.replace(config.data, verify="never")
    train(dataclasses.replace(config, data=unverified, stop=StopConfig(steps=1)))
    # The size is always compared.
    shard.write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"train-000000\.tar has [\d,]+ bytes, [\d,]+ in its manifest"):
        train(dataclasses.replace(config, data=unverified))


def test_a_finished_run_does_nothing(undisturbed: TrainResult, speech_shards: Path):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.run.rglob("*") if path.is_file()}
    again = train(_config(speech_shards, undisturbed.run.parent, "undisturbed"))
    assert again == dataclasses.replace(undisturbed, already_finished=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_kill_left_is_removed_and_a_lost_report_is_written(
    undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    run = tmp_path / "undisturbed"
    shutil.copytree(undisturbed.run, run)
    (run / "report.html").unlink()
    for name in (".config.yaml.1.tmp", "checkpoints/.last.ckpt.1.tmp", "samples/prompts/.prompts.json.1.tmp"):
        (run / name).touch()
    train(_config(speech_shards, tmp_path, "undisturbed"))
    assert (run / "report.html").is_file()
    assert list(run.rglob("*.tmp")) == []


def test_the_folder_of_a_sweep_is_rejected(speech_shards: Path, tmp_path: Path):
    SweepFolder(tmp_path / "sweep").claim({}, {})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"sweep is a sweep of babble tune: choose another --name"):
        train(_config(speech_shards, tmp_path, "sweep"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_in_use_is_rejected(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "busy")
    with RunFolder(tmp_path / "busy").locked(), pytest.raises(CommandError, match="in use by another training"):
        train(config)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("source", ["folder", "file"])
def test_initial_weights_come_from_a_run_or_a_checkpoint(
    source: str, undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    path = undisturbed.run if source == "folder" else RunFolder(undisturbed.run).checkpoint("best")
    train(_config(speech_shards, tmp_path, "child", init_from=path, stop=StopConfig(steps=1)))
    parent, child = _checkpoint(undisturbed.run, "best"), _checkpoint(tmp_path / "child")
    frozen = "model.layers.1.rnn.weight_hh_l0"
    assert torch.equal(child["state_dict"][frozen], parent["state_dict"][frozen])
    assert child["global_step"] == 1


@pytest.mark.usefixtures("no_plots")
def test_a_run_is_continued_without_its_samples_and_the_run_that_it_started_from(
    undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    parent = Path(shutil.copytree(undisturbed.run, tmp_path / "parent"))
    config = _config(speech_shards, tmp_path, "child", init_from=parent, stop=StopConfig(steps=2))
    with _stop_after(1):
        train(config)
    shutil.rmtree(parent)
    shutil.rmtree(config.run.samples)
    assert train(config).steps == 2
    assert (config.run.prompts / "1.c2").is_file()
    assert train(config).already_finished


def test_initial_weights_that_can_not_be_loaded_are_rejected(
    undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    half = tmp_path / "half.ckpt"
    whole = RunFolder(undisturbed.run).checkpoint("best").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    wider = ModelConfig(num_layers=2, units=9)
    for changes, message in (
        ({"init_from": undisturbed.run, "model": wider}, "has another architecture"),
        ({"init_from": half}, r"half\.ckpt is damaged, or not a checkpoint"),
        ({"init_from": speech_shards}, "is not a run: it has no config.yaml"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(_config(speech_shards, tmp_path, "child", **changes))
    assert not (tmp_path / "child").exists()


@pytest.fixture
def tokens(speech_shards: Path, tmp_path: Path) -> Path:
    """A folder of tokens of the shards and a tokenizer, as babble tokens writes them."""
    manifest, mode = read_manifest(speech_shards), get_mode("1300")
    splits = {
        split: {one.recording: join_tokens(np.zeros(len(one.frames), int)) for one in recordings}
        for split in ("train", "validation")
        for recordings in [read_recordings(speech_shards, manifest, split)]
    }
    write_folder(tmp_path / "tokens", TOKENS, splits)
    clusters = Clusters(torch.zeros(8), torch.ones(8), torch.randn(20, 8), 0.2)
    tokenizer = Tokenizer(TokenEncoder(mode, units=4, num_targets=3), clusters, mode)
    torch.save(tokenizer.state(), tmp_path / "tokens" / FILE)
    return tmp_path / "tokens"


@pytest.mark.usefixtures("no_plots")
def test_the_network_that_chooses_tokens_is_checked_first_and_kept(
    tokens: Path, undisturbed: TrainResult, speech_shards: Path, tmp_path: Path
):
    data = DataConfig(speech_shards, tokens=tokens, window_frames=40, batch_size=4, windows_per_epoch=16)
    config = _config(speech_shards, tmp_path, "words", data=data, token_model=undisturbed.run, stop=StopConfig(steps=2))
    with pytest.raises(ValueError, match="was trained on frames, not on tokens"):
        train(config)
    assert not config.run.path.exists()
    chooses = write_voice(tmp_path / "chooses", mode=TOKENS.name)
    config = dataclasses.replace(config, token_model=chooses)
    with _stop_after(1):
        train(config)
    before = config.run.tokens.read_bytes()
    shutil.rmtree(chooses)
    assert train(config).steps == 2
    assert config.run.tokens.read_bytes() == before


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("damage", ["half", "a byte", "missing"])
def test_if_the_last_checkpoint_is_damaged_the_previous_one_is_used(
    damage: str, undisturbed: TrainResult, speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = _config(speech_shards, tmp_path, "damaged")
    with _stop_after(7):
        train(config)
    last = RunFolder(tmp_path / "damaged").checkpoint("last")
    whole = last.read_bytes()
    if damage == "half":
        last.write_bytes(whole[: len(whole) // 2])
    elif damage == "a byte":
        # In the middle of the weights, where no parser notices it.
        weights = _checkpoint(tmp_path / "damaged")["state_dict"]["model.layers.0.rnn.weight_hh_l0"]
        position = whole.index(weights.numpy().tobytes())
        last.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    else:
        last.unlink()
    assert train(config).best == undisturbed.best
    printed = capsys.readouterr()
    assert "resumes at step 6" in printed.out
    assert ("last.ckpt is damaged" in printed.err) == (damage != "missing")
    assert ("; the previous checkpoint is used" in printed.err) == (damage != "missing")
    _assert_same_run(tmp_path / "damaged", undisturbed.run)


@pytest.mark.usefixtures("no_plots")
def test_a_run_without_a_valid_checkpoint_does_not_start_over_silently(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "damaged", stop=StopConfig(steps=2))
    with _stop_after(1):
        train(config)
    RunFolder(tmp_path / "damaged").checkpoint("last").write_bytes(b"")
    with pytest.raises(CommandError, match=r"No valid checkpoint left; delete .*damaged to start over"):
        train(config)


@pytest.mark.usefixtures("no_plots")
def test_a_run_ends_without_improvement_and_after_its_hours(speech_shards: Path, tmp_path: Path):
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
        ({"stop": StopConfig()}, "the training has no end"),
        ({"name": "a/b"}, "can't be the name of a folder"),
        ({"unfreezing": (Stage((3,)),)}, "model.num_layers=2"),
        ({"optim": OptimConfig(schedule="cosine"), "stop": StopConfig(hours=1)}, "cosine needs an end"),
        ({"checkpoint_minutes": -5.0}, r"checkpoint_minutes=-5\.0: must be at least 0"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(
    changes: dict[str, Any], message: str, speech_shards: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_config(speech_shards, tmp_path, "bad"), **changes)


@pytest.mark.parametrize("hours", [math.inf, math.nan, 1e12])
def test_hours_that_no_clock_has_are_rejected(hours: float):
    with pytest.raises(ValueError, match=rf"stop\.hours={re.escape(str(hours))}: must be below 1,000,000; omit it"):
        StopConfig(hours=hours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": ComputeConfig(accelerator="gpu")}, r"compute\.accelerator=gpu: PyTorch finds no GPU"),
        ({"compute": ComputeConfig(accelerator="tpuu")}, "compute: .*tpuu"),  # type: ignore[arg-type]
        ({"compute": ComputeConfig(precision="fp16")}, "compute: Precision 'fp16' is invalid"),  # type: ignore[arg-type]
        ({"compute": ComputeConfig(accelerator="cpu", precision="16-mixed")}, r"precision=16-mixed needs a GPU"),
        ({"optim": OptimConfig(warmup_steps=20)}, r"optim\.warmup_steps=20: the training has only 20 steps"),
        ({"data": DataConfig(Path("nowhere"))}, "nowhere"),
    ],
)
def test_what_this_machine_can_not_train_is_rejected_before_the_run_folder_exists(
    changes: dict[str, Any], message: str, speech_shards: Path, tmp_path: Path
):
    config = _config(speech_shards, tmp_path, "rejected", stop=StopConfig(epochs=5))
    with (
        mock.patch("torch.cuda.is_available", return_value=False),
        mock.patch("torch.cuda.device_count", return_value=0),
        pytest.raises((ValueError, FileNotFoundError), match=message),
    ):
        train(dataclasses.replace(config, **changes))
    assert list(tmp_path.iterdir()) == []


def test_without_a_bfloat16_lstm_mixed_precision_is_rejected(speech_shards: Path, tmp_path: Path):
    config = _config(
        speech_shards, tmp_path, "rejected", compute=ComputeConfig(accelerator="cpu", precision="bf16-mixed")
    )
    with (
        mock.patch("babble.training.precision.can_train_in_bfloat16", return_value=False),
        pytest.raises(ValueError, match="this CPU can't compute an LSTM in bfloat16"),
    ):
        train(config)
    assert list(tmp_path.iterdir()) == []


def test_prompts_longer_than_every_validation_recording_are_shortened(
    speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    samples = SamplesConfig(prompts=1, prompt_frames=5000, frames=20)
    result = train(_config(speech_shards, tmp_path, "short", samples=samples, stop=StopConfig(steps=1)))
    assert "samples.prompt_frames=5000: all validation recordings are shorter" in capsys.readouterr().out
    (statistics,) = json.loads((result.run / "samples" / "epoch-0001" / "statistics.json").read_text())
    assert statistics["change_levels"] is not None


def test_the_default_name_is_recipe_and_date_or_job(speech_shards: Path, tmp_path: Path):
    config = dataclasses.replace(_config(speech_shards, tmp_path, "x"), recipe="babble")
    with mock.patch.dict(os.environ):
        for variable in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[variable]
        assert dataclasses.replace(config, name=None).name == f"babble-{time.strftime('%Y-%m-%d')}"
        os.environ["SLURM_JOB_ID"] = "65"
        assert dataclasses.replace(config, name=None).name == "babble-65"
        os.environ.update(SLURM_ARRAY_JOB_ID="60", SLURM_ARRAY_TASK_ID="2")
        assert dataclasses.replace(config, name=None).name == "babble-60_2"


def test_the_default_name_does_not_change_at_midnight(speech_shards: Path, tmp_path: Path):
    with mock.patch.object(config_module, "job_id", return_value=None):
        config = dataclasses.replace(_config(speech_shards, tmp_path, "x"), name=None)
        before = config.run.path
        with mock.patch.object(config_module, "date") as tomorrow:
            tomorrow.today.return_value.isoformat.return_value = "2999-12-31"
            assert config.run.path == before


def test_relative_paths_are_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stop = StopConfig(steps=1)
    config = TrainConfig(name="x", data=DataConfig(Path("shards/tale")), init_from=Path("runs/parent"), stop=stop)
    assert config.data.shards == tmp_path / "shards" / "tale"
    assert config.init_from == tmp_path / "runs" / "parent"


@pytest.mark.usefixtures("no_plots")
def test_a_resumed_run_is_the_same_wandb_run(speech_shards: Path, tmp_path: Path):
    config = _config(speech_shards, tmp_path, "logged", wandb=WandbConfig(mode="offline"))
    with _stop_after(3):
        train(config)
    train(config)
    name = (tmp_path / "logged" / "wandb_id").read_text()
    offline = sorted((tmp_path / "logged" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(offline) == 2
    assert all(path.stat().st_size > 0 for path in offline)


def test_a_report_that_fails_does_not_fail_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with mock.patch("babble.reporting.render.write_report", side_effect=KeyError("bug")):
        _write_report(RunFolder(tmp_path))
    assert f"Try: babble report {tmp_path}" in capsys.readouterr().err


def test_printed_commands_are_quoted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = Path("runs/Mein Lauf \u00e4")
    monkeypatch.setattr(train_module, "train", lambda _: TrainResult(run, "val/error_levels", 1.0, 8, 80, 100))
    train_module._work(TrainConfig(stop=StopConfig(epochs=1)))
    *_, report, command = capsys.readouterr().out.splitlines()
    assert shlex.split(report)[1:] == [f"{run}/report.html"]
    assert shlex.split(command.partition(": ")[2])[:3] == ["babble", "generate", str(run)]
