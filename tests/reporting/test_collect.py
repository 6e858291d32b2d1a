"""What the report takes from the folders of runs and sweeps."""

import base64
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from paths import SPEECH

from babble.codec.codec2 import read_c2, write_c2
from babble.codec.frames import MODES, energy_db, lsp_hz, pitch_hz
from babble.reporting.collect import MAX_POINTS, gather_report, pick_evenly, read_curves
from babble.reporting.render import write_report

NAMES = ["first", "second", "third"]


def decode(clip: dict[str, str]) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(clip["audio"])), dtype="int16")


def test_runs_with_the_same_prompts_share_rows_and_real_speech(runs: list[Path]):
    rows = gather_report(runs, epochs=1)["rows"]
    prompts = json.loads((runs[0] / "samples/prompts/prompts.json").read_text())
    frames, _ = read_c2(runs[0] / "samples/prompts/1.c2")
    assert len(rows) == len(prompts)
    for row, prompt in zip(rows, prompts, strict=True):
        assert [clip["run"] for clip in row["clips"]] == [None, *NAMES]
        assert (row["recording"], row["second"]) == (prompt["recording"], prompt["first_frame"] / 25)
        assert row["prompt_seconds"] == len(frames) / 25


def test_runs_with_prompts_of_another_length_have_rows_of_their_own(runs: list[Path], run: Path):
    for path in (run / "samples/prompts").glob("*.c2"):
        frames, mode = read_c2(path)
        write_c2(path, frames[:25], mode)
    rows = gather_report([runs[0], run], epochs=1)["rows"]
    found = [(row["prompt_seconds"], [clip["run"] for clip in row["clips"]]) for row in rows]
    assert found == 2 * [(4.0, [None, str(runs[0])])] + 2 * [(1.0, [None, str(run)])]


def test_a_user_s_copies_of_samples_are_ignored(runs: list[Path], run: Path):
    shutil.copytree(run / "samples/epoch-0002", run / "samples/epoch-0002 copy")
    shutil.copy(run / "samples/prompts/1.c2", run / "samples/prompts/1 copy.c2")
    found, expected = (gather_report([path], epochs=2) for path in (run, runs[0]))
    assert found["rows"] == expected["rows"]
    assert found["runs"][0]["sampled_epochs"] == [1, 2]


def test_a_clip_holds_the_samples_without_loss_and_their_frames(runs: list[Path]):
    clip = gather_report(runs[:1], epochs=1)["rows"][1]["clips"][1]
    folder = runs[0] / "samples/epoch-0002"
    frames, mode = read_c2(folder / "2.c2")
    assert clip["frames"]["levels"] == frames.tolist()
    assert clip["seconds"] == len(frames) / 25
    pcm, rate = decode(clip)
    assert np.array_equal(pcm, soundfile.read(folder / "2.wav", dtype="int16")[0])
    assert clip["rate_hz"] == rate == 8000
    pitch = pitch_hz(frames, mode)
    assert pitch is not None
    assert [hz is None for hz in clip["frames"]["pitch_hz"]] == np.isnan(pitch).tolist()
    assert clip["frames"]["energy_db"] == pytest.approx(energy_db(frames, mode), abs=0.051)
    assert np.array_equal(clip["frames"]["lsp_hz"], lsp_hz(frames, mode))


def test_original_recordings_come_before_their_decoded_frames(runs: list[Path]):
    for row in gather_report(runs[:1], 1, [SPEECH / "allison-07.ogg"])["rows"]:
        recording, decoded = row["clips"][:2]
        assert (recording["is_recording"], recording["run"], decoded["is_recording"]) == (True, None, False)
        assert recording["seconds"] == decoded["seconds"]
        pcm, rate = decode(recording)
        first = round(row["second"] * rate)
        whole, _ = soundfile.read(SPEECH / "allison-07.ogg", dtype="int16")
        # Vorbis is decoded to fractions, which libsndfile rounds in its own way.
        np.testing.assert_allclose(pcm, whole[first : first + len(pcm)], atol=1)
        # The same speech at the same time: its loudness follows that of the frames.
        energy = energy_db(np.array(decoded["frames"]["levels"]), MODES["1300"])
        assert energy is not None
        loudness = np.log(np.abs(pcm.reshape(len(energy), -1).astype(float)).mean(axis=1) + 1)
        assert np.corrcoef(loudness, energy)[0, 1] > 0.7


@pytest.mark.parametrize(
    ("source", "message"), [("allison-01.ogg", "no recording named allison-07"), ("nobody.ogg", "does not exist")]
)
def test_missing_recordings_are_named(source: str, message: str, runs: list[Path]):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gather_report(runs[:1], 1, [SPEECH / source])


def test_frames_are_not_accepted_as_recordings(runs: list[Path], tmp_path: Path):
    shutil.copy(runs[0] / "samples/real/1.c2", tmp_path / "allison-07.c2")
    with pytest.raises(ValueError, match="holds codec frames, not audio"):
        gather_report(runs[:1], 1, [tmp_path / "allison-07.c2"])


