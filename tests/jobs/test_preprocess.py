"""The preprocessing job with a real Ray: the bytes of its shards, kills, full disks and bad recordings."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
from paths import ROOT, SPEECH

from babble.cli import CommandError
from babble.codec.codec2 import encode_pcm, write_c2
from babble.codec.frames import MODES, Mode, get_mode, unpack_packets
from babble.data.shards import MANIFEST, SPLITS, STAGING, read_manifest, read_recordings
from babble.evaluate import EvaluateConfig, evaluate
from babble.ray_cluster import start_ray
from babble.training.wandb_run import WandbConfig, WandbRun
from jobs.inspect_shards import check_folder
from jobs.preprocess import driver, output, report, worker
from jobs.preprocess.config import COMMAND, PreprocessConfig
from jobs.preprocess.job import preprocess
from jobs.preprocess.output import STAMPS
from jobs.preprocess.staging import open_staging
from preprocessing.audio import open_recording
from preprocessing.sources import Source
from preprocessing.split import SplitConfig

M1300 = get_mode("1300")


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    """One Ray for all tests that call `preprocess`, which uses a running Ray and does not stop it."""
    import ray

    start_ray(cores=2)
    yield
    ray.shutdown()


def read_speech(number: int, seconds: float) -> np.ndarray:
    values, _ = soundfile.read(SPEECH / f"allison-{number:02d}.ogg", dtype="int16", stop=int(seconds * 8000))
    return values


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine chapters of 4 to 12 seconds in several formats."""
    folder = tmp_path_factory.mktemp("sources") / "book"
    folder.mkdir()
    for number in range(1, 9):
        suffix = ("wav", "flac", "mp3", "ogg")[number % 4]
        soundfile.write(folder / f"chapter-{number}.{suffix}", read_speech(number, 4 + number), 8000)
    write_c2(folder / "chapter-9.c2", unpack_packets(encode_pcm(read_speech(1, 40)[-8 * 8000 :], M1300), M1300), M1300)
    return folder


def config(sources: Path | list[Path], out: Path, **changes: Any) -> PreprocessConfig:
    listed = tuple(sources) if isinstance(sources, list) else (sources,)
    return PreprocessConfig(
        **{"sources": listed, "out": out, "shifts": 2, "speeds": (1, 1.04), "chunk_seconds": 2, "workers": 2} | changes
    )


def hash_folder(folder: Path) -> dict[str, str]:
    """The hashes of everything that must not differ: every tar, and the manifest."""
    names = [path.name for path in folder.iterdir() if path.name.endswith(".tar")] + [MANIFEST]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}


@pytest.fixture(scope="module")
def undisturbed(book: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the book's shards, made by two workers without a disturbance."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    preprocess(config(book, out))
    return hash_folder(out)


def start_command(*words: object, **environment: str) -> subprocess.Popen[str]:
    # This process's Ray has set variables for itself.
    others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.preprocess", "--shifts", "2", "--speeds", "1", "1.04", *map(str, words)],
        cwd=ROOT,
        env=others | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], command: subprocess.Popen[str] | None = None) -> None:
    while not condition():
        assert command is None or command.poll() is None, "the command has ended"
        time.sleep(0.02)


