"""Recordings -> tars -> recordings, and what a reader rejects."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES, Mode, get_mode
from babble.data.shards import (
    MANIFEST,
    SEGMENT_FRAMES,
    Manifest,
    Segment,
    open_shards,
    read_manifest,
    read_recordings,
    read_segments,
    write_manifest,
    write_shards,
)
from babble.data.training_split import map_training, read_training

M1300 = get_mode("1300")


def make_frames(mode: Mode, num_frames: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, mode.levels, (num_frames, mode.num_fields)).astype(mode.dtype)


def make_recordings(mode: Mode = M1300) -> list[Segment]:
    lengths = (10, SEGMENT_FRAMES, SEGMENT_FRAMES + 1, 4000)
    return [Segment(f"book.v2/part-{i}", 0, make_frames(mode, length, i)) for i, length in enumerate(lengths)]


def make_folder(folder: Path, mode: Mode = M1300, entries_per_shard: int = 3) -> Manifest:
    folder.mkdir(exist_ok=True)
    recordings = make_recordings(mode)
    shards = write_shards(folder, "train", recordings, mode, entries_per_shard)
    about = [{"name": r.recording, "split": "train", "first_frame": 0, "frames": len(r.frames)} for r in recordings]
    manifest = Manifest(mode, {"mode": mode.name}, about, shards, [{"name": "bad", "cause": "silent"}])
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_recordings_come_back_whole_and_in_order(mode: Mode, tmp_path: Path) -> None:
    make_folder(tmp_path, mode)
    read = read_recordings(tmp_path, read_manifest(tmp_path), "train")
    for before, after in zip(make_recordings(mode), read, strict=True):
        assert (after.recording, after.first_frame) == (before.recording, 0)
        assert after.frames.dtype == mode.dtype
        np.testing.assert_array_equal(after.frames, before.frames)


def test_a_segment_of_a_recording_keeps_its_first_frame(tmp_path: Path) -> None:
    part = Segment("a", 5000, make_frames(M1300, 2000, 0))
    shards = write_shards(tmp_path, "test", [part], M1300, 10)
    segments = list(read_segments([tmp_path / shard.name for shard in shards], M1300))
    assert [(s.first_frame, len(s.frames)) for s in segments] == [(5000, 1500), (6500, 500)]
    (read,) = read_recordings(tmp_path, Manifest(M1300, {}, [], shards, []), "test")
    assert read.first_frame == 5000
    np.testing.assert_array_equal(read.frames, part.frames)


def test_a_shard_is_what_webdataset_writes(tmp_path: Path) -> None:
    make_folder(tmp_path)
    written = (tmp_path / "train-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0, user="babble", group="babble") as writer:
        for (name, packets), (_, about) in zip(members[::2], members[1::2], strict=True):
            writer.write({"__key__": name.partition(".")[0], "c2": packets, "json": about})
    assert written == buffer.getvalue()


def test_the_same_recordings_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    assert first == second
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_shard_facts_match_the_tars(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    assert [shard.name for shard in manifest.shards] == [f"train-00000{i}.tar" for i in range(3)]
    # 1 + 1 + 2 + 3 entries, three per tar.
    assert [shard.entries for shard in manifest.shards] == [3, 3, 1]
    assert manifest.split_frames("train") == 10 + 1500 + 1501 + 4000
    assert manifest.split_hours("train") == pytest.approx(7011 / 25 / 3600)
    assert manifest.split_frames("test") == 0
    for shard in manifest.shards:
        assert hashlib.sha256((tmp_path / shard.name).read_bytes()).hexdigest() == shard.sha256
    assert read_manifest(tmp_path) == manifest


def test_an_unpacked_entry_is_a_c2_file_and_a_json_of_its_origin(tmp_path: Path) -> None:
    make_folder(tmp_path)
    subprocess.run(["tar", "-xf", "train-000001.tar"], cwd=tmp_path, check=True)
    frames, mode = read_c2(tmp_path / "train-00000003.c2")
    assert mode == M1300
    np.testing.assert_array_equal(frames, make_recordings()[2].frames[1500:])
    about = json.loads((tmp_path / "train-00000003.json").read_text())
    assert about == {"recording": "book.v2/part-2", "first_frame": 1500, "frames": 1, "mode": "1300"}


def test_no_recordings_give_no_tars(tmp_path: Path) -> None:
    assert write_shards(tmp_path, "test", [], M1300, 3) == []
    assert read_recordings(tmp_path, Manifest(M1300, {}, [], [], []), "test") == []


def test_an_illegal_level_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="v0=2"):
        write_shards(tmp_path, "train", [Segment("a", 0, np.full((3, 16), 2, np.uint8))], M1300, 3)
    assert list(tmp_path.iterdir()) == []


def test_advice_for_a_wrong_path_is_safe_to_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("my book.mp3", "notes.txt", "books/tale/part-01.ogg", "runs/demo/config.yaml", "new/.partial/lock"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    Path("runs/demo/babble.wav").touch()
    Path("empty").mkdir()
    preprocess = "Make shards with: babble preprocess --sources {} --out shards/NAME"
    for path, message in {
        "my book.mp3": "my book.mp3 is a recording, not a folder of shards. " + preprocess.format("'my book.mp3'"),
        "books": "books contains recordings, not shards. " + preprocess.format("books"),
        "runs/demo": "runs/demo is a run folder, not a folder of shards; data.shards in its config.yaml names them.",
        "new": "new is incomplete: its preprocessing did not finish. Run the same jobs.preprocess command again.",
        "notes.txt": "notes.txt is a file, not a folder of shards. Give the folder that contains manifest.json.",
        "empty": "empty is not a folder of shards: it has no manifest.json. " + preprocess.format("RECORDINGS"),
        "nowhere": "nowhere does not exist. " + preprocess.format("RECORDINGS"),
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            open_shards(Path(path))
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"data\.shards is not set: give --data\.shards"):
        open_shards(None)


def test_a_manifest_of_another_program_or_format_is_rejected(tmp_path: Path) -> None:
    for content in ("", "[1]", "{}", '"text"', "\xff"):
        (tmp_path / MANIFEST).write_text(content, "latin-1")
        with pytest.raises(ValueError, match="is not a manifest of babble"):
            read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99"):
        read_manifest(tmp_path)


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards .* the first is train-000001\.tar"):
        read_manifest(tmp_path)


def test_a_gap_between_entries_is_named(tmp_path: Path) -> None:
    first, _, third = write_shards(tmp_path, "train", [make_recordings()[3]], M1300, 1)
    with pytest.raises(ValueError, match=r"recording book\.v2/part-3 jumps from frame 1500 to 3000: a shard is"):
        read_recordings(tmp_path, Manifest(M1300, {}, [], [first, third], []), "train")


def test_an_unknown_split_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'dev' must be one of train, validation, test"):
        read_recordings(tmp_path, make_folder(tmp_path), "dev")


def test_a_shard_of_another_mode_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(ValueError, match=r"train-000000\.tar: train-00000000 has mode 1300, but the manifest"):
        list(read_segments([tmp_path / "train-000000.tar"], get_mode("3200")))


def rewrite_json(tar: Path, **changes: object) -> None:
    members = []
    with tarfile.open(tar) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name.endswith(".json"):
                data = json.dumps(json.loads(data) | changes).encode()
            members.append((member.name, data))
    with tarfile.open(tar, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_an_entry_that_lacks_frames_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    rewrite_json(tmp_path / "train-000000.tar", frames=77)
    with pytest.raises(ValueError, match="has 10 frames, but its JSON says 77: it is damaged"):
        list(read_segments([tmp_path / "train-000000.tar"], M1300))


@pytest.mark.parametrize("kept", [100, 700, 5000])
def test_a_cut_tar_is_named(tmp_path: Path, kept: int) -> None:
    make_folder(tmp_path)
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train-000000\.tar(: train-00000000)? .*damaged"):
        list(read_segments([tar], M1300))


def test_a_mapped_file_belongs_to_one_manifest(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    frames, recordings = map_training(tmp_path, manifest)
    assert np.array_equal(frames, np.concatenate([recording.frames for recording in make_recordings()]))
    assert [recording.recording for recording in recordings] == [r.recording for r in make_recordings()]
    (tmp_path / MANIFEST).write_text((tmp_path / MANIFEST).read_text() + "\n")
    map_training(tmp_path, manifest)
    assert len(list(tmp_path.glob(".train-*.npy"))) == 2


def test_recordings_that_the_manifest_contradicts_are_rejected(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    manifest.recordings[0]["frames"] += 1
    with pytest.raises(ValueError, match="the manifest's train recordings do not match its shards"):
        read_training(tmp_path, manifest)
