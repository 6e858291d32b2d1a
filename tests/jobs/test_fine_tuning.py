"""The comparison of fine-tuning with training from scratch: a small one, from shards to its tables."""

from pathlib import Path

import numpy as np
import pytest
from paths import SPEECH
from player.conftest import write_voice

from babble.data.shards import read_manifest, read_recordings
from babble.model.config import ModelConfig
from jobs.experiments import read_rows
from jobs.fine_tuning import FineTuningConfig, compare, cut_training, make_config
from jobs.preprocess.config import PreprocessConfig
from jobs.preprocess.job import preprocess


def test_the_first_minutes_are_kept_with_their_shifted_encodings(speech_shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(speech_shards)
    cut = cut_training(speech_shards, tmp_path / "cut", 0.75)
    assert cut is not None
    # The first recording has 1,000 frames, the second gives the rest of 45 s.
    assert cut.split_lengths("train") == [1000, 125]
    assert cut.split_lengths("validation") == manifest.split_lengths("validation")
    frames = [r.frames for r in read_recordings(tmp_path / "cut", cut, "train")]
    whole = [r.frames for r in read_recordings(speech_shards, manifest, "train")]
    assert all((one == all_of_it[: len(one)]).all() for one, all_of_it in zip(frames, whole, strict=True))
    assert cut_training(speech_shards, tmp_path / "cut", 0.75) == cut
    assert cut_training(speech_shards, tmp_path / "long", 60) is None


LENGTHS = {"shift 1": 749, "speed 1.2": 625, "speed 1.2, shift 1": 624}


def test_shifted_recordings_are_cut_with_theirs(tmp_path: Path) -> None:
    sources = tuple(SPEECH / f"allison-0{n}.ogg" for n in (1, 2))
    preprocess(PreprocessConfig(sources, tmp_path / "shards", shifts=2, speeds=(1, 1.2)))
    cut = cut_training(tmp_path / "shards", tmp_path / "cut", 0.5)
    assert cut is not None
    assert cut.split_lengths("train") == [750]
    first, *again = read_recordings(tmp_path / "cut", cut.with_shifted(), "train")
    manifest = read_manifest(tmp_path / "shards").with_shifted()
    whole = {
        recording.recording: recording.frames for recording in read_recordings(tmp_path / "shards", manifest, "train")
    }
    # Of the same speech, so there are fewer frames that are 1.2 times as fast; no frame reaches beyond it.
    frames = {f"{first.recording} ({name})": length for name, length in LENGTHS.items()}
    assert {recording.recording: len(recording.frames) for recording in again} == frames
    for recording in again:
        assert np.array_equal(recording.frames, whole[recording.recording][: len(recording.frames)])
        assert not np.array_equal(recording.frames, first.frames[: len(recording.frames)])


@pytest.mark.slow
def test_every_method_has_a_row_and_a_stopped_comparison_continues(
    speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = write_voice(tmp_path / "init")
    config = FineTuningConfig((speech_shards,), tmp_path / "out", ("1",), ("scratch", "upper"), ("0",), init, 30)
    compare(config)
    rows = read_rows(tmp_path / "out" / "fine-tuning.csv")
    assert [row["method"] for row in rows] == ["scratch", "upper"]
    assert all(20 < float(row["bits_per_frame"]) < 52 for row in rows)
    curves = read_rows(tmp_path / "out" / "curves.csv")
    assert {row["method"] for row in curves} == {"scratch", "upper"}
    assert all(float(row["seconds"]) >= 0 and int(row["step"]) <= 30 for row in curves)
    assert [path.stem for path in (tmp_path / "out").glob("*.png")] == [curves[0]["voice"]]
    capsys.readouterr()
    compare(config)
    assert capsys.readouterr().out == ""


def test_methods_differ_in_what_is_trained(tmp_path: Path) -> None:
    model = ModelConfig(num_layers=2, units=320, skips=True)
    config = FineTuningConfig((tmp_path,))
    made = {m: make_config(config, tmp_path, 5, m, 0, model) for m in ("scratch", "all", "ends", "upper")}
    assert (made["scratch"].model.units, made["scratch"].init_from) == (160, None)
    assert made["all"].unfreezing == ()
    assert [stage.layers for stage in made["ends"].unfreezing] == [()]
    assert [stage.layers for stage in made["upper"].unfreezing] == [(2,), (1, 2)]
    with pytest.raises(ValueError, match="name a folder of shards per voice"):
        FineTuningConfig()
