"""Prompts: positions in the held-out recordings, silence, samples prompts, audio files."""

from pathlib import Path

import numpy as np
import pytest
from paths import SPEECH
from shard_folder import write_folder

from babble.codec.codec2 import silence_frame, write_c2
from babble.codec.frames import MODES
from babble.data.shards import read_manifest, read_recordings
from babble.generation.prompts import find_prompt, spread_prompts
from babble.run_folder import RunFolder

MODE = MODES["1300"]


@pytest.fixture(scope="module")
def held_out(speech_shards: Path) -> np.ndarray:
    """The frames of both held-out splits."""
    manifest = read_manifest(speech_shards)
    splits = ("validation", "test")
    return np.concatenate([r.frames for split in splits for r in read_recordings(speech_shards, manifest, split)])


@pytest.fixture(scope="module")
def run(speech_shards: Path, held_out: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with one samples prompt of 30 frames."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    folder.claim({"data": {"shards": str(speech_shards)}})
    write_c2(folder.prompts / "1.c2", held_out[200:230], MODE)
    return folder


@pytest.mark.parametrize(("name", "first"), [("0:10", 250), ("frame:600", 600), ("0:00:04.4", 110)])
def test_positions_count_through_the_held_out_recordings(name: str, first: int, run: RunFolder, held_out: np.ndarray):
    assert np.array_equal(find_prompt(name, run, MODE, 40).frames, held_out[first : first + 40])
    assert len(find_prompt(name, run, MODE).frames) == 200


def test_a_random_prompt_is_that_of_its_seed(run: RunFolder, held_out: np.ndarray):
    first = find_prompt("random", run, MODE, 40, seed=1)
    position = int(first.origin.split()[2])
    assert np.array_equal(first.frames, held_out[position : position + 40])
    assert find_prompt("random", run, MODE, 40, seed=1).origin == first.origin
    assert find_prompt("random", run, MODE, 40, seed=2).origin != first.origin


def test_the_default_is_the_first_samples_prompt_or_a_second_of_silence(
    run: RunFolder, held_out: np.ndarray, tmp_path: Path
):
    assert np.array_equal(find_prompt(None, run, MODE).frames, held_out[200:230])
    assert np.array_equal(find_prompt("samples:1", run, MODE, 25).frames, held_out[200:225])
    silence = find_prompt(None, RunFolder(tmp_path), MODE).frames
    assert np.array_equal(silence, np.repeat(silence_frame(MODE)[None], 25, axis=0))


def test_an_audio_file_is_encoded(run: RunFolder):
    prompt = find_prompt(str(SPEECH / "allison-03.ogg"), run, MODE, 50)
    assert prompt.frames.shape == (50, MODE.num_fields)
    assert len(np.unique(prompt.frames, axis=0)) > 20


def test_encoded_speech_is_known_by_its_content(run: RunFolder, held_out: np.ndarray, tmp_path: Path):
    for name in ("a.C2", "a.wav", "a"):
        write_c2(tmp_path / name, held_out[:40], MODE)
        assert np.array_equal(find_prompt(str(tmp_path / name), run, MODE).frames, held_out[:40])
    (tmp_path / "a.c2cb").write_bytes(held_out[:40].tobytes())
    assert np.array_equal(find_prompt(str(tmp_path / "a.c2cb"), run, MODE).frames, held_out[:40])
    with pytest.raises(ValueError, match="C2 has mode 1300, but mode 3200 is needed"):
        find_prompt(str(tmp_path / "a.C2"), run, MODES["3200"])


def test_a_short_held_out_recording_is_a_whole_prompt(tmp_path: Path, held_out: np.ndarray):
    write_folder(tmp_path / "shards", MODE, {"train": {"a": held_out}, "validation": {"b": held_out[:150]}})
    prompt = find_prompt("random", RunFolder(tmp_path), MODE, shards=tmp_path / "shards")
    assert np.array_equal(prompt.frames, held_out[:150])
    with pytest.raises(ValueError, match=r"frames 0 to 150 are past the end .* which have 150 frames"):
        find_prompt("random", RunFolder(tmp_path), MODE, 151, tmp_path / "shards")


def test_shards_without_effect_and_a_negative_seed_are_refused(run: RunFolder, speech_shards: Path):
    for name, found in ((None, "samples:1"), ("silence", "silence"), (str(SPEECH / "allison-03.ogg"), ".*ogg")):
        with pytest.raises(ValueError, match=f"--shards .* has no effect with --prompt {found}: remove it"):
            find_prompt(name, run, MODE, shards=speech_shards)
    with pytest.raises(ValueError, match="--seed -1: must be at least 0 with --prompt random"):
        find_prompt("random", run, MODE, seed=-1)


def test_shards_of_another_mode_are_rejected(run: RunFolder):
    with pytest.raises(ValueError, match="has mode 1300, but the network was trained on mode 700C"):
        find_prompt("0:01", run, MODES["700C"])


def test_prompts_are_spread_evenly():
    recordings = [np.arange(700)[:, None], np.arange(700, 1000)[:, None]]
    assert spread_prompts(recordings, 3)[:, 0, 0].tolist() == [0, 400, 800]
    assert spread_prompts([np.arange(90)[:, None]], 2).shape == (2, 90, 1)
