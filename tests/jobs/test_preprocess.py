"""The preprocessing job with a real Ray: bytes, kills, bad input, and what it refuses."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from paths import ROOT, SPEECH

import jobs.preprocess
from babble.cli import CommandError
from babble.codec.codec2 import encode_pcm, write_c2, write_c2cb
from babble.codec.frames import MODES, Mode, get_mode, unpack_packets
from babble.data.shards import MANIFEST, SPLITS, read_manifest, read_recordings
from babble.training.wandb_run import WandbConfig
from jobs.preprocess import PreprocessConfig, preprocess
from jobs.progress import Progress
from jobs.staging import STAGING, Staging
from preprocessing.audio import open_recording
from preprocessing.sources import Source
from preprocessing.split import SplitConfig

M1300 = get_mode("1300")


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all tests that call `preprocess`; it stops a Ray only that it started itself."""
    import ray

    jobs.preprocess.start_ray(2, None, 10)
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
    write_c2(folder / "chapter-9.c2", unpack_packets(encode_pcm(read_speech(1, 9)[8000:], M1300), M1300), M1300)
    return folder


def config(sources: Path | list[Path], out: Path, **changes: Any) -> PreprocessConfig:
    listed = tuple(sources) if isinstance(sources, list) else (sources,)
    return PreprocessConfig(**{"sources": listed, "out": out, "chunk_seconds": 2, "workers": 2} | changes)


def hash_folder(folder: Path) -> dict[str, str]:
    """The hashes of everything that must not differ: every tar, and the manifest."""
    names = [path.name for path in folder.iterdir() if path.name.endswith(".tar")] + [MANIFEST]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}


