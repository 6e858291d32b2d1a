"""The description of a folder of shards, and every kind of damage that must be found."""

import contextlib
import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from babble.cli import CommandError, run_command
from babble.codec.frames import MODES, TOKENS, Mode, get_mode
from babble.data.shards import MANIFEST, Manifest, Segment, write_manifest, write_shards
from jobs.inspect_shards import COMMAND, InspectConfig, check_folder, entropy_bits, inspect_shards
from preprocessing.split import SplitSegment

M1300 = get_mode("1300")
SEGMENTS = [
    SplitSegment("a", "train", 0, 3100),
    SplitSegment("b", "train", 0, 40),
    SplitSegment("a", "validation", 3100, 200),
    SplitSegment("a", "test", 3300, 1700),
]


def sample_levels(mode: Mode, num_frames: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, mode.levels, (num_frames, mode.num_fields)).astype(mode.dtype)


def make_folder(folder: Path, mode: Mode = M1300, **facts: Any) -> Manifest:
    recordings = {"a": sample_levels(mode, 5000, 1), "b": sample_levels(mode, 40, 2)}
    shards = []
    for split in ("train", "validation", "test"):
        segments = [
            Segment(s.recording, s.first_frame, recordings[s.recording][s.first_frame :][: s.frames])
            for s in SEGMENTS
            if s.split == split
        ]
        shards += write_shards(folder, split, segments, mode, 2)
    about = [
        {"name": s.recording, "split": s.split, "first_frame": s.first_frame, "frames": s.frames} | facts
        for s in SEGMENTS
    ]
    manifest = Manifest(mode, {"mode": mode.name}, about, shards, [])
    write_manifest(folder, manifest)
    return manifest