def list_workers(pid: int) -> set[int]:
    """Return all processes that a command has started, without those of Ray that idle for a while after a kill.

    Ray's two agents give up after a minute and a half, a worker that is just starting after half a minute.
    """
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    names = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in found - {pid}}
    return {child for child, name in names.items() if b"Agent" not in name and b"default_worker" not in name}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def staged_chunks(out: Path) -> dict[Path, tuple[int, int]]:
    """Return each staged chunk with its inode and time, which differ once it is written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / STAGING).glob("*/*/*.packets")}


def test_shards_hold_the_frames_of_one_plain_loop(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    preprocess(config(book, out, split=SplitConfig(validation=("chapter-8",), test=("book/chapter-9",))))
    manifest = read_manifest(out)
    recordings = {
        r.recording: r for split in ("train", "validation", "test") for r in read_recordings(out, manifest, split)
    }
    assert len(recordings) == 9
    for path in book.iterdir():
        if path.suffix == ".c2":
            packets = path.read_bytes()[7:]
        else:
            with open_recording(path) as recording:
                packets = encode_pcm(np.concatenate(list(recording.pcm_blocks())), M1300)
        np.testing.assert_array_equal(recordings[f"book/{path.stem}"].frames, unpack_packets(packets, M1300))
    assert [r["name"] for r in manifest.recordings if r["split"] != "train"] == ["book/chapter-8", "book/chapter-9"]
    assert not (out / STAGING).exists()


def test_training_recordings_are_encoded_again_shifted_and_at_another_speed(book: Path, tmp_path: Path) -> None:
    # Chapter 9, which is Codec 2 already, is for training too.
    split = SplitConfig(validation=("chapter-8",), test=("chapter-7",))
    outs = [tmp_path / "one", tmp_path / "other"]
    for out in outs:
        preprocess(config(book, out, split=split, shifts=3, speeds=(0.9, 1)))
    assert hash_folder(outs[0]) == hash_folder(outs[1])
    plain = tmp_path / "plain"
    preprocess(config(book, plain, split=split, shifts=1, speeds=(1,)))
    manifest, training = read_manifest(outs[0]), read_manifest(outs[0]).with_shifted()
    assert manifest.recordings == read_manifest(plain).recordings
    for name in ("train-000000.tar", "validation-000000.tar", "test-000000.tar"):
        assert hash_folder(outs[0])[name] == hash_folder(plain)[name]

    train = [r["name"] for r in manifest.recordings if r["split"] == "train"]
    encodings = ("shift 1", "shift 2", "speed 0.9", "speed 0.9, shift 1", "speed 0.9, shift 2")
    again = [f"{name} ({encoding})" for encoding in encodings for name in train]
    recordings = {r.recording: r for r in read_recordings(outs[0], training, "train")}
    assert list(recordings) == [r["name"] for r in training.of_split("train")] == train + again
    frames = recordings["book/chapter-1"].frames
    with open_recording(book / "chapter-1.flac") as recording:
        pcm = np.concatenate(list(recording.pcm_blocks()))[: len(frames) * 320]
    for shift, later in ((1, 320 - 106), (2, 320 - 213)):
        expected = unpack_packets(encode_pcm(pcm[later:], M1300), M1300)
        np.testing.assert_array_equal(recordings[f"book/chapter-1 (shift {shift})"].frames, expected)
    for name in ("chapter-1", "chapter-9"):
        slow = recordings[f"book/{name} (speed 0.9)"].frames
        assert len(slow) == int(len(recordings[f"book/{name}"].frames) / 0.9)
    # A report of hours counts each second of speech once.
    assert (
        "5 more times from fractions of a frame earlier and at speeds 0.9, 1\n" in (outs[0] / "report.txt").read_text()
    )
    assert manifest.split_hours("train") == read_manifest(plain).split_hours("train")
    assert check_folder(outs[0], manifest).problems == []


def test_a_shifted_recording_does_not_reach_into_the_held_out_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", read_speech(1, 20), 8000)
    preprocess(config(tmp_path / "a.wav", tmp_path / "shards", shifts=4, speeds=(1, 0.8)))
    manifest = read_manifest(tmp_path / "shards")
    train, *held_out = manifest.recordings
    assert (train["split"], train["first_frame"]) == ("train", 0)
    assert [recording["split"] for recording in held_out] == ["validation", "test"]
    # Frame i of a shifted recording is speech of frames i and i + 1.
    spans = [(again["first_frame"], again["frames"]) for again in manifest.shifted]
    assert spans[:3] == [(0, train["frames"] - 1)] * 3
    # Frame i at speed 0.8 is speech of frames 0.8 * i to 0.8 * (i + 1), shifted by a quarter to three quarters of that.
    longer = train["frames"] / 0.8
    assert spans[3:] == [(0, int(longer))] + [(0, int(longer - later)) for later in (0.75, 0.5, 0.25)]


def test_the_manifest_describes_each_recording(book: Path, tmp_path: Path) -> None:
    preprocess(config(book, tmp_path / "shards"))
    manifest = read_manifest(tmp_path / "shards")
    (about,) = [r for r in manifest.recordings if r["name"] == "book/chapter-1"]
    path = book / "chapter-1.flac"
    assert about["file"] == path.name
    assert about["bytes"] == path.stat().st_size
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (about["kind"], about["rate_hz"], about["channels"]) == ("FLAC", 8000, 1)
    assert about["seconds"] == 5.0
    assert about["frames"] == 125
    assert 0.5 < about["voiced"] < 1
    assert manifest.settings["chunk_seconds"] == 2
    assert str(tmp_path) not in (tmp_path / "shards" / MANIFEST).read_text()


@pytest.mark.parametrize("mode", [mode for mode in MODES.values() if not mode.is_encoding_local], ids=lambda m: m.name)
def test_predictive_modes_make_the_same_bytes_with_any_number_of_workers(
    mode: Mode, book: Path, tmp_path: Path
) -> None:
    speech = book / "chapter-8.wav"
    for workers in (1, 2):
        preprocess(config(speech, tmp_path / str(workers), workers=workers, mode=mode.name))
    assert hash_folder(tmp_path / "1") == hash_folder(tmp_path / "2")


def test_a_killed_run_is_finished_by_the_same_command(
    book: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    command = start_command("--sources", book, "--out", out, "--chunk-seconds", 2)
    wait_until(lambda: len(staged_chunks(out)) >= 6, command)
    children = list_workers(command.pid)
    command.kill()
    command.communicate()
    assert not (out / MANIFEST).exists()
    assert len(children) >= 3
    wait_until(lambda: not any(map(is_running, children)))
    before = staged_chunks(out)
    assert 6 <= len(before) < 37

    # Keep the staging, to see whether a chunk was written twice.
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    (out / STAGING / "unpacked").rmdir()
    preprocess(config(book, out))
    after = staged_chunks(out)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    assert hash_folder(out) == undisturbed


@pytest.mark.parametrize("fails_in", ["write_shards", "write_manifest", "rmtree"])
def test_a_run_that_dies_while_it_writes_is_finished_by_the_same_command(
    book: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    out = tmp_path / "shards"
    calls = []

    def die(*args: object, **options: object) -> None:
        calls.append(args)
        # The first call of rmtree is at the start, the second call of write_shards is for the second split.
        if fails_in == "write_manifest" or len(calls) == 2:
            raise RuntimeError("killed here")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        where = shutil if fails_in == "rmtree" else output
        original = getattr(where, fails_in)
        patch.setattr(where, fails_in, die)
        with pytest.raises(RuntimeError, match="killed here"):
            preprocess(config(book, out))
    assert (out / STAGING).is_dir()
    preprocess(config(book, out))
    assert hash_folder(out) == undisturbed
    assert not (out / STAGING).exists()


@pytest.fixture
def unaccepted(book: Path, tmp_path: Path) -> Path:
    """A folder whose staging was kept because a recording failed; the recording is fixed afterwards."""
    (tmp_path / "fixed.wav").write_text("not yet")
    with pytest.raises(CommandError, match="failed recordings: 1, accepted: 0"):
        preprocess(config([book, tmp_path / "fixed.wav"], tmp_path / "shards"))
    soundfile.write(tmp_path / "fixed.wav", read_speech(2, 7), 8000)
    return tmp_path / "shards"


def test_only_missing_chunks_are_encoded_again(unaccepted: Path, book: Path, tmp_path: Path) -> None:
    before = staged_chunks(unaccepted)
    (facts,) = [path for path in unaccepted.glob(f"{STAGING}/*/*/facts.json") if "chapter-8" in path.read_text()]
    facts.unlink()
    lost = facts.with_name("000002.packets")
    lost.unlink()
    (tmp_path / "fixed.wav").write_text("no, not yet")
    with pytest.raises(CommandError, match="failed recordings: 1, accepted: 0"):
        preprocess(config([book, tmp_path / "fixed.wav"], unaccepted))
    after = staged_chunks(unaccepted)
    assert {path for path in after if after[path] != before[path]} == {lost}


def test_a_folder_that_is_being_rewritten_is_not_finished(
    unaccepted: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed here")

    assert (unaccepted / MANIFEST).exists()
    with monkeypatch.context() as patch:
        patch.setattr(output, "write_shards", die)
        with pytest.raises(RuntimeError, match="killed here"):
            preprocess(config([book, tmp_path / "fixed.wav"], unaccepted))
    assert not (unaccepted / MANIFEST).exists()
    preprocess(config([book, tmp_path / "fixed.wav"], unaccepted))
    assert "fixed" in {recording["name"] for recording in read_manifest(unaccepted).recordings}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_at_once_and_finished_chunks_are_kept(tmp_path: Path, sent: signal.Signals) -> None:
    out, sources = tmp_path / "shards", tmp_path / "sources"
    sources.mkdir()
    # More than is encoded before the signal, even on a busy machine.
    for number in range(200):
        (sources / f"chapter-{number}.ogg").symlink_to(SPEECH / f"allison-0{number % 8 + 1}.ogg")
    command = start_command("--sources", sources, "--out", out, "--chunk-seconds", 1)
    wait_until(lambda: len(staged_chunks(out)) >= 6, command)
    children = list_workers(command.pid)
    # As a terminal and Slurm do: to every process of the group.
    os.killpg(command.pid, sent)
    _, errors = command.communicate()
    # Ray's core now and then logs what it could no longer send to a driver that is ending.
    errors = re.sub(r"^\[\d{4}-.* task_manager\.cc:.*\n", "", errors, flags=re.MULTILINE)
    if sent == signal.SIGINT:
        assert command.returncode == 130
        assert errors == (
            "\nSIGINT: stopping; press Ctrl-C again to stop at once\n"
            f"{COMMAND}: stopped. Finished chunks are kept; the same command continues from there.\n"
        )
    else:
        assert command.returncode == -signal.SIGTERM
        assert errors == ""
    wait_until(lambda: not any(map(is_running, children)))
    assert len(staged_chunks(out)) >= 6


def test_a_finished_folder_says_so_at_once(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    preprocess(config(book, out))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    preprocess(config(book, out))
    assert capsys.readouterr().out.startswith(f"{out} is finished already: 0.0")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_settings_are_refused_with_both_values(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    other = config(book, out, mode="3200", gain_db=3.0, split=SplitConfig(test=("chapter-1",)))
    message = r"gain_db: was 0\.0, now 3\.0; mode: was '1300', now '3200'; split\.test: was \[\], now \['chapter-1'\]"
    with open_staging(out, config(book, out).output_settings):
        pass
    for _ in ("started", "finished"):
        with pytest.raises(ValueError, match=message):
            preprocess(other)
        preprocess(config(book, out))


def test_a_folder_with_the_settings_of_another_version_is_refused(book: Path, tmp_path: Path) -> None:
    settings = config(book, tmp_path).output_settings
    settings["piece_seconds"] = settings.pop("chunk_seconds")
    with open_staging(tmp_path, settings):
        pass
    with pytest.raises(ValueError, match=r"another version of babble \(chunk_seconds, piece_seconds differ\)"):
        preprocess(config(book, tmp_path))


def test_other_sources_for_a_finished_folder_are_refused(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first, second = book / "chapter-1.flac", book / "chapter-5.flac"
    preprocess(config([first], out))
    with pytest.raises(ValueError, match=r"recording chapter-5 was missing, now it is [\d,]+ bytes"):
        preprocess(config([first, second], out))
    with pytest.raises(ValueError, match=r"recording chapter-1 was [\d,]+ bytes, now it is missing"):
        preprocess(config([second], out))


def test_a_source_of_the_same_size_with_other_bytes_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "shards", tmp_path / "a.wav"
    contents = []
    for number in (1, 2):
        soundfile.write(path, read_speech(number, 4), 8000)
        contents.append(path.read_bytes())
    first, other = contents
    assert len(first) == len(other)

    def zip_it(data: bytes, year: int) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("a.wav", (year, 1, 1, 0, 0, 0)), data)

    def rewrite(data: bytes, year: int) -> None:
        path.write_bytes(data)
        os.utime(path, (year * 10**6, year * 10**6))

    for source, write in ((path, rewrite), (tmp_path / "a.zip", zip_it)):
        write(first, 2000)
        preprocess(config(source, out))
        capsys.readouterr()
        write(first, 2001)
        preprocess(config(source, out))
        assert "is finished already" in capsys.readouterr().out
        for _ in range(2):
            write(other, 2002)
            with pytest.raises(
                ValueError, match=r"recording \S*a has other bytes now, 64,044 bytes as before. Use anoth"
            ):
                preprocess(config(source, out))
            # As in a folder made by an earlier version of babble.
            (out / STAMPS).unlink(missing_ok=True)
        write(first, 2002)
        preprocess(config(source, out))
        shutil.rmtree(out)


def test_a_split_that_names_only_recordings_that_failed_is_refused(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, gone, out = tmp_path / "bad.mp3", tmp_path / "gone.mp3", tmp_path / "shards"
    bad.write_bytes(b"no sound")
    gone.symlink_to("nowhere")
    sources = [book, bad, tmp_path / "folder"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/gone.mp3").symlink_to("nowhere")
    message = r"--split.validation names only recordings that failed \({}\), so no shards were written"
    for name, max_failures in (("gone", 0), ("gone", 2)):
        with pytest.raises(CommandError, match=message.format("folder/gone")):
            preprocess(config(sources, out, max_failures=max_failures, split=SplitConfig(validation=(name,))))
        assert not out.exists()
    split = SplitConfig(validation=("bad",), test=("chapter-1",))
    with pytest.raises(CommandError, match=message.format("bad") + "; see .*report.txt"):
        preprocess(config(sources, out, max_failures=2, split=split))
    assert "bad: not audio" in (out / "report.txt").read_text()
    assert "failed: 2 of 11 recordings" in capsys.readouterr().out
    assert not (out / MANIFEST).exists()
    soundfile.write(tmp_path / "bad.wav", read_speech(3, 4), 8000)
    preprocess(config([book, tmp_path / "bad.wav"], out, split=split))


def test_gain_says_which_recordings_it_was_not_applied_to(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess(config([book / "chapter-1.flac", book / "chapter-9.c2"], tmp_path / "shards", gain_db=-3.0))
    line = "  --gain-db -3 was not applied to 1 recording, which is Codec 2 already\n"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "shards/report.txt").read_text()
    preprocess(config(book / "chapter-1.flac", tmp_path / "audio", gain_db=-3.0))
    assert "was not applied" not in capsys.readouterr().out


def test_names_that_are_not_utf_8_end_nothing(book: Path, tmp_path: Path) -> None:
    """The whole command, on a terminal that shows only ASCII."""
    folder, out = (tmp_path / os.fsdecode(name) for name in (b"b\xfccher", b"sh\xe4rds"))
    for name in (
        b"caf\xe9.flac",
        "d\u0159evo/deep.flac".encode(),
        b"th\xe8.txt",
        b"ruin\xe9.mp3",
        "d\u0159.txt".encode(),
    ):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no sound")
    shutil.copy(book / "chapter-1.flac", folder / os.fsdecode(b"caf\xe9.flac"))
    shutil.copy(book / "chapter-5.flac", folder / "d\u0159evo/deep.flac")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(book / "chapter-8.wav", "caf\xe9.wav")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace("\xe9".encode(), b"\xff\xfe"))
    words = ("--sources", folder, "--sources", tmp_path / "a.zip", "--out", out, "--max-failures", 1)
    test = ("--split.test", os.fsdecode(b"caf\xe9"))
    # Where the locale is C, Python reads and writes UTF-8 unless PYTHONUTF8=0.
    for expected, utf8 in (("  b\\ufffdcher/ruin\\ufffd: not audio", "1"), ("is finished already", "0")):
        command = start_command(*words, *test, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8=utf8)
        printed, errors = command.communicate()
        assert (command.returncode, errors) == (0, "")
        assert expected in printed
    manifest = read_manifest(out)
    splits = {recording["name"]: recording["split"] for recording in manifest.recordings}
    assert splits == {
        "b\ufffdcher/caf\ufffd": "test",
        "b\ufffdcher/d\u0159evo/deep": "train",
        "a/caf\ufffd\ufffd": "train",
    }
    assert {recording["file"] for recording in manifest.recordings} == {
        *("caf\ufffd.flac", "deep.flac", "caf\ufffd\ufffd.wav")
    }
    report = (out / "report.txt").read_text()
    assert f"  skipped: {tmp_path}/b\ufffdcher/th\ufffd.txt: not audio\n" in report
    assert "d\u0159.txt: not audio\n" in report


def test_a_second_process_on_the_same_folder_is_refused(book: Path, tmp_path: Path) -> None:
    with (
        open_staging(tmp_path, config(book, tmp_path).output_settings),
        pytest.raises(CommandError, match="is in use by another preprocessing"),
    ):
        preprocess(config(book, tmp_path))
    preprocess(config(book, tmp_path))


@pytest.fixture
def bad_book(tmp_path: Path) -> Path:
    """A folder of every kind of bad recording, and two good ones."""
    folder = tmp_path / "bad"
    folder.mkdir()
    speech = read_speech(1, 6)
    for number, name in enumerate(("good-1.wav", "good-2.wav", "twice.wav", "twice.flac"), 1):
        soundfile.write(folder / name, read_speech(number, 6), 8000)
    values = (speech / 32768).astype(np.float32)
    values[9000] = np.nan
    soundfile.write(folder / "nan.wav", values, 8000, subtype="FLOAT")
    whole = (folder / "good-1.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "whole.flac", read_speech(5, 24), 8000)
    flac = (folder / "whole.flac").read_bytes()
    (folder / "whole.flac").rename(folder / "big.flac")
    (folder / "cut.flac").write_bytes(flac[: len(flac) * 3 // 4])
    (folder / "copy.flac").write_bytes(flac)
    (folder / "wrong.mp3").write_bytes(flac)
    (folder / "text.ogg").write_text("no audio " * 1000)
    (folder / "empty.m4b").touch()
    soundfile.write(folder / "silent.wav", np.zeros(16000), 8000)
    soundfile.write(folder / "short.wav", speech[:7000], 8000)
    (folder / "gone.mp3").symlink_to("nowhere.mp3")
    write_c2(folder / "mode.c2", np.zeros((100, 14), np.uint8), get_mode("3200"))
    (folder / "still.c2cb").write_bytes(bytes(1600))
    (folder / "part.c2cb").write_bytes(bytes(161))
    (folder / "level.c2cb").write_bytes(bytes([255]) * 1600)
    (folder / "notes.txt").write_text("Read on a rainy day.")
    with zipfile.ZipFile(folder / "zip.zip", "w") as archive:
        archive.writestr("inside.ogg", "no audio either " * 1000)
        archive.write(folder / "good-2.wav", "good-4.wav")
    return folder


CAUSES = {
    "bad/cut": "two files with the same name",
    "bad/empty": "empty: the file has no bytes",
    "bad/gone": "unreadable",
    "bad/level": "frame 0 has v0=255, but in mode 1300 v0 has 2 levels",
    "bad/mode": "encoded in mode 3200, expected mode 1300",
    "bad/nan": "NaN or infinite values",
    "bad/part": "truncated: 161 bytes are not a whole number of 16-byte frames",
    "bad/short": "too short: 0.88 s",
    "bad/silent": "silent",
    "bad/still": "silent: all frames are the same",
    "bad/text": "not audio",
    "bad/twice": "two files with the same name",
    "bad/zip/inside": "not audio",
}


def test_bad_recordings_are_named_and_do_not_stop_the_others(
    bad_book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    with pytest.raises(CommandError, match=r"failed recordings: \d+, accepted: 0.* --max-failures \d+"):
        preprocess(config(bad_book, out))
    manifest = read_manifest(out)
    # Of two files with the same name the first is read: the FLAC, which is cut.
    causes: dict[str, list[str]] = {}
    for failure in manifest.failures:
        causes.setdefault(failure["name"], []).append(failure["cause"])
    assert causes.keys() == CAUSES.keys()
    for name, cause in CAUSES.items():
        assert any(cause in found for found in causes[name]), causes[name]
    assert any("truncated" in found for found in causes["bad/cut"])
    assert {r["name"] for r in manifest.recordings} == {"bad/big", "bad/good-1", "bad/good-2", "bad/twice"}
    expected = {"bad/copy": "bad/big", "bad/wrong": "bad/big", "bad/zip/good-4": "bad/good-2"}
    assert {duplicate["name"]: duplicate["of"] for duplicate in manifest.duplicates} == expected
    printed = capsys.readouterr().out
    report = (out / "report.txt").read_text()
    for name, listed in causes.items():
        for cause in listed:
            assert f"  {name}: {cause}" in report
            assert f"  {name}: {cause}" in printed
    assert "notes.txt" in report

    # The same command continues with a fixed recording, and the other failures can be accepted.
    soundfile.write(bad_book / "silent.wav", read_speech(6, 5), 8000)
    good = staged_chunks(out)
    num_failures = len(manifest.failures) - 1
    with pytest.raises(CommandError, match=f"failed recordings: {num_failures}, accepted: {num_failures - 1}"):
        preprocess(config(bad_book, out, max_failures=num_failures - 1))
    assert "bad/silent" in {r["name"] for r in read_manifest(out).recordings}
    assert good.items() <= staged_chunks(out).items()
    preprocess(config(bad_book, out, max_failures=num_failures))
    assert not (out / STAGING).exists()
    preprocess(config(bad_book, out))
    assert "is finished already" in capsys.readouterr().out


@pytest.fixture(scope="module")
def copied_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight chapters of 12 s, each also as MP3 at a low bit rate, lower, and 0.51 s later; two files the same."""
    folder = tmp_path_factory.mktemp("copied") / "book"
    folder.mkdir()
    for number in range(1, 9):
        pcm = read_speech(number, 20)[8 * 8000 :]
        soundfile.write(folder / f"chapter-{number}.flac", pcm, 8000)
        later = np.concatenate([np.zeros(4080, np.int16), pcm // 2])
        soundfile.write(folder / f"chapter-{number}_64kb.mp3", later, 8000, compression_level=0.9)
    shutil.copy(folder / "chapter-8.flac", folder / "other-8.flac")
    return folder


def test_recordings_that_repeat_others_are_in_no_split_and_named(
    copied_book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    # The validation recording is named, so its original is left out instead.
    settings = config(copied_book, out, split=SplitConfig(validation=("chapter-3_64kb",), test=("chapter-8",)))
    preprocess(settings)
    expected = {f"book/chapter-{number}_64kb": f"book/chapter-{number}" for number in range(1, 9)}
    expected |= {"book/chapter-3": expected.pop("book/chapter-3_64kb") + "_64kb", "book/other-8": "book/chapter-8"}
    manifest = read_manifest(out)
    assert {duplicate["name"]: duplicate["of"] for duplicate in manifest.duplicates} == expected
    assert all(duplicate["seconds"] > 10 for duplicate in manifest.duplicates)
    splits = {recording["name"]: recording["split"] for recording in manifest.recordings}
    assert len(splits) == 8
    assert not splits.keys() & expected.keys()
    assert (splits["book/chapter-3_64kb"], splits["book/chapter-8"]) == ("validation", "test")
    assert not manifest.failures
    printed = capsys.readouterr().out
    for text in (printed, (out / "report.txt").read_text()):
        assert "left out: 9 recordings that repeat others" in text
        assert "  book/chapter-1_64kb: repeats book/chapter-1, 12." in text
    preprocess(settings)
    assert "is finished already" in capsys.readouterr().out


def test_a_split_whose_only_recording_repeats_another_split_is_refused(copied_book: Path, tmp_path: Path) -> None:
    split = SplitConfig(validation=("chapter-3",), test=("chapter-3_64kb",))
    with pytest.raises(
        CommandError, match=r"split.test names only speech .* book/chapter-3_64kb repeats book/chapter-3"
    ):
        preprocess(config(copied_book, tmp_path / "shards", split=split))
    assert not (tmp_path / "shards" / MANIFEST).exists()


def test_without_a_good_recording_no_shards_are_written(tmp_path: Path) -> None:
    for name, cause in (("a.mp3", "a: not audio"), ("b.wma", "b: .wma is not supported")):
        (tmp_path / name).write_text("no audio")
        out = tmp_path / name.partition(".")[0]
        with pytest.raises(CommandError, match="no recording can be used"):
            preprocess(config(tmp_path / name, out, max_failures=5, gain_db=3.0))
        assert cause in (out / "report.txt").read_text()
        assert not (out / MANIFEST).exists()


def test_a_decoder_that_dies_fails_only_its_recording(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = worker.decode_recording

    def decode_or_die(source: Source, *args: Any) -> Iterator[Any]:
        if source.name == "book/chapter-3":
            os._exit(11)
        yield from original(source, *args)

    monkeypatch.setattr(driver, "decode_in_ray", decode_or_die)
    with pytest.raises(CommandError, match="failed recordings: 1,"):
        preprocess(config(book, tmp_path / "shards"))
    manifest = read_manifest(tmp_path / "shards")
    ((failure),) = manifest.failures
    assert failure["name"] == "book/chapter-3"
    assert failure["cause"].startswith("the process that decoded it died")
    assert len(manifest.recordings) == 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "babble-test", folder], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_nothing_is_lost(small_disk: Path, book: Path, undisturbed: dict[str, str]) -> None:
    out = small_disk / "shards"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(120_000))
    with pytest.raises(CommandError, match=r"disk full: No space left on device.*free some space and run"):
        preprocess(config(book, out))
    assert staged_chunks(out)
    assert not (out / MANIFEST).exists()
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    preprocess(config(book, out))
    assert hash_folder(out) == undisturbed


def test_a_full_disk_under_a_zip_stops_everything(small_disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("long.wav", bytes(3_000_000))
    with pytest.raises(CommandError, match="disk full: No space left on device while unpacking"):
        preprocess(config(path, small_disk / "shards"))


def test_a_zip_gives_what_its_folder_gives(book: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "book.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for chapter in book.iterdir():
            archive.write(chapter, chapter.name)
    preprocess(config(path, tmp_path / "shards"))
    assert hash_folder(tmp_path / "shards") == undisturbed


def test_a_recording_shorter_than_a_window_is_kept(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", read_speech(1, 1.0), 8000)
    preprocess(config(tmp_path / "a.wav", tmp_path / "shards", split=SplitConfig(test_fraction=0.0)))
    (recording,) = read_recordings(tmp_path / "shards", read_manifest(tmp_path / "shards"), "train")
    assert len(recording.frames) == 24


def test_shares_on_one_cluster_together_write_the_same_bytes(
    book: Path, tmp_path: Path, undisturbed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the jobs of an array do, two of them at the same time."""
    import ray

    out = tmp_path / "shards"
    preprocess(config(book, out, share="2/3"))
    assert capsys.readouterr().out == "share 2 of 3 is finished; waiting for shares 0, 1\n"
    words = ("--sources", book, "--out", out, "--chunk-seconds", 2, "--workers", 1)
    address = ray.get_runtime_context().gcs_address
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    shares = [start_command(*words, "--share", f"{share}/3", "--address", address, **token) for share in range(2)]
    printed = ""
    for share in shares:
        lines, errors = share.communicate()
        assert (share.returncode, errors) == (0, "")
        printed += lines
    assert hash_folder(out) == undisturbed
    # The share that ended last has written the shards.
    assert (out / "report.txt").read_text() in printed
    assert "0.02 h were encoded before; Ray took" in printed
    assert re.search(r"^next \(about .*\): babble train --config [a-z-]+ ", printed, re.MULTILINE)
    assert ray.cluster_resources()["CPU"] == 2
    preprocess(config(book, out, share="1/3"))
    assert "is finished already" in capsys.readouterr().out


def test_a_corpus_can_be_for_evaluation_only(book: Path, tmp_path: Path) -> None:
    """The whole command, with a Ray of its own, and what it advises to do next."""
    out, sources = tmp_path / "shards", (book / "chapter-1.flac", book / "chapter-8.wav")
    printed, errors = start_command("--sources", *sources, "--split.test", "*", "--out", out).communicate()
    assert "Traceback" not in errors
    manifest = read_manifest(out)
    assert [recording["split"] for recording in manifest.recordings] == ["test", "test"]
    assert manifest.split_frames("test") == 125 + 300
    assert "no recordings for training: these shards are for evaluation only" in printed
    assert f"next: babble evaluate runs/NAME --shards {out} --split test --babble-seconds 0\n" in printed
    evaluation = evaluate(EvaluateConfig(shards=out, split="test", babble_seconds=0))
    assert 10 < evaluation["held_out"]["bits_per_frame"] < 52
    assert evaluation["baselines"] == {}


def test_wandb_shows_hours_speed_failures_and_fields(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mock.Mock()
    monkeypatch.setattr(report, "open_wandb", lambda *_, **__: WandbRun(run, is_online=False))
    bad, out = tmp_path / "bad.mp3", tmp_path / "shards"
    bad.write_bytes(b"no sound")
    preprocess(config([book, bad], out, max_failures=1, wandb=WandbConfig(mode="offline")))
    (shown,) = run.log.call_args.args
    manifest = read_manifest(out)
    assert shown["corpus/hours/train"] == manifest.split_hours("train")
    assert (shown["corpus/recordings"], shown["corpus/failures"]) == (9, 1)
    assert shown["corpus/failed"].data[0][0] == "bad"
    assert shown["corpus/times_real_time"] > 0
    frames = np.concatenate([r.frames for split in SPLITS for r in read_recordings(out, manifest, split)])
    for f, field in enumerate(M1300.fields):
        counts = np.bincount(frames[:, f], minlength=field.levels)
        assert list(shown[f"fields/{field.name}"].histogram) == counts.tolist()
    run.log_artifact.assert_called_once()
    run.finish.assert_called_once()