@pytest.fixture(scope="module")
def undisturbed(book: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What two workers make of the book when nothing goes wrong."""
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    preprocess(config(book, out))
    return hash_folder(out)


def start_command(*words: object, **environment: str) -> subprocess.Popen[str]:
    # The Ray of this process has put its own settings there.
    others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.preprocess", *map(str, words)],
        cwd=ROOT,
        env=others | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def list_workers(pid: int) -> set[int]:
    """All processes that a command has started, but for those of Ray that outlive a kill for a while without working.

    Its two agents take a minute and a half to give up, a worker that is only just starting half a minute.
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
    """Every staged chunk with what tells whether it was written again."""
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


def test_the_manifest_tells_of_each_recording(book: Path, tmp_path: Path) -> None:
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


def test_one_worker_of_another_process_makes_the_same_bytes(
    book: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere"
    command = start_command("--sources", book, "--out", out, "--chunk_seconds", 2, "--workers", 1)
    output, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (0, "")
    assert hash_folder(out) == undisturbed
    assert "0.02 h in " in output
    assert "x real time; Ray took" in output
    assert "next: python -m babble.train" in output
    assert (out / "report.txt").read_text() in output


def test_a_cluster_is_used_by_its_address(book: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    import ray

    out = tmp_path / "shards"
    address = ray.get_runtime_context().gcs_address
    words = ("--sources", book, "--out", out, "--chunk_seconds", 2, "--address", address)
    command = start_command(*words, RAY_AUTH_MODE="token")
    _, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (0, "")
    assert hash_folder(out) == undisturbed
    assert ray.cluster_resources()["CPU"] == 2


def test_an_address_where_nobody_answers_is_named(book: Path, tmp_path: Path) -> None:
    command = start_command("--sources", book, "--out", tmp_path / "shards", "--address", "127.0.0.1:1")
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert errors.endswith("nobody answers at --address 127.0.0.1:1: [Errno 111] Connection refused.\n")


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
    command = start_command("--sources", book, "--out", out, "--chunk_seconds", 2)
    wait_until(lambda: len(staged_chunks(out)) >= 6)
    children = list_workers(command.pid)
    command.kill()
    command.communicate()
    assert not (out / MANIFEST).exists()
    assert len(children) >= 3
    wait_until(lambda: not any(map(is_running, children)))
    before = staged_chunks(out)
    assert 6 <= len(before) < 37

    # Nobody cleans up, so that what was written twice shows.
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    (out / STAGING / "unpacked").rmdir()
    preprocess(config(book, out))
    after = staged_chunks(out)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    assert hash_folder(out) == undisturbed


@pytest.mark.parametrize("fails_in", ["write_shards", "write_manifest", "shutil.rmtree"])
def test_a_run_that_dies_while_it_writes_is_finished_by_the_same_command(
    book: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    out = tmp_path / "shards"
    calls = []

    def die(*args: object, **options: object) -> None:
        calls.append(args)
        # The first call of rmtree is at the start, the second of write_shards is in the middle of the work.
        if fails_in == "write_manifest" or len(calls) == 2:
            raise RuntimeError("killed here")
        return original(*args, **options)

    target = fails_in if "." in fails_in else f"jobs.preprocess.{fails_in}"
    with monkeypatch.context() as patch:
        import shutil

        original = getattr(shutil if "." in fails_in else jobs.preprocess, fails_in.split(".")[-1])
        patch.setattr(target, die)
        with pytest.raises(RuntimeError, match="killed here"):
            preprocess(config(book, out))
    assert (out / STAGING).is_dir()
    preprocess(config(book, out))
    assert hash_folder(out) == undisturbed
    assert not (out / STAGING).exists()


@pytest.fixture
def unaccepted(book: Path, tmp_path: Path) -> Path:
    """A folder whose staging was kept, as one recording too many has failed: mended, it goes on."""
    (tmp_path / "mended.wav").write_text("not yet")
    with pytest.raises(CommandError, match="1 recordings failed, 0 are accepted"):
        preprocess(config([book, tmp_path / "mended.wav"], tmp_path / "shards"))
    soundfile.write(tmp_path / "mended.wav", read_speech(2, 7), 8000)
    return tmp_path / "shards"


def test_only_the_chunks_that_lack_are_encoded_again(unaccepted: Path, book: Path, tmp_path: Path) -> None:
    before = staged_chunks(unaccepted)
    (facts,) = [path for path in unaccepted.glob(f"{STAGING}/*/*/facts.json") if "chapter-8" in path.read_text()]
    facts.unlink()
    lost = facts.with_name("000002.packets")
    lost.unlink()
    (tmp_path / "mended.wav").write_text("no, not yet")
    with pytest.raises(CommandError, match="1 recordings failed, 0 are accepted"):
        preprocess(config([book, tmp_path / "mended.wav"], unaccepted))
    after = staged_chunks(unaccepted)
    assert {path for path in after if after[path] != before[path]} == {lost}


def test_a_folder_that_is_being_written_anew_is_not_taken_for_finished(
    unaccepted: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed here")

    assert (unaccepted / MANIFEST).exists()
    with monkeypatch.context() as patch:
        patch.setattr(jobs.preprocess, "write_shards", die)
        with pytest.raises(RuntimeError, match="killed here"):
            preprocess(config([book, tmp_path / "mended.wav"], unaccepted))
    assert not (unaccepted / MANIFEST).exists()
    preprocess(config([book, tmp_path / "mended.wav"], unaccepted))
    assert "mended" in {recording["name"] for recording in read_manifest(unaccepted).recordings}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_stops_at_once_and_keeps_what_is_done(tmp_path: Path, sent: signal.Signals) -> None:
    out, sources = tmp_path / "shards", tmp_path / "sources"
    sources.mkdir()
    # Far more than is done by the time that a busy machine comes to look.
    for number in range(200):
        (sources / f"chapter-{number}.ogg").symlink_to(SPEECH / f"allison-0{number % 8 + 1}.ogg")
    command = start_command("--sources", sources, "--out", out, "--chunk_seconds", 1)
    wait_until(lambda: len(staged_chunks(out)) >= 6)
    children = list_workers(command.pid)
    # As a terminal and Slurm do: to every process of the group.
    os.killpg(command.pid, sent)
    _, errors = command.communicate(timeout=60)
    # Of what it could no longer tell a driver that is going, Ray's core has a line of its own now and then.
    errors = re.sub(r"^\[\d{4}-.* task_manager\.cc:.*\n", "", errors, flags=re.MULTILINE)
    if sent == signal.SIGINT:
        assert command.returncode == 130
        assert errors == (
            "python -m jobs.preprocess: stopped; what is done is kept, and the same command goes on from there.\n"
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
    told = (
        r"mode was '1300' and is now '3200'; gain_db was 0\.0 and is now 3\.0; split\.test was \[\] and is now \['a'\]"
    )
    other = config(book / "chapter-1.flac", out, mode="3200", gain_db=3.0, split=SplitConfig(test=("chapter-1",)))
    with Staging(out, config(book, out).settings):
        pass
    for _ in ("begun", "finished"):
        with pytest.raises(ValueError, match=told.replace("'a'", "'chapter-1'")):
            preprocess(
                config(
                    [book / "chapter-1.flac", book / "chapter-2.mp3"], out, mode=3200, gain_db=3.0, split=other.split
                )
            )
        preprocess(config(book, out))


def test_other_sources_for_a_finished_folder_are_refused(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    first, second = book / "chapter-1.flac", book / "chapter-5.flac"
    preprocess(config([first], out))
    with pytest.raises(ValueError, match=r"recording chapter-5 was not there then and is [\d,]+ bytes now"):
        preprocess(config([first, second], out))
    with pytest.raises(ValueError, match=r"recording chapter-1 was [\d,]+ bytes then and is not there now"):
        preprocess(config([second], out))


def test_a_folder_of_something_else_is_not_touched(book: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    with pytest.raises(ValueError, match=r"holds letters\.txt and is no folder of shards"):
        preprocess(config(book, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_second_process_on_the_same_folder_is_refused(book: Path, tmp_path: Path) -> None:
    settings = config(book, tmp_path).settings
    with Staging(tmp_path, settings), pytest.raises(CommandError, match="another preprocess is at work there"):
        preprocess(config(book, tmp_path))
    preprocess(config(book, tmp_path))


@pytest.fixture
def bad_book(tmp_path: Path) -> Path:
    """A folder of every kind of bad recording, and two good ones."""
    folder = tmp_path / "bad"
    folder.mkdir()
    speech = read_speech(1, 6)
    for number, name in enumerate(("good-1.wav", "good-2.wav", "twice.wav", "twice.flac")):
        soundfile.write(folder / name, speech[number * 1000 :], 8000)
    values = (speech / 32768).astype(np.float32)
    values[9000] = np.nan
    soundfile.write(folder / "nan.wav", values, 8000, subtype="FLOAT")
    whole = (folder / "good-1.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "whole.flac", np.tile(speech, 4), 8000)
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
    write_c2cb(folder / "still.c2cb", np.zeros((100, 16), np.uint8), M1300)
    (folder / "part.c2cb").write_bytes(bytes(161))
    (folder / "level.c2cb").write_bytes(bytes([255]) * 1600)
    (folder / "notes.txt").write_text("Read on a rainy day.")
    with zipfile.ZipFile(folder / "zip.zip", "w") as archive:
        archive.writestr("inside.ogg", "no audio either " * 1000)
        archive.write(folder / "good-2.wav", "good-4.wav")
    return folder


CAUSES = {
    "bad/copy": "the same file as",
    "bad/cut": "two files of one name",
    "bad/empty": "empty: the file has no bytes",
    "bad/gone": "unreadable",
    "bad/level": "frame 0 has v0=255, but in mode 1300 v0 has 2 levels",
    "bad/mode": "of mode 3200, and mode 1300 was asked for",
    "bad/nan": "values that are no numbers",
    "bad/part": "truncated: 161 bytes are not a whole number of 16-byte frames",
    "bad/short": "too short: 0.88 s",
    "bad/silent": "silent",
    "bad/still": "silent: every frame is the same",
    "bad/text": "not audio",
    "bad/twice": "two files of one name",
    "bad/wrong": "wrong extension: it is called .mp3, but there is FLAC inside",
    "bad/zip/good-4": "the same file as bad/good-2",
    "bad/zip/inside": "not audio",
}


def test_bad_recordings_are_named_and_do_not_stop_the_others(
    bad_book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    with pytest.raises(CommandError, match=r"recordings failed, 0 are accepted.* --max_failures \d+"):
        preprocess(config(bad_book, out))
    manifest = read_manifest(out)
    # The first of two of one name is tried, here the FLAC, which is cut.
    causes: dict[str, list[str]] = {}
    for failure in manifest.failures:
        causes.setdefault(failure["name"], []).append(failure["cause"])
    assert causes.keys() == CAUSES.keys()
    for name, cause in CAUSES.items():
        assert any(told.startswith(cause) or cause in told for told in causes[name]), causes[name]
    assert any("truncated" in told for told in causes["bad/cut"])
    assert {r["name"] for r in manifest.recordings} == {"bad/big", "bad/good-1", "bad/good-2", "bad/twice"}
    printed = capsys.readouterr().out
    report = (out / "report.txt").read_text()
    for name, told in causes.items():
        for cause in told:
            assert f"  {name}: {cause}" in report
            assert f"  {name}: {cause}" in printed
    assert "notes.txt" in report

    # Mended, they are taken up by the same command, and the rest can be accepted.
    soundfile.write(bad_book / "silent.wav", read_speech(4, 5), 8000)
    good = staged_chunks(out)
    num_failures = len(manifest.failures) - 1
    with pytest.raises(CommandError, match=f"{num_failures} recordings failed, {num_failures - 1} are accepted"):
        preprocess(config(bad_book, out, max_failures=num_failures - 1))
    assert "bad/silent" in {r["name"] for r in read_manifest(out).recordings}
    assert good.items() <= staged_chunks(out).items()
    preprocess(config(bad_book, out, max_failures=num_failures))
    assert not (out / STAGING).exists()
    preprocess(config(bad_book, out))
    assert "is finished already" in capsys.readouterr().out


def test_nothing_but_bad_recordings_is_a_failure_without_shards(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_text("no audio")
    out = tmp_path / "shards"
    with pytest.raises(CommandError, match="none of 1 recordings could be used"):
        preprocess(config(tmp_path / "a.mp3", out, max_failures=5))
    assert "a: not audio" in (out / "report.txt").read_text()
    assert not (out / MANIFEST).exists()


def test_a_decoder_that_dies_takes_only_its_recording_along(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = jobs.preprocess.decode_recording

    def decode_or_die(source: Source, *args: Any) -> Iterator[Any]:
        if source.name == "book/chapter-3":
            os._exit(11)
        yield from original(source, *args)

    monkeypatch.setattr(jobs.preprocess, "_decode_in_ray", decode_or_die)
    with pytest.raises(CommandError, match="1 recordings failed"):
        preprocess(config(book, tmp_path / "shards"))
    manifest = read_manifest(tmp_path / "shards")
    ((failure),) = manifest.failures
    assert failure["name"] == "book/chapter-3"
    assert failure["cause"].startswith("the process that decoded it died")
    assert len(manifest.recordings) == 8


def test_an_error_nobody_thought_of_is_named_and_does_not_stop_the_others(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("a", book / "chapter-1.flac", None, 1)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(jobs.preprocess, "open_recording", fail)
    news = list(jobs.preprocess.decode_recording(source, tmp_path, M1300, 0.0, 50, {}))
    assert news == [{"failure": "can't be decoded: ZeroDivisionError: by zero"}]


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
    with pytest.raises(CommandError, match=r"disk full: No space left on device.*make room and give the same command"):
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


def test_a_recording_shorter_than_a_window_stays(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", read_speech(1, 1.0), 8000)
    preprocess(config(tmp_path / "a.wav", tmp_path / "shards", split=SplitConfig(test_fraction=0.0)))
    (recording,) = read_recordings(tmp_path / "shards", read_manifest(tmp_path / "shards"), "train")
    assert len(recording.frames) == 24


def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    speech = read_speech(1, 180)
    code = (
        "import re, sys; from pathlib import Path; from jobs.preprocess import *\n"
        "source = Source('a', Path(sys.argv[1]), None, 0)\n"
        "for news in decode_recording(source, Path('.'), get_mode('1300'), 0.0, 1500, {}): pass\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(int(peak) // 1024, news['facts']['seconds'])"
    )
    peaks = []
    for name, times in (("short.flac", 1), ("long.flac", 30)):
        with soundfile.SoundFile(tmp_path / name, "w", 8000, 1) as file:
            for _ in range(times):
                file.write(speech)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, check=True)
        megabytes, seconds = done.stdout.split()
        assert float(seconds) == 180 * times
        peaks.append(int(megabytes))
    # The longer one is 43 MB of pcm; half as much again in noise is allowed for.
    assert peaks[1] - peaks[0] < 10, peaks
    assert peaks[1] < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "--sources is missing"),
        ({"out": None}, "--out is missing"),
        ({"mode": "1301"}, "mode '1301' is not one of Codec 2's"),
        ({"workers": 0}, "--workers 0 must be at least 1"),
        ({"chunk_seconds": 0}, "--chunk_seconds 0 must be from 1 to 1200"),
        ({"entries_per_shard": 0}, "--entries_per_shard 0 must be at least 1"),
        ({"max_failures": -1}, "--max_failures -1 must be at least 0"),
        ({"gain_db": 100.0}, r"--gain_db 100\.0 must be from -60 to 60"),
    ],
)
def test_a_setting_that_can_not_work_is_refused_by_its_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**{"sources": (Path("a"),), "out": Path("b")} | changes)


def test_a_pattern_without_a_recording_is_refused_before_any_work(book: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recording is called 'part-13'"):
        preprocess(config(book, tmp_path / "shards", split=SplitConfig(test=("part-13",))))
    assert not (tmp_path / "shards").exists()


def test_a_gain_on_encoded_recordings_is_refused(book: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--gain_db has no effect: every recording is encoded already"):
        preprocess(config(book / "chapter-9.c2", tmp_path / "shards", gain_db=3.0))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no recording in"):
        preprocess(config(tmp_path, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, "--sources is missing"),
        (["--sources", "nowhere", "--out", "x"], 1, "--sources nowhere does not exist"),
        (["--sources", "tests", "--out", "tests"], 1, "tests holds"),
        (["--sauces", "tests"], 2, "--sauces"),
    ],
)
def test_the_command_says_what_is_wrong_and_fails(words: list[str], code: int, message: str) -> None:
    command = start_command(*words)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == code
    assert message in errors
    assert "Traceback" not in errors


def test_progress_guesses_what_is_left_from_what_is_known() -> None:
    sources = [Source(name, Path(name), None, size) for name, size in (("a", 1000), ("b", 3000), ("c", 0))]
    progress = Progress(sources)
    assert progress.total_seconds() == 0
    progress.learn("a", 10.0)
    assert progress.total_seconds() == 40.0
    progress.learn("b", 50.0)
    assert progress.total_seconds() == 60.0


def test_a_log_gets_plain_lines_with_hours_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress([Source("a", Path("a"), None, 1)])
    progress.learn("a", 7200.0)
    progress.add(1800.0, is_staged=True)
    progress.add(1800.0)
    progress.show()
    assert capsys.readouterr().out == ""
    now += 60.0
    progress.show()
    assert capsys.readouterr().out == "1.00 of about 2.00 h, 30 x real time, 2:00 left\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress([Source("a", Path("a"), None, 1)])
    progress.learn("a", 7200.0)
    progress.add(3600.0)
    now += 60.0
    progress.show()
    progress.close()
    shown = capsys.readouterr().err
    assert "50%" in shown
    assert "1.00 of about 2.00 h, 60 x real time, 1:00 left" in shown


def test_shares_together_write_the_same_bytes(book: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """As the jobs of an array do: two at once, the last before them killed and begun again."""
    out = tmp_path / "shards"
    words = ("--sources", book, "--out", out, "--chunk_seconds", 2, "--workers", 1)
    first = start_command(*words, "--share", "2/3")
    first.kill()
    first.communicate()
    shares = [start_command(*words, "--share", f"{share}/3") for share in range(3)]
    for share in shares:
        _, errors = share.communicate(timeout=180)
        assert (share.returncode, errors) == (0, "")
    assert hash_folder(out) == undisturbed
    again = start_command(*words, "--share", "1/3")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "is finished already" in said


def test_where_asked_for_wandb_shows_hours_speed_failures_and_fields(
    book: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp3"
    bad.write_bytes(b"no sound")
    out = tmp_path / "shards"
    preprocess(config([book, bad], out, max_failures=1, wandb=WandbConfig(mode="offline")))
    (log,) = out.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in said.splitlines()]
    (shown,) = (record["history"]["item"] for record in records if record["type"] == "history")
    manifest = read_manifest(out)
    assert shown["corpus/hours/train"] == pytest.approx(manifest.split_hours("train"))
    assert (shown["corpus/recordings"], shown["corpus/failures"], shown["corpus/failed.nrows"]) == (9, 1, 1)
    assert shown["corpus/times_real_time"] > 0
    frames = np.concatenate([r.frames for split in SPLITS for r in read_recordings(out, manifest, split)])
    for f, field in enumerate(M1300.fields):
        assert shown[f"fields/{field.name}.values"] == np.bincount(frames[:, f], minlength=field.levels).tolist()


def test_wandb_that_fails_costs_no_shard(
    book: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("wandb.init", fail)
    preprocess(config(book, tmp_path / "shards", wandb=WandbConfig(mode="offline")))
    assert capsys.readouterr().err.count("W&B has failed (no luck)") == 1
    assert hash_folder(tmp_path / "shards") == undisturbed


def test_wandb_that_is_not_installed_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.preprocess, "find_spec", lambda name: None)
    config(tmp_path, tmp_path / "shards")
    with pytest.raises(ValueError, match=r"--wandb.mode offline needs W&B: pip install -e '.\[dashboard\]'"):
        config(tmp_path, tmp_path / "shards", wandb=WandbConfig(mode="offline"))


@pytest.mark.parametrize("share", ["3/3", "1", "a/2", "-1/2", "0/0"])
def test_a_share_that_is_none_is_refused(share: str, book: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="I/N is needed"):
        PreprocessConfig(sources=(book,), out=tmp_path, share=share)
    with pytest.raises(ValueError, match="has no effect without --address"):
        PreprocessConfig(sources=(book,), out=tmp_path, nodes=2)
