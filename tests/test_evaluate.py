"""The evaluation of a run as a whole: its table, its JSON, and where its speech comes from."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from babble import evaluate as evaluate_module
from babble.codec.frames import MODES
from babble.data import streaming
from babble.data.shards import Manifest, Segment, read_manifest, read_recordings, write_manifest, write_shards
from babble.evaluate import EvaluateConfig, EvaluationWandbConfig, evaluate, read_training_speech
from babble.evaluation import classifier, comparison
from babble.evaluation.summary import summarize_evaluation
from babble.evaluation.tables import format_evaluation
from babble.model.config import ModelConfig
from babble.run_folder import PRETRAINED, RunFolder
from babble.training.config import OptimConfig
from babble.training.module import BabbleModule

MODE = MODES["1300"]


def make_run(path: Path, shards: Path, head: str = "categorical") -> RunFolder:
    """Return a run with the random weights of a tiny network."""
    run = RunFolder(path)
    run.claim({"data": {"shards": str(shards)}})
    torch.manual_seed(0)
    module = BabbleModule(ModelConfig(num_layers=1, units=4, head=head), MODE, OptimConfig())
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**checkpoint, "epoch": 1, "global_step": 2}, run.checkpoint("best"))
    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the classifier, and leave out the phones."""
    monkeypatch.setattr(comparison, "CLASSIFIED_SECONDS", (1, 16))
    monkeypatch.setattr(comparison, "PHONE_SECONDS", 0.0)
    monkeypatch.setattr(classifier, "FRAMES_PER_FOLD", 12_000)
    monkeypatch.setattr(classifier, "FRAMES_PER_CHECK", 6_000)


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_a_run_is_measured_on_the_named_split(head: str, speech_shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", speech_shards, head)
    config = EvaluateConfig(
        run=run.path,
        split="test",
        training_windows=20,
        window_frames=30,
        babble_seconds=0,
        json=tmp_path / "f.json",
        figure=tmp_path / "f.png",
    )
    evaluation = evaluate(config)
    assert evaluation["recordings"] == ["allison-08"]
    assert evaluation["hours"] == pytest.approx(20 / 3600)
    assert evaluation["train"] == {"hours": 70 / 3600, "split_hours": 70 / 3600, "is_sample": False}
    assert ("bits_per_frame" in evaluation["held_out"]) == (head == "categorical")
    assert "speech" not in evaluation
    assert json.loads((tmp_path / "f.json").read_text()) == evaluation
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width == 1400
    table = format_evaluation(evaluation)
    assert f"{evaluation['held_out']['error_levels']:8.3f}  this network" in table
    assert ("without the pitch" in table) == (head == "categorical")
    assert "baselines: from all 0.02 hours of the training split" in table
    assert f"{evaluation['training_error_2017']:.3f}  training error of 2017" in table


@pytest.mark.usefixtures("quick")
def test_babble_is_compared_with_real_speech_and_references(speech_shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", speech_shards)
    settings: dict[str, Any] = {"run": run.path, "split": "test", "babble_seconds": 20, "figure": tmp_path / "f.png"}
    evaluation = evaluate(EvaluateConfig(**settings, json=tmp_path / "f.json"))
    assert json.loads((tmp_path / "f.json").read_text()) == evaluation
    accuracies = evaluation["speech"]["classifier"]
    assert list(accuracies) == ["babble", "other real speech", "shuffled frames", "Markov chain"]
    # An untrained network does not sound like speech.
    assert accuracies["babble"]["1"]["accuracy"] > 0.75
    assert accuracies["babble"]["1"]["clips"] == 20
    assert accuracies["babble"]["16"] is None
    summary = summarize_evaluation(evaluation)
    assert summary["evaluation/test/classifier_accuracy/1_s"] == accuracies["babble"]["1"]["accuracy"]
    assert {"evaluation/test/babble/pitch_hz", "evaluation/test/real/distance"} <= summary.keys()
    table = format_evaluation(evaluation)
    assert "classifier accuracy against held-out speech (0.5 = chance)" in table
    assert "too short" in table
    assert "babble: streams 8, seconds 20" in table
    assert f"{accuracies['babble']['1']['accuracy']:.3f} (" in table
    assert (tmp_path / "f.png").stat().st_size > 10_000


def write_corpus(folder: Path, splits: dict[str, int]) -> Path:
    """Write shards of one recording per split, random frames in entries of 1,500, two entries per shard."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shards, recordings = [], []
    for split, num_frames in splits.items():
        frames = rng.integers(0, MODE.levels // 2, (num_frames, MODE.num_fields)).astype(MODE.dtype)
        shards += write_shards(folder, split, [Segment(split, 0, frames)], MODE, entries_per_shard=2)
        recordings.append({"name": split, "split": split, "first_frame": 0, "frames": num_frames})
    write_manifest(folder, Manifest(MODE, {}, recordings, shards, []))
    return folder


def test_a_large_training_split_is_sampled_and_the_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = write_corpus(tmp_path / "shards", {"train": 15_000, "test": 1_000})
    manifest = read_manifest(shards)
    whole = read_recordings(shards, manifest, "train")[0].frames
    for module in (evaluate_module, streaming):
        monkeypatch.setattr(module, "SAMPLE_FRAMES", 6_000)
    run = make_run(tmp_path / "run", shards)
    evaluation = evaluate(EvaluateConfig(run=run.path, split="test", babble_seconds=0))
    assert evaluation["train"] == {
        "hours": pytest.approx(6_000 / 90_000),
        "split_hours": pytest.approx(15_000 / 90_000),
        "is_sample": True,
    }
    assert "baselines: from a sample of 0.07 of the 0.17 hours of the training split" in format_evaluation(evaluation)
    # Consecutive entries are one recording again: the first and the last shard of the five.
    sampled = read_training_speech(shards, manifest)
    assert [np.array_equal(s, w) for s, w in zip(sampled, (whole[:3000], whole[12_000:]), strict=True)] == [True, True]


@pytest.mark.usefixtures("quick")
def test_words_are_counted_by_a_recogniser(recogniser: Path, tmp_path: Path):
    shards = write_corpus(tmp_path / "shards", {"train": 3_000, "test": 2_000, "validation": 1_000})
    settings: dict[str, Any] = {
        "run": make_run(tmp_path / "run", shards).path,
        "babble_seconds": 20,
        "words": recogniser,
    }
    evaluation = evaluate(EvaluateConfig(**settings, split="test"))
    words = evaluation["words"]
    assert list(words) == ["babble", "quilt of 160 ms", "real speech"]
    assert words["babble"]["minutes"] == pytest.approx(8 * 20 / 60)
    assert words["real speech"]["minutes"] == pytest.approx(2_000 / 1_500)
    summary = summarize_evaluation(evaluation)
    assert summary["evaluation/test/words/place"] == words["babble"]["word_bits"]["place"]
    table = format_evaluation(evaluation)
    assert "words, as a recogniser spells them" in table
    assert f"{words['babble']['long_words']['mean']:.3f} (" in table
    with pytest.raises(ValueError, match=r"--words .* needs a minute of held-out speech"):
        evaluate(EvaluateConfig(**settings))


def test_shards_for_evaluation_only_have_no_baselines(tmp_path: Path):
    shards = write_corpus(tmp_path / "shards", {"test": 300})
    settings: dict[str, Any] = {"run": make_run(tmp_path / "run", shards).path, "split": "test"}
    evaluation = evaluate(EvaluateConfig(**settings, babble_seconds=0, figure=tmp_path / "f.png"))
    assert evaluation["baselines"] == {}
    assert "baselines: none" in format_evaluation(evaluation)
    with pytest.raises(ValueError, match="--babble-seconds 600 needs a training split"):
        evaluate(EvaluateConfig(**settings))
    with pytest.raises(ValueError, match="has no validation split"):
        evaluate(EvaluateConfig(run=settings["run"], babble_seconds=0))


def test_without_a_run_the_bundled_voice_is_evaluated(
    speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate_module, "PRETRAINED", make_run(tmp_path / "voice", speech_shards).path)
    evaluation = evaluate(EvaluateConfig(shards=speech_shards, babble_seconds=0))
    assert evaluation["checkpoint"] == str(tmp_path / "voice/checkpoints/best.ckpt")
    monkeypatch.undo()
    assert evaluate_module.PRETRAINED == PRETRAINED
    with pytest.raises(ValueError, match="the bundled voice comes without shards: name a folder of shards with --shar"):
        evaluate(EvaluateConfig(babble_seconds=0))


def test_a_checkpoint_file_is_evaluated_alone(speech_shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", speech_shards)
    shutil.copy(run.checkpoint("best"), tmp_path / "alone.ckpt")
    inside = evaluate(EvaluateConfig(run=run.checkpoint("best"), babble_seconds=0))
    alone = evaluate(EvaluateConfig(run=tmp_path / "alone.ckpt", shards=speech_shards, babble_seconds=0))
    assert inside["held_out"] == alone["held_out"]
    assert inside["run"] == str(run.path)
    with pytest.raises(ValueError, match="comes without shards"):
        evaluate(EvaluateConfig(run=tmp_path / "alone.ckpt", babble_seconds=0))


def test_a_failure_of_wandb_does_not_fail_the_evaluation(
    speech_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import wandb

    opened = []

    def fail(**settings: Any) -> None:
        opened.append(settings)
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(wandb, "init", fail)
    run = make_run(tmp_path / "run", speech_shards)
    config = EvaluateConfig(run=run.path, babble_seconds=0)
    evaluation = evaluate(config)
    with pytest.raises(ValueError, match=r"--wandb\.mode offline has no effect"):
        evaluate(replace(config, wandb=EvaluationWandbConfig("offline")))
    (run.path / "wandb_id").write_text("0a1b2c3d")
    evaluate(replace(config, wandb=EvaluationWandbConfig("off")))
    assert opened == []
    assert evaluate(config) == evaluation
    assert [settings["id"] for settings in opened] == ["0a1b2c3d"]
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"babble_seconds": s}, f"--babble-seconds {s:g}: must be 0, or at least 1") for s in (-1, 0.5, math.inf)),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"window_frames": 7}, "--window-frames has no effect"),
        ({"babble_seconds": 0, "top_p": 0.9}, "--top-p has no effect"),
        ({"babble_seconds": 0, "words": Path("r.pt")}, "--words r.pt has no effect"),
        ({"figure": Path("f.jpg")}, "must end in .png"),
        ({"window_frames": 0}, "--window-frames 0: must be at least 1"),
        ({"temperature": 0.9, "babble_seconds": 1}, r"--temperature 0\.9 has no effect: the regression head"),
        ({"checkpoint": "stage-9"}, "no checkpoint 'stage-9'"),
    ],
)
def test_unusable_settings_are_named(settings: dict[str, Any], message: str, speech_shards: Path, tmp_path: Path):
    run = make_run(tmp_path / "run", speech_shards, "regression")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(EvaluateConfig(**{"run": run.path, **settings}))