def problems(folder: Path, manifest: Manifest) -> str:
    return "\n".join(check_folder(folder, manifest).problems)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_good_folder_is_described(mode: Mode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, mode)
    inspect_shards(InspectConfig(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert f"mode {mode.name}, {mode.num_fields} fields" in lines[0]
    hours = 3140 / mode.frames_per_second / 3600
    assert f"{hours:.3f} h, 3,140 frames, 2 recordings" in lines[1]
    for field in mode.fields:
        (line,) = [line for line in lines if line.startswith(f"{field.name} ")]
        words = line.split()
        assert int(words[1]) == field.levels
        # Sampled uniformly, every level occurs and the entropy is nearly the width.
        if field.bits <= 7:
            assert [int(words[i]) for i in (2, 3, 5)] == [field.levels, 0, field.levels - 1]
        assert float(words[7]) == pytest.approx(field.bits, abs=0.1)


def test_tokens_have_neither_hours_nor_voicing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, TOKENS)
    inspect_shards(InspectConfig(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: mode tokens, 2 fields, 13 bits per token"
    assert lines[1].split() == ["train", "3,140", "tokens,", "2", "recordings"]


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    found = check_folder(tmp_path, manifest)
    frames = sample_levels(M1300, 5000, 1)
    validation, test = found.splits["validation"], found.splits["test"]
    assert (validation.frames, test.frames) == (200, 1700)
    for f in range(16):
        expected = np.bincount(frames[3300:, f], minlength=128)
        np.testing.assert_array_equal(test.histogram[f], expected)
    # Changes are counted across segments, but not from one recording to another.
    changes = np.abs(np.diff(frames[3300:].astype(int), axis=0)).sum(axis=0)
    np.testing.assert_array_equal(test.changes, changes)
    assert test.num_changes == 1699
    assert found.splits["train"].num_changes == 3099 + 39


def test_entropy_is_in_bits() -> None:
    assert entropy_bits(np.array([5, 5, 5, 5])) == 2.0
    assert entropy_bits(np.array([7, 0, 0])) == 0.0


def test_frames_and_histogram_are_written_as_csv(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    make_folder(folder)
    frames_csv, histogram_csv = tmp_path / "new/frames.csv", tmp_path / "other/histogram.csv"
    inspect_shards(InspectConfig(folder, frames_csv, histogram_csv))
    with frames_csv.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "recording", "frame", *(field.name for field in M1300.fields)]
    assert len(rows) == 1 + 5040
    frames = sample_levels(M1300, 5000, 1)
    assert rows[1 + 3140 + 7] == ["validation", "a", "3107", *map(str, frames[3107])]
    with histogram_csv.open() as file:
        counts = list(csv.DictReader(file))
    assert len(counts) == 3 * M1300.levels.sum()
    assert sum(int(row["frames"]) for row in counts if row["field"] == "E") == 5040


def test_files_that_can_not_be_written_are_refused_before_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path)
    for flag in ("--csv", "--histogram-csv"):
        config = InspectConfig(tmp_path, **{flag[2:].replace("-", "_"): Path("/proc/no/a.csv")})
        with pytest.raises(OSError, match=f"/proc/no/a.csv can't be written .*name another place with {flag}"):
            inspect_shards(config)
    with pytest.raises(ValueError, match=r"are both a\.csv: name two different files"):
        InspectConfig(tmp_path, Path("a.csv"), Path("a.csv").absolute())
    assert capsys.readouterr().out == ""


def test_a_changed_byte_in_a_tar_is_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    path = tmp_path / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    found = problems(tmp_path, manifest)
    assert "train-000000.tar has the hash" in found
    assert found.count("\n") == 0
    with pytest.raises(CommandError, match=r"copy it again, or preprocess to a new folder:\n  train-000000\.tar has"):
        inspect_shards(InspectConfig(tmp_path))


def test_a_tar_that_is_not_in_the_manifest_is_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    (tmp_path / "train-000007.tar").touch()
    assert problems(tmp_path, manifest) == "train-000007.tar is not in the manifest"


def test_tars_out_of_order_are_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    swapped = dataclasses.replace(
        manifest, shards=[manifest.shards[i] for i in (1, 0, *range(2, len(manifest.shards)))]
    )
    assert "train: recordings differ from the manifest" in problems(tmp_path, swapped)


def test_missing_recordings_are_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    del manifest.recordings[1]
    assert "train: recordings differ from the manifest: found" in problems(tmp_path, manifest)
    manifest.recordings[0]["frames"] += 1
    assert "('a', 0, 3100), expected ('a', 0, 3101)" in problems(tmp_path, manifest)


def test_wrong_counts_are_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    manifest.shards[0] = dataclasses.replace(manifest.shards[0], frames=1)
    assert "train-000000.tar has 2 entries and 3000 frames, the manifest has 2 and 1" in problems(tmp_path, manifest)


def test_frames_in_two_splits_are_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    manifest.recordings[2]["first_frame"] = 3000
    assert "recording a: frames 3000 to 3099 are in train and again in validation" in problems(tmp_path, manifest)


def test_one_file_under_two_names_is_found(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path, sha256="5eed")
    assert "recordings a and b are the same file" in problems(tmp_path, manifest)


def test_recordings_that_are_too_loud_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, energy_at_ceiling=0.2)
    inspect_shards(InspectConfig(tmp_path))
    out = capsys.readouterr().out
    assert "too loud: a has 20.0% of its frames at the codec's highest energy; try --gain-db -6" in out
    assert out.count("too loud") == 2


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_exit_code_of_the_command_shows_damage(
    is_damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(tmp_path)
    if is_damaged:
        (tmp_path / "test-000000.tar").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
    with pytest.raises(SystemExit) if is_damaged else contextlib.nullcontext() as stopped:
        run_command(InspectConfig, inspect_shards, COMMAND, positional="shards")
    assert not is_damaged or stopped.value.code == 1
    printed = capsys.readouterr()
    assert ("test-000000.tar has the hash" in printed.err) == is_damaged
    assert "train " in printed.out


def test_the_folder_must_be_named_and_hold_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name the folder of shards: babble inspect"):
        InspectConfig()
    with pytest.raises(FileNotFoundError, match=rf"has no {MANIFEST}"):
        inspect_shards(InspectConfig(tmp_path))
