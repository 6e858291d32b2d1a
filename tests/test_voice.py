"""`babble voice`: from one recording to a run, by the real command."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import yaml
from paths import ROOT, SPEECH
from player.conftest import write_voice

from babble.data.shards import read_manifest
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.config import ModelConfig
from babble.run_folder import PRETRAINED, RunFolder, locate_checkpoint
from babble.training.config import StopConfig, TrainConfig
from babble.training.wandb_run import WandbConfig
from babble.voice import BATCH_SIZE, VoiceConfig, _continue, choose_training, find_start, make_voice


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "babble", "voice", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_recording_becomes_a_voice_and_a_stopped_command_continues(tmp_path: Path) -> None:
    pcm, rate = soundfile.read(SPEECH / "allison-01.ogg", frames=60 * 8000)
    soundfile.write(tmp_path / "my voice.wav", pcm, rate)
    init = write_voice(tmp_path / "first")
    words = ("my voice.wav", "--init-from", init)
    process = start(tmp_path, *words)
    run = RunFolder(tmp_path / "runs" / "my voice")
    while not (run.metrics.is_file() and run.metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    done = start(tmp_path, *words)
    printed, errors = done.communicate()
    assert (done.returncode, errors) == (0, "")
    manifest = read_manifest(tmp_path / "shards" / "my voice")
    # Its end is held out; nothing is set aside for a test.
    assert {r["split"] for r in manifest.recordings} == {"train", "validation"}
    assert manifest.split_hours("validation") == pytest.approx(6 / 3600, abs=0.2 / 3600)
    assert manifest.shifted
    settings = yaml.safe_load(run.config.read_text())
    assert settings["init_from"] == str(init / "checkpoints" / "best.ckpt")
    assert settings["model"]["units"] == 8
    assert run.report.is_file()
    assert "Listen: babble generate 'runs/my voice' --seconds 60 --out 'my voice.wav'" not in printed
    assert "Listen: babble generate 'runs/my voice' --seconds 60 --out 'my voice-babble.wav'" in printed
    assert "babble train --config" not in printed, "what babble preprocess advises"
    places = {"runs": tmp_path / "runs", "shards": tmp_path / "shards"}
    other = VoiceConfig((tmp_path / "my voice.wav",), seed=3, wandb=WandbConfig("off", "mine"), **places)
    with pytest.raises(
        ValueError,
        match=r"other settings, so it is not continued:\n  init_from: was '.*/first/checkpoints/best.ckpt', now '.*"
        r"pretrained/checkpoints/stage-1.ckpt'\n  seed: was 0, now 3\n  wandb.project: was 'babble', now 'mine'\n",
    ):
        make_voice(other)


def test_a_voice_is_continued_where_the_bundled_one_has_another_place() -> None:
    start = find_start(None)
    found = TrainConfig("me", stop=StopConfig(steps=1), init_from=Path("/elsewhere", *start.parts[-4:]))
    same = VoiceConfig((Path("me.mp3"),), runs=found.runs, wandb=found.wandb)
    assert _continue(same, found, start) == found
    init = Path("/first/checkpoints/stage-1.ckpt")
    assert _continue(replace(same, init_from=init), found, init).init_from == init


def test_without_a_named_run_a_voice_starts_from_the_bundled_network_without_tokens() -> None:
    start = build_model(load_checkpoint(find_start(None)))
    bundled = build_model(load_checkpoint(locate_checkpoint(PRETRAINED)[1]))
    assert start.config.tokens == 0 < bundled.config.tokens
    assert start.mode == bundled.mode


def test_the_amount_of_speech_decides_how_long_it_is_trained() -> None:
    model = ModelConfig(num_layers=2, units=320, skips=True, dropout=0.1)
    chosen = [choose_training(Path("shards"), minutes, model, cores=2, gpus=0) for minutes in (1, 5, 20, 60, 6000)]
    steps = [one["stop"].steps for one in chosen]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    for one in chosen:
        assert one["data"].batch_size * one["compute"].devices == BATCH_SIZE
        assert one["optim"].warmup_steps < one["stop"].steps
        assert (one["model"].units, one["model"].num_layers) == (320, 2)
    gpu = choose_training(Path("shards"), 20, model, cores=16, gpus=1)
    assert (gpu["compute"].devices, gpu["compute"].precision, gpu["data"].batch_size) == (1, "auto", BATCH_SIZE)
    assert choose_training(Path("shards"), 20, model, cores=1, gpus=0)["compute"].devices == 1


def test_what_cannot_become_a_voice_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name the recordings of the voice: babble voice my\.mp3"):
        VoiceConfig()
    path = SPEECH / "allison-01.ogg"
    places = {"runs": tmp_path / "runs", "shards": tmp_path / "shards"}
    with pytest.raises(FileNotFoundError, match="nobody"):
        make_voice(VoiceConfig((path,), init_from=tmp_path / "nobody", **places))
    with pytest.raises(FileNotFoundError, match=r"--recordings .*nothing\.mp3 does not exist"):
        make_voice(VoiceConfig((tmp_path / "nothing.mp3",), **places))
    for name in ("a/b", "", ".a"):
        with pytest.raises(ValueError, match=f"--name '{name}' can't be the name of a folder"):
            VoiceConfig((path,), name=name)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shards" / "me").mkdir(parents=True)
    (tmp_path / "shards" / "me" / "notes").touch()
    with pytest.raises(ValueError, match=r"--name me: .*/shards/me holds notes, so it is not a folder of shards"):
        make_voice(VoiceConfig((path,), name="me", **places))
    over_tokens = write_voice(tmp_path / "over-tokens", mode="tokens")
    with pytest.raises(ValueError, match=r"--init-from .*over-tokens was trained on tokens"):
        make_voice(VoiceConfig((path,), init_from=over_tokens, **places))
