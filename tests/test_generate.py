"""Babble: frames that continue a prompt, and every way to say what, how long and where to."""

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT, SPEECH

from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES
from babble.data.loaders import DataConfig
from babble.data.shards import read_manifest, read_recordings
from babble.generate import GenerateConfig, generate
from babble.generation.free_run import FreeRun, generate_frames
from babble.model.babbler import Babbler, ModelConfig
from babble.model.cells import CELLS
from babble.model.sampling import Sampling
from babble.train import StopConfig, TrainConfig, WandbConfig, train
from babble.training.samples import SamplesConfig
from babble.voice import VoiceConfig, export_voice

MODE = MODES["1300"]


def _model(head: str = "categorical", **changes: Any) -> Babbler:
    torch.manual_seed(0)
    return Babbler(ModelConfig(num_layers=2, units=8, head=head, **changes), MODE).eval()


def _prompts(streams: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, MODE.levels, (streams, frames, MODE.num_fields)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a single step: it babbles badly, but as any other."""
    config = TrainConfig(
        name="tiny",
        runs=tmp_path_factory.mktemp("runs"),
        data=DataConfig(shards=speech_shards, window_frames=40, batch_size=4),
        model=ModelConfig(num_layers=1, units=8),
        stop=StopConfig(steps=1),
        samples=SamplesConfig(prompts=2, prompt_frames=30, frames=20),
        wandb=WandbConfig(mode="off"),
    )
    return train(config).run


@torch.no_grad()
@pytest.mark.parametrize("cell", list(CELLS))
def test_carried_state_babbles_as_if_all_was_heard_anew_for_each_frame(cell: str):
    model, prompt = _model("regression", cell=cell), _prompts(1, 12)
    babble = generate_frames(model, prompt, 10)
    heard = torch.from_numpy(prompt.astype(np.int64))
    draw = model.head.make_sampler(Sampling.for_mode(MODE), torch.Generator())
    for t in range(10):
        hidden_BTH, _ = model(heard)
        frame = draw(hidden_BTH[:, -1])
        assert np.array_equal(frame[0].numpy(), babble[0, t])
        heard = torch.cat([heard, frame[:, None]], dim=1)


def test_the_same_random_seed_gives_the_same_frames_and_another_gives_others():
    model, prompts = _model(), _prompts(3, 5)
    first = generate_frames(model, prompts, 20, seed=4)
    assert np.array_equal(first, generate_frames(model, prompts, 20, seed=4))
    assert not np.array_equal(first, generate_frames(model, prompts, 20, seed=5))
    assert first.shape == (3, 20, MODE.num_fields)


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
    said = json.loads(out.with_suffix(".json").read_text())
    assert said == facts
    chosen = ("seed", "prompt_origin", "step", "frames", "generated_seconds", "alarms")
    assert [said[key] for key in chosen] == [0, f"samples:1 of {run}", 1, 100, 4.0, []]
    assert said["sampling"]["temperature"] == [1.0] * 16
    if not shutil.which("c2dec"):
        pytest.skip("c2dec is not installed: apt-get install codec2")
    subprocess.run(["c2dec", "1300", out.with_suffix(".c2"), tmp_path / "x.raw"], check=True, capture_output=True)
    assert (tmp_path / "x.raw").stat().st_size == 130 * 2 * MODE.pcm_per_frame


def test_the_prompt_can_stay_out(run: Path, tmp_path: Path):
    out = tmp_path / "b.wav"
    generate(GenerateConfig(run=run, seconds=1, with_prompt=False, out=str(out)))
    with wave.open(str(out)) as file:
        assert file.getnframes() == 8000
    assert len(read_c2(out.with_suffix(".c2"))[0]) == 25


@pytest.mark.parametrize(("prompt", "first"), [("0:10", 250), ("frame:600", 600), ("0:00:04.4", 110)])
def test_places_count_through_the_held_out_recordings(
    prompt: str, first: int, run: Path, speech_shards: Path, tmp_path: Path
):
    manifest = read_manifest(speech_shards)
    held_out = np.concatenate(
        [r.frames for split in ("validation", "test") for r in read_recordings(speech_shards, manifest, split)]
    )
    out = tmp_path / "b.wav"
    generate(GenerateConfig(run=run, seconds=0.2, prompt=prompt, prompt_frames=40, out=str(out)))
    assert np.array_equal(read_c2(out.with_suffix(".c2"))[0][:40], held_out[first : first + 40])


@pytest.mark.parametrize("prompt", ["random", "silence", "samples:2", str(SPEECH / "allison-03.ogg")])
def test_other_prompts(prompt: str, run: Path, tmp_path: Path):
    out = tmp_path / "b.wav"
    (facts,) = generate(GenerateConfig(run=run, seconds=0.2, prompt=prompt, prompt_frames=25, out=str(out)))
    assert facts["prompt_frames"] == 25
    (again,) = generate(
        GenerateConfig(run=run, seconds=0.2, prompt=prompt, prompt_frames=25, out=str(tmp_path / "c.wav"))
    )
    assert again["prompt_origin"] == facts["prompt_origin"]
    assert out.with_suffix(".c2").read_bytes() == (tmp_path / "c.c2").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "50:00"}, "--prompt 50:00: frame 75000 .* behind the end"),
        ({"prompt": "samples:9"}, "has no prompt samples:9; it has samples:1, samples:2"),
        ({"prompt": "nothing.mp3"}, "--prompt nothing.mp3: neither a time"),
        ({"prompt": __file__}, r"--prompt .*test_generate\.py: .*"),
        ({"checkpoint": "stage-7"}, "no checkpoint 'stage-7'; it has best, last"),
        ({"seconds": -1}, "above 0"),
        ({"out": "babble.mp3"}, "ends in .wav"),
        ({"seconds": float("inf")}, "a file has to end"),
        ({"temperature": "pitch=-1"}, "--temperature -1: must be above 0"),
        ({"top_p": "lps=0.9"}, "--top-p lps=0.9: mode 1300 has no 'lps'"),
        ({"guard": "bark"}, "--guard bark: none of off, watch, act"),
        ({"streams": 0}, "--streams 0: at least 1"),
        ({"streams": 2, "out": "-"}, "no more than 1 with --out -"),
    ],
)
def test_what_can_not_be_is_refused_by_name(changes: dict[str, Any], message: str, run: Path, tmp_path: Path):
    settings = {"run": run, "seconds": 0.2, "out": str(tmp_path / "b.wav"), **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(GenerateConfig(**settings))
    assert list(tmp_path.iterdir()) == []


def test_streams_side_by_side_differ_and_have_files_of_their_own(run: Path, tmp_path: Path):
    all_facts = generate(GenerateConfig(run=run, seconds=2, streams=3, out=str(tmp_path / "b.wav")))
    assert [facts["out"] for facts in all_facts] == [str(tmp_path / f"b-{n}.wav") for n in (1, 2, 3)]
    said = {read_c2(tmp_path / f"b-{n}.c2")[0][30:].tobytes() for n in (1, 2, 3)}
    assert len(said) == 3
    assert len(list(tmp_path.iterdir())) == 12


def test_a_stream_that_starts_over_goes_on_from_its_prompt_and_the_others_do_not_mind():
    model, prompts = _model("regression"), _prompts(2, 12)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)
    undisturbed = FreeRun(model, prompts)
    first, second = undisturbed.make_block(), undisturbed.make_block()
    disturbed = FreeRun(model, prompts)
    disturbed.make_block()
    disturbed.start_over(1)
    block = disturbed.make_block()
    assert np.array_equal(block[0], second[0])
    assert np.array_equal(block[1], first[1])


@pytest.fixture
def droning_run(run: Path, tmp_path: Path) -> Path:
    """A run whose network says the same loud frame for ever."""
    drone = tmp_path / "drone"
    shutil.copytree(run, drone)
    path = drone / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["state_dict"]
    for name in weights:
        if name.startswith("model.head.outs") and name.endswith("bias"):
            weights[name][...] = -1e4
            weights[name][len(weights[name]) * 2 // 3] = 1e4
    torch.save(checkpoint, path)
    return drone


def test_the_guard_says_what_it_notices_and_acts_if_asked_to(
    droning_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {"run": droning_run, "seconds": 20, "with_prompt": False, "out": str(tmp_path / "d.wav")}
    (watched,) = generate(GenerateConfig(**settings))
    (alarm,) = watched["alarms"]
    assert alarm["kind"] == "tone"
    assert alarm["at_seconds"] <= 1
    assert json.loads((tmp_path / "d.json").read_text())["alarms"] == [alarm]
    assert "d.wav: tone from " in capsys.readouterr().err
    (acted,) = generate(GenerateConfig(**settings, guard="act"))
    # It starts over and drones again, noticed every few seconds.
    assert len(acted["alarms"]) >= 3
    assert all(later["at_seconds"] > alarm["at_seconds"] for later in acted["alarms"][1:])
    (unguarded,) = generate(GenerateConfig(**settings, guard="off"))
    assert unguarded["alarms"] == []


def test_a_voice_of_half_precision_says_nearly_what_its_run_says(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = export_voice(VoiceConfig(run=run, out=tmp_path / "voice"))
    assert path.stat().st_size < 0.7 * (run / "checkpoints/best.ckpt").stat().st_size
    kept = torch.load(path, weights_only=True)
    assert all(value.dtype == torch.float16 for value in kept["state_dict"].values())
    assert str(run) not in str(kept)
    monkeypatch.setattr("babble.generate.VOICE", tmp_path / "voice")
    (facts,) = generate(GenerateConfig(seconds=2, out=str(tmp_path / "v.wav")))
    assert facts["prompt_origin"] == "silence"
    assert facts["prompt_frames"] == 25
    with pytest.raises(ValueError, match="brings no speech: name --shards"):
        generate(GenerateConfig(seconds=2, prompt="1:00", out=str(tmp_path / "v.wav")))


def test_raw_pcm_goes_to_a_player_and_no_shards_are_needed(run: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    settings = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text("\n".join(x for x in settings.splitlines() if "shards:" not in x))
    command = [sys.executable, "-m", "babble.generate", str(moved), "--seconds", "1", "--with_prompt", "false"]
    done = subprocess.run([*command, "--out", "-"], capture_output=True, cwd=tmp_path, env=_environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == 2 * 8000
    endless = subprocess.run(
        f"{' '.join([*command[:4], '--seconds', 'inf', '--out', '-'])} | head -c 100000 | wc -c",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(),
        timeout=60,
    )
    assert endless.stdout.strip() == "100000"
    assert "Traceback" not in endless.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
