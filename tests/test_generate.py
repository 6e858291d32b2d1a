"""Generated babble: files, prompts, alarms, and what a user can ask for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT, SPEECH
from player.conftest import write_voice

from babble.cli import Interrupted, read_config
from babble.codec.codec2 import read_c2, write_c2
from babble.codec.edits import apply_edits, parse_edits
from babble.codec.frames import MODES
from babble.data.shards import read_manifest, read_recordings
from babble.export import ExportConfig, export_voice
from babble.export import _run as export
from babble.generate import GenerateConfig, generate
from babble.generation.free_run import FreeRun
from babble.model.checkpoint import build_model, load_checkpoint
from babble.model.config import ModelConfig
from babble.reporting.plots import figures
from babble.run_folder import RunFolder, locate_checkpoint
from babble.training.config import OptimConfig
from babble.training.module import BabbleModule

MODE = MODES["1300"]


@pytest.fixture(scope="module")
def run(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights with two prompts of 30 frames from its samples."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    folder.claim({"data": {"shards": str(speech_shards)}, "model": {}})
    (speech,) = read_recordings(speech_shards, read_manifest(speech_shards), "validation")
    for number, first in ((1, 100), (2, 300)):
        write_c2(folder.prompts / f"{number}.c2", speech.frames[first : first + 30], MODE)
    torch.manual_seed(0)
    module = BabbleModule(ModelConfig(num_layers=1, units=8), MODE, OptimConfig())
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "bypassed_layers": ()}
    torch.save({**checkpoint, "epoch": 0, "global_step": 1}, folder.checkpoint("best"))
    return folder.path


def test_the_picture_names_the_length_of_the_whole_clip(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    generate(GenerateConfig(run=run, seconds=15, out=str(tmp_path / "babble.wav"), guard="off"))
    assert any("0.0 to 10.0 s of 16.2 s" in text.get_text() for text in drawn[0].texts)


def test_every_file_is_written_and_c2dec_plays_the_frames(run: Path, tmp_path: Path):
    out = tmp_path / "deep" / "babble.wav"
    (facts,) = generate(GenerateConfig(run=run, seconds=4, out=str(out)))
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert file.getnframes() == (30 + 100) * MODE.pcm_per_frame
    frames, mode = read_c2(out.with_suffix(".c2"))
    assert (frames.shape, mode) == ((130, 16), MODE)
    assert np.array_equal(frames[:30], read_c2(run / "samples/prompts/1.c2")[0])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads(out.with_suffix(".json").read_text())
    assert saved == facts
    keys = ("seed", "prompt_origin", "step", "frames", "generated_seconds", "alarms")
    assert [saved[key] for key in keys] == [0, f"samples:1 of {run}", 1, 100, 4.0, []]
    assert saved["sampling"]["temperature"] == [1.0] * 16
    if not shutil.which("c2dec"):
        pytest.skip("c2dec is not installed: apt-get install codec2")
    subprocess.run(["c2dec", "1300", out.with_suffix(".c2"), tmp_path / "x.raw"], check=True, capture_output=True)
    assert (tmp_path / "x.raw").stat().st_size == 130 * 2 * MODE.pcm_per_frame


def test_the_prompt_can_be_left_out(run: Path, tmp_path: Path):
    out = tmp_path / "b.wav"
    generate(GenerateConfig(run=run, seconds=1, with_prompt=False, out=str(out)))
    with wave.open(str(out)) as file:
        assert file.getnframes() == 8000
    assert len(read_c2(out.with_suffix(".c2"))[0]) == 25


def test_the_command_line_takes_a_run_anywhere_and_bare_booleans():
    for words in (["runs/demo", "--seconds", "5"], ["--seconds", "5", "runs/demo"]):
        config = read_config(GenerateConfig, [*words, "--no-with-prompt"], positional="run")
        assert (config.run, config.seconds, config.with_prompt) == (Path("runs/demo"), 5.0, False)
        config = read_config(GenerateConfig, ["--with-prompt", *words, "--top-p", "lsp=0.9"], positional="run")
        assert (config.run, config.with_prompt, config.top_p) == (Path("runs/demo"), True, "lsp=0.9")


def test_a_checkpoint_file_is_accepted_as_run(run: Path, tmp_path: Path):
    first, second = (str(tmp_path / f"{name}.wav") for name in "ab")
    (facts,) = generate(GenerateConfig(run=run, seconds=1, out=first))
    (other,) = generate(GenerateConfig(run=run / "checkpoints/best.ckpt", seconds=1, out=second))
    # The prompts are those of the run that the file lies in.
    assert (other["checkpoint"], other["prompt_origin"]) == (facts["checkpoint"], facts["prompt_origin"])
    assert Path(second).with_suffix(".c2").read_bytes() == Path(first).with_suffix(".c2").read_bytes()
    shutil.copy(run / "checkpoints/best.ckpt", tmp_path / "alone.ckpt")
    (alone,) = generate(GenerateConfig(run=tmp_path / "alone.ckpt", seconds=1, out=second))
    assert alone["prompt_origin"] == "silence"


def test_streams_differ_and_have_their_own_files(run: Path, tmp_path: Path):
    all_facts = generate(GenerateConfig(run=run, seconds=2, streams=3, out=str(tmp_path / "b.wav")))
    assert [facts["out"] for facts in all_facts] == [str(tmp_path / f"b-{n}.wav") for n in (1, 2, 3)]
    assert len({read_c2(tmp_path / f"b-{n}.c2")[0][30:].tobytes() for n in (1, 2, 3)}) == 3
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "50:00"}, "--prompt 50:00: frames 75000 to 75199 are past the end"),
        ({"prompt": "samples:9"}, "has no prompt samples:9; it has samples:1, samples:2"),
        ({"prompt": "nothing.mp3"}, "--prompt nothing.mp3: not an existing file, a time"),
        ({"prompt": __file__}, r"--prompt .*test_generate\.py: .*"),
        ({"prompt_frames": 31}, "has 30 frames, but 31 are needed"),
        ({"checkpoint": "stage-7"}, "no checkpoint 'stage-7'; it has best"),
        ({"run": SPEECH}, "speech is not a run"),
        ({"run": Path("nowhere")}, "nowhere does not exist"),
        ({"seconds": -1}, "--seconds -1: must be above 0"),
        ({"prompt_frames": 0}, "--prompt-frames 0: must be at least 1"),
        ({"out": "babble.mp3"}, "must end in .wav"),
        ({"seconds": float("inf")}, "a file has to end"),
        ({"temperature": "pitch=-1"}, "--temperature -1: "),
        ({"top_p": "lps=0.9"}, "mode 1300 has no 'lps'"),
        ({"seconds": 0, "with_prompt": False}, "--seconds 0: must be above 0"),
        ({"what_if": "lsp=mean", "out": "-"}, "--what-if lsp=mean writes a second WAV file"),
        ({"streams": 0}, "--streams 0: must be at least 1"),
        ({"streams": 2, "out": "-"}, "must be at least 1, and 1 with --out -"),
        ({"seconds": 0, "top_p": 0.9}, "--top-p 0.9 has no effect with --seconds 0"),
    ],
)
def test_unusable_settings_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, run: Path, tmp_path: Path
):
    settings = {"run": run, "seconds": 0.2, "out": str(tmp_path / "b.wav"), **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(GenerateConfig(**settings))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [("b.wav", {}), ("b.c2", {}), ("b-2.c2", {"streams": 2}), ("b-what-if.c2", {"what_if": "lsp=mean"})],
)
def test_a_prompt_is_not_overwritten(prompt: str, changes: dict[str, Any], run: Path, tmp_path: Path):
    path = tmp_path / "sub" / ".." / prompt
    path.parent.parent.mkdir()
    write_c2(tmp_path / prompt, np.zeros((30, 16), np.uint8), MODE)
    with pytest.raises(ValueError, match=f"{prompt} would be overwritten by --out .*b.wav: give another --out"):
        generate(GenerateConfig(run=run, seconds=0.2, prompt=str(path), out=str(tmp_path / "b.wav"), **changes))
    assert len(read_c2(tmp_path / prompt)[0]) == 30


def test_a_checkpoint_file_and_another_checkpoint_contradict_each_other(run: Path):
    with pytest.raises(ValueError, match="--checkpoint last has no effect"):
        generate(GenerateConfig(run=run / "checkpoints/best.ckpt", checkpoint="last"))


@pytest.fixture
def tone_run(run: Path, tmp_path: Path) -> Path:
    """A run whose network always generates the same loud frame."""
    tone = tmp_path / "tone"
    shutil.copytree(run, tone)
    path = tone / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["state_dict"]
    for name in weights:
        if name.startswith("model.head.outs") and name.endswith("bias"):
            weights[name][...] = -1e4
            weights[name][len(weights[name]) * 2 // 3] = 1e4
    torch.save(checkpoint, path)
    return tone


def test_the_guard_reports_failures_and_restarts_the_stream_on_request(
    tone_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"run": tone_run, "seconds": 12, "with_prompt": False, "out": str(tmp_path / "d.wav")}
    (watched,) = generate(GenerateConfig(**settings))
    (alarm,) = watched["alarms"]
    assert alarm["kind"] == "tone"
    assert alarm["seconds_in_wav"] <= 1
    assert json.loads((tmp_path / "d.json").read_text())["alarms"] == [alarm]
    assert "d.wav: tone from " in capsys.readouterr().err
    (acted,) = generate(GenerateConfig(**settings, guard="act"))
    # After each restart the tone is found again, later in the WAV.
    times = [alarm["seconds_in_wav"] for alarm in acted["alarms"]]
    assert len(times) >= 2
    assert times == sorted(set(times))
    (unguarded,) = generate(GenerateConfig(**settings, guard="off"))
    assert unguarded["alarms"] == []


@pytest.mark.parametrize("guard", ["watch", "act"])
def test_alarm_times_count_from_the_start_of_the_wav(
    guard: str, tone_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"run": tone_run, "seconds": 12, "prompt": "silence", "guard": guard, "out": str(tmp_path / "d.wav")}
    (without,) = generate(GenerateConfig(**settings, prompt_frames=100, with_prompt=False))
    capsys.readouterr()
    (within,) = generate(GenerateConfig(**settings, prompt_frames=100))
    expected = [alarm["seconds_in_wav"] + 4 for alarm in without["alarms"]]
    assert [alarm["seconds_in_wav"] for alarm in within["alarms"]] == expected
    assert f"d.wav: tone from {expected[0]:.1f} s on" in capsys.readouterr().err
    # The tone itself, in the frames that were written, starts there.
    frames = read_c2(tmp_path / "d.c2")[0]
    first = round(expected[0] * MODE.frames_per_second)
    assert np.array_equal(frames[first], frames[-1])
    assert not np.array_equal(frames[99], frames[-1])


def test_a_signal_stops_generation_and_all_frames_so_far_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_block, calls = FreeRun.make_block, []

    def make_block_and_interrupt(free_run: FreeRun) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make_block(free_run)

    monkeypatch.setattr(FreeRun, "make_block", make_block_and_interrupt)
    out = tmp_path / "b.wav"
    with pytest.raises(Interrupted, match=r"stopped after 4\.0 s of babble in .*b-1\.wav, .*b-2\.wav\.") as stop:
        generate(GenerateConfig(run=run, seconds=60, streams=2, out=str(out)))
    assert stop.value.number == signal.SIGINT
    for number in (1, 2):
        out = tmp_path / f"b-{number}.wav"
        assert len(read_c2(out.with_suffix(".c2"))[0]) == 130
        with wave.open(str(out)) as file:
            assert file.getnframes() == 130 * MODE.pcm_per_frame
        assert json.loads(out.with_suffix(".json").read_text())["frames"] == 100


def test_an_exported_voice_is_small_and_generates_from_silence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = export_voice(ExportConfig(run=run, out=tmp_path / "voice"))
    assert path.stat().st_size < 0.5 * (run / "checkpoints/best.ckpt").stat().st_size
    assert str(run) not in str(torch.load(path, weights_only=True))
    _, trained = locate_checkpoint(run)
    whole, small = (build_model(load_checkpoint(checkpoint)).state_dict() for checkpoint in (trained, path))
    for name, weights in whole.items():
        # Half a step of 255 up to the largest of the row.
        allowed = weights.abs().amax(dim=-1, keepdim=True) * (0.51 / 127)
        assert ((small[name] - weights).abs() <= allowed).all(), name
    assert not all(torch.equal(small[name], weights) for name, weights in whole.items())
    monkeypatch.setattr("babble.generate.PRETRAINED", tmp_path / "voice")
    (facts,) = generate(GenerateConfig(seconds=2, out=str(tmp_path / "v.wav")))
    assert (facts["prompt_origin"], facts["prompt_frames"]) == ("silence", 25)
    with pytest.raises(ValueError, match="comes without shards: name a folder of shards with --shards"):
        generate(GenerateConfig(seconds=2, prompt="1:00", out=str(tmp_path / "v.wav")))


def test_an_export_replaces_no_run_and_tells_how_to_listen_to_speech_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = (run / "checkpoints/best.ckpt").read_bytes()
    for source in (run, run / "checkpoints/best.ckpt"):
        with pytest.raises(ValueError, match=f"--out {run} is a run, whose best.ckpt would be replaced: name another"):
            export_voice(ExportConfig(run=source, out=run))
    assert (run / "checkpoints/best.ckpt").read_bytes() == before
    export(ExportConfig(run=run, out=tmp_path / "voice"))
    assert f"Listen: babble generate {tmp_path / 'voice'} --seconds 60\n" in capsys.readouterr().out
    over_tokens = write_voice(tmp_path / "over-tokens", mode="tokens")
    shutil.copy(run / "config.yaml", over_tokens)
    export(ExportConfig(run=over_tokens, out=tmp_path / "tokens"))
    assert "babble generate" not in capsys.readouterr().out


def test_raw_pcm_without_end_is_piped_to_a_player_without_shards(run: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (moved / "config.yaml").unlink()
    command = [sys.executable, "-m", "babble.generate", "--seconds", "inf", "--no-with-prompt", "--out", "-", moved]
    piped = subprocess.run(
        f"{' '.join(map(str, command))} | head -c 100000 | wc -c",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert piped.stdout.strip() == "100000"
    assert "Traceback" not in piped.stderr


def test_edited_speech_is_written_next_to_the_unchanged_one(tmp_path: Path) -> None:
    out, edits = tmp_path / "speech.wav", "pitch=flat:120,energy=+3dB"
    prompt = str(SPEECH / "allison-01.ogg")
    facts = generate(GenerateConfig(prompt=prompt, prompt_frames=100, seconds=0, what_if=edits, out=str(out)))
    assert facts[0]["frames"] == 0
    plain, mode = read_c2(out.with_suffix(".c2"))
    edited, _ = read_c2(tmp_path / "speech-what-if.c2")
    assert len(plain) == 100
    assert np.array_equal(edited, apply_edits(plain, parse_edits(edits, mode), mode))
    for suffix in ("wav", "png"):
        assert (tmp_path / f"speech-what-if.{suffix}").stat().st_size > 1000


def test_a_file_that_can_not_be_written_is_refused_before_the_network_is_read(tmp_path: Path):
    out = tmp_path / "babble-2.wav"
    out.mkdir()
    with pytest.raises(OSError, match=f"^{out} can't be written"):
        generate(GenerateConfig(run=tmp_path / "missing", streams=2, out=str(tmp_path / "babble.wav")))
