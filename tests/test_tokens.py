"""From shards to a voice with tokens: `babble tokens`, a network over them, and one over frames that receives them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from babble.cli import build_config
from babble.codec.frames import TOKENS
from babble.codec.token_sequences import spread_tokens
from babble.data.config import DataConfig
from babble.data.datamodule import SpeechData
from babble.data.shards import read_manifest, read_recordings
from babble.evaluate import EvaluateConfig, evaluate
from babble.evaluation.tables import format_evaluation
from babble.export import ExportConfig, export_voice
from babble.generate import GenerateConfig, generate
from babble.model.config import ModelConfig
from babble.reporting.plots.evaluation import plot_evaluation
from babble.run_folder import RunFolder
from babble.tokenizer.config import EncoderConfig, TokensConfig
from babble.tokenizer.job import make_tokens
from babble.tokenizer.tokenizer import load_tokenizer
from babble.train import _work, train
from babble.training.config import SamplesConfig, StopConfig, TrainConfig
from babble.training.wandb_run import WandbConfig

SMALL = ModelConfig(num_layers=1, units=8, head_units=8, skips=True)


@pytest.fixture(scope="module")
def trained(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs "plain", "tokens" and "words", and the tokens of the shards in "shards"."""
    folder = tmp_path_factory.mktemp("tokens")
    base = TrainConfig(
        name="plain",
        runs=folder / "runs",
        data=DataConfig(speech_shards, reading="streams", window_frames=32, batch_size=4, windows_per_epoch=40),
        model=SMALL,
        stop=StopConfig(epochs=2),
        samples=SamplesConfig(every_epochs=0, prompts=1, prompt_frames=50, frames=50),
        wandb=WandbConfig(mode="off"),
    )
    plain = train(base).run
    out = folder / "shards"
    make_tokens(TokensConfig(speech_shards, plain, out=out, clusters=20, encoder=EncoderConfig(8, 10, 20)))
    over_tokens = replace(base, name="tokens", data=replace(base.data, shards=out, window_frames=16))
    chooses = train(over_tokens).run
    words = replace(base.data, tokens=out)
    train(replace(base, name="words", data=words, init_from=plain, token_model=chooses))
    return folder


def test_tokens_cover_every_frame_of_every_split(trained: Path, speech_shards: Path) -> None:
    manifest, tokens = read_manifest(speech_shards), read_manifest(trained / "shards")
    assert tokens.mode == TOKENS
    tokenizer = load_tokenizer(trained / "shards")
    for split in ("train", "validation"):
        pairs = zip(
            read_recordings(speech_shards, manifest, split),
            read_recordings(trained / "shards", tokens, split),
            strict=True,
        )
        for spoken, found in pairs:
            assert (spoken.recording, spoken.first_frame) == (found.recording, found.first_frame)
            assert (spread_tokens(found.frames) == tokenizer.tokenize(spoken.frames)).all()
    assert tokens.split_frames("train") < manifest.split_frames("train")