def test_a_run_is_described_by_its_settings_curves_and_result(runs: list[Path]):
    found = gather_report(runs, epochs=3)
    facts = found["runs"][1]
    finished = json.loads((runs[1] / "finished.json").read_text())
    assert {key: facts[key] for key in finished} == finished
    assert facts["settings"]["model.units"] == "12"
    assert facts["baselines"].keys() >= {"unigram baseline", "copy baseline"}
    rows = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "val/bits_per_frame" in row]
    assert facts["curves"]["val/bits_per_frame"] == {
        "steps": [row["step"] for row in rows],
        "values": [row["val/bits_per_frame"] for row in rows],
    }
    assert {1, 2} <= set(facts["curves"]["train/stage"]["values"])
    assert "train/bits_per_frame" in facts["curves"]
    assert facts["shown_epochs"] == facts["sampled_epochs"] == [1, 2]
    titles = [(picture["title"], picture["run"]) for picture in found["progressions"]]
    assert titles == [("Real speech, held out", None), *((f"{name}, epoch 2", name) for name in NAMES)]


def test_a_long_curve_is_thinned_and_values_that_are_not_finite_become_none(tmp_path: Path):
    lines = [json.dumps({"step": step, "train/loss": step or float("nan")}) for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curve = read_curves(tmp_path / "metrics.jsonl")["train/loss"]
    assert len(curve["steps"]) == MAX_POINTS
    assert (curve["steps"][0], curve["steps"][-1]) == (0, 4999)
    assert (curve["values"][0], curve["values"][-1]) == (None, 4999)


def test_items_are_picked_evenly_with_the_last():
    assert pick_evenly([*range(1, 11)], 1) == [10]
    assert pick_evenly([*range(1, 11)], 3) == [1, 5, 10]
    assert pick_evenly([*range(1, 11)], 20) == [*range(1, 11)]


def test_evaluations_of_one_split_share_a_table(runs: list[Path], run: Path):
    second = run.rename(run.with_name("copy"))
    found = json.loads((second / "evaluation.json").read_text())
    (second / "evaluation.json").write_text(json.dumps(found | {"speech": {"statistics": {"clips": 3}}}))
    with mock.patch("babble.reporting.collect.format_statistics", lambda statistics: f"{statistics['clips']} clips"):
        (table,) = gather_report([runs[0], second], epochs=1)["evaluations"]
    assert [row["name"] for row in table["rows"]] == [*found["baselines"], "first", "copy"]
    assert table["rows"][-1]["metrics"]["bits_per_frame"] == found["held_out"]["bits_per_frame"]
    assert table["statistics"] == [{"name": "copy", "text": "3 clips"}]


def test_a_sweep_is_ranked_and_has_its_pictures(sweep: Path):
    (found,) = gather_report([sweep], epochs=1)["sweeps"]
    assert [configuration["values"] for configuration in found["configurations"]] == [["16"], ["8"]]
    assert [configuration["mean"] for configuration in found["configurations"]] == [24, 32]
    assert [picture["name"] for picture in found["pictures"]] == ["answer.png"]


def test_a_run_that_has_just_started_is_reported_with_what_exists(run: Path):
    for name in ("metrics.jsonl", "finished.json", "baselines.json", "environment.json", "evaluation.json"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    found = write_report([run], run / "page.html")
    assert (found["runs"][0]["best"], found["rows"], found["progressions"]) == (None, [], [])
    assert (run / "page.html").stat().st_size < 500_000


def test_every_training_leaves_its_report(runs: list[Path]):
    assert "<title>babble: first</title>" in (runs[0] / "report.html").read_text()


def test_two_runs_with_one_name_are_labelled_by_their_paths(runs: list[Path], run: Path):
    names = [facts["name"] for facts in gather_report([runs[0], run], epochs=1)["runs"]]
    assert names == [str(runs[0]), str(run)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("baselines.json", "{", r"baselines\.json is damaged, not JSON"),
        ("samples/prompts/prompts.json", "nothing", r"prompts\.json is damaged, not JSON"),
        ("config.yaml", "a: [", r"config\.yaml is damaged, expected settings in YAML"),
        ("config.yaml", "words", r"config\.yaml is damaged, expected settings in YAML"),
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "train/loss": "much"}\n', r"metrics\.jsonl: line 2 is damaged"),
        ("metrics.jsonl", "step,loss\n1,2\n", r"metrics\.jsonl: line 1 is damaged"),
        ("samples/real/1.wav", "RIFF", r"real/1\.wav can't be read"),
        ("samples/real/1.c2", "C2", r"real/1\.c2: does not start with"),
    ],
)
def test_a_damaged_file_is_named_and_an_older_page_is_kept(name: str, content: str, message: str, run: Path):
    page = run / "page.html"
    page.write_text("older")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report([run], page)
    assert page.read_text() == "older"