def test_a_finished_folder_is_left_as_it_is_and_other_settings_are_refused(
    trained: Path, speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice, out = trained / "runs" / "plain", trained / "shards"
    config = TokensConfig(speech_shards, voice, out=out, clusters=20, encoder=EncoderConfig(8, 10, 20))
    make_tokens(config)
    assert "is finished already" in capsys.readouterr().out
    for other in (replace(config, clusters=10), replace(config, voice=RunFolder(voice).checkpoint("last"))):
        with pytest.raises(ValueError, match="holds tokens of another voice, other shards or settings"):
            make_tokens(other)
    # Also if it was stopped before the manifest was written.
    begun = shutil.copytree(out, tmp_path / "begun")
    (begun / "manifest.json").rename(begun / ".settings.json")
    (begun / ".settings.json").write_text(json.dumps(read_manifest(out).settings))
    with pytest.raises(ValueError, match="holds tokens of another voice"):
        make_tokens(replace(config, out=begun, clusters=10))
    assert make_tokens(replace(config, out=begun)).shards == read_manifest(out).shards
    assert not (begun / ".settings.json").exists()


@pytest.mark.parametrize("source", ["shards", "runs/words"])
def test_a_tokenizer_that_exists_finds_the_same_tokens(
    source: str, trained: Path, speech_shards: Path, tmp_path: Path
) -> None:
    config = TokensConfig(speech_shards, tokenizer=trained / source, out=tmp_path / "tokens")
    found, known = make_tokens(config), read_manifest(trained / "shards")
    assert [shard.sha256 for shard in found.shards] == [shard.sha256 for shard in known.shards]
    # It can be used for yet others.
    assert make_tokens(TokensConfig(speech_shards, tokenizer=config.out, out=tmp_path / "again")).shards == found.shards
    with pytest.raises(FileNotFoundError, match="plain has no tokenizer"):
        make_tokens(replace(config, tokenizer=trained / "runs" / "plain"))


def test_a_network_over_tokens_has_no_sound(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(trained / "runs" / "tokens")
    _work(build_config(TrainConfig, run.read_config()))
    assert f"babble train --config words --token-model {run.path}" in capsys.readouterr().out
    assert run.report.is_file()
    assert not any(run.samples.rglob("*.wav"))
    found = evaluate(EvaluateConfig(run.path, babble_seconds=0))
    assert 0 < found["held_out"]["bits_per_frame"] < 13
    given = evaluate(EvaluateConfig(trained / "runs" / "words", babble_seconds=0))["tokens"]["bits_per_token"]
    assert given == pytest.approx(found["held_out"]["bits_per_frame"], rel=1e-3)
    assert "\nbits per token\n" in format_evaluation(found)
    assert plot_evaluation(found).axes[0].get_legend().get_title().get_text() == "bits per token"
    with pytest.raises(ValueError, match="use --babble-seconds 0"):
        evaluate(EvaluateConfig(run.path))
    with pytest.raises(ValueError, match="was trained on tokens, which have no sound"):
        generate(GenerateConfig(run.path, out=str(trained / "none.wav")))


def test_a_voice_with_tokens_generates_and_is_exported_whole(trained: Path, tmp_path: Path) -> None:
    run = RunFolder(trained / "runs" / "words")
    assert yaml.safe_load(run.config.read_text())["model"]["tokens"] == 512
    assert any(run.samples.glob("epoch-*/1.wav"))
    made = [
        generate(GenerateConfig(run.path, seconds=2, token_temperature=t, out=str(tmp_path / "a.wav"), guard="off"))
        for t in (0.4, None, 2.0)
    ]
    assert [len(facts) for facts in made] == [1, 1, 1]
    export_voice(ExportConfig(run.path, out=tmp_path / "voice"))
    shutil.rmtree(run.path.with_name("tokens"))
    (facts,) = generate(GenerateConfig(tmp_path / "voice", seconds=1, out=str(tmp_path / "b.wav")))
    assert facts["frames"] == 25


def test_a_voice_with_tokens_can_be_continued_without_them(trained: Path) -> None:
    settings = RunFolder(trained / "runs" / "words").read_config()
    words = build_config(TrainConfig, settings)
    assert words.data.tokens
    run = train(
        replace(
            words,
            name="without",
            data=replace(words.data, tokens=None),
            token_model=None,
            model=replace(words.model, tokens=0),
            init_from=words.run.path,
        )
    ).run
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["tokens"] == 0
    (facts,) = generate(GenerateConfig(run, seconds=1, out=str(trained / "without.wav")))
    assert facts["frames"] == 25


def test_evaluation_names_what_is_given_and_what_is_a_bound(trained: Path) -> None:
    found = evaluate(EvaluateConfig(trained / "runs" / "words", babble_seconds=0))
    tokens, given = found["tokens"], found["held_out"]["bits_per_frame"]
    assert tokens["bits_per_frame_bound"] == pytest.approx(tokens["bits_per_frame"] + given)
    assert 0 < tokens["bits_per_token"] < 13
    assert tokens["bits_per_frame"] == pytest.approx(tokens["bits_per_token"] * tokens["tokens_per_second"] / 25)


def test_settings_that_do_not_fit_are_refused(trained: Path, speech_shards: Path) -> None:
    words = DataConfig(speech_shards, tokens=trained / "shards")
    stop = StopConfig(epochs=1)
    with pytest.raises(ValueError, match=r"data\.tokens and token_model belong together"):
        TrainConfig(data=words, stop=stop)
    with pytest.raises(ValueError, match=r"model\.tokens=512 has no effect without data\.tokens"):
        TrainConfig(model=replace(SMALL, tokens=512), stop=stop)
    with pytest.raises(ValueError, match=r"data\.tokens needs data\.holding=memory"):
        DataConfig(speech_shards, tokens=trained / "shards", holding="mapped")
    with pytest.raises(ValueError, match="--clusters 1: must be from 2 to 512"):
        TokensConfig(speech_shards, trained / "runs" / "plain", out=trained / "other", clusters=1)
    for sources in ({}, {"voice": trained, "tokenizer": trained}):
        with pytest.raises(ValueError, match="name shards, a run trained on them or a tokenizer, and where to write"):
            TokensConfig(speech_shards, **sources, out=trained / "other")
    with pytest.raises(ValueError, match="--change-cost has no effect with --tokenizer"):
        TokensConfig(speech_shards, tokenizer=trained, out=trained / "other", change_cost=1.0)
    with pytest.raises(ValueError, match="--threads 0: must be at least 1"):
        TokensConfig(speech_shards, trained, out=trained / "other", threads=0)
    with pytest.raises(ValueError, match="receives tokens already"):
        make_tokens(TokensConfig(speech_shards, trained / "runs" / "words", out=trained / "other"))


def test_tokens_of_other_recordings_are_refused(trained: Path, speech_shards: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(trained / "shards", tmp_path / "tokens")
    for path in shards.glob("validation-*"):
        path.unlink()
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] != "validation"]
    manifest["recordings"] = [one for one in manifest["recordings"] if one["split"] != "validation"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    data = SpeechData(DataConfig(speech_shards, tokens=shards), seed=0)
    data.setup()
    with pytest.raises(ValueError, match="has not the tokens of recording"):
        data.val_dataloader()
    assert np.shape(data._source.read(np.zeros(1, int), 3)) == (1, 3, 20)  # type: ignore[union-attr]
