"""What preprocessing rejects before any work, what it recommends next, and its decoder without Ray."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from paths import ROOT, SPEECH

from babble.cli import read_config, run_command
from babble.codec.frames import get_mode
from babble.data.shards import Manifest, ShardFacts
from babble.training.wandb_run import WandbConfig
from jobs.preprocess import report, worker
from jobs.preprocess.config import COMMAND, PreprocessConfig
from jobs.preprocess.job import preprocess
from jobs.preprocess.worker import ChunkHeader, Decoded, DiskFull, Failed, Opened, decode_recording
from preprocessing.encode import list_encodings
from preprocessing.sources import Source

M1300 = get_mode("1300")
SOURCE = Source("a", SPEECH / "allison-01.ogg", None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "--sources is missing"),
        ({"out": None}, "--out is missing"),
        ({"mode": "1301"}, "mode '1301' must be one of Codec 2's"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"chunk_seconds": 0}, "--chunk-seconds 0: must be from 1 to 1200"),
        ({"entries_per_shard": 0}, "--entries-per-shard 0: must be at least 1"),
        ({"max_failures": -1}, "--max-failures -1: must be at least 0"),
        ({"gain_db": 100.0}, "--gain-db 100: must be from -60 to 60"),
        ({"nodes": 2}, "--nodes 2 has no effect without --address"),
        *(({"share": share}, "must be I/N") for share in ("3/3", "1", "a/2", "-1/2", "0/0")),
    ],
)
def test_a_setting_that_can_not_work_is_rejected_by_its_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**{"sources": (Path("a"),), "out": Path("b")} | changes)


def test_wandb_that_is_not_installed_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.preprocess.config.find_spec", lambda name: None)
    PreprocessConfig((Path("a"),), Path("b"))
    with pytest.raises(ValueError, match=r"--wandb.mode offline needs W&B: pip install -e '.\[dashboard\]'"):
        PreprocessConfig((Path("a"),), Path("b"), wandb=WandbConfig(mode="offline"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("", 1, "--sources is missing"),
        ("--sources nowhere --out x", 1, "--sources nowhere does not exist"),
        ("--sources tests/speech --out tests", 1, "so it is not a folder of shards: name a new one"),
        ("--sources tests/speech --out Makefile", 1, "--out Makefile is a file"),
        ("--sources tests/speech --out tests/speech/shards", 1, "is in --sources tests/speech: name a folder outside"),
        ("--sources tests/speech --out tests/../tests/speech", 1, "is in --sources tests/speech"),
        ("--sources tests/speech/allison-01.ogg --out tests/speech/allison-01.ogg", 1, "name a folder outside the so"),
        ("--sources tests/speech --out {run}/shards", 1, "is in the run folder {run}: name a folder outside it"),
        ("--sources {run} --out x", 1, "no recordings found in {run}"),
        ("--sources tests/speech --out x --split.test part-13", 1, "no recording matches 'part-13'"),
        ("--sources {c2} --out x --gain-db 3", 1, "--gain-db has no effect: all recordings are Codec 2 already"),
        ("--sources tests/speech --out x --mode 1301", 2, "--mode 1301: expected one of 3200, "),
        ("--sauces tests", 2, "unknown flag --sauces; did you mean --sources?"),
    ],
)
def test_what_can_not_work_is_rejected_before_anything_is_written(
    words: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, c2 = tmp_path / "runs/demo", tmp_path / "a.c2"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    c2.touch()
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["", *words.format(run=run, c2=c2).split()])
    with pytest.raises(SystemExit) as stopped:
        run_command(PreprocessConfig, preprocess, COMMAND)
    printed = capsys.readouterr().err
    assert stopped.value.code == code
    assert printed.startswith(COMMAND)
    assert message.format(run=run) in printed
    assert printed.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before
    assert not (ROOT / "x").exists()


def test_a_folder_that_can_not_be_written_is_refused_at_once() -> None:
    with pytest.raises(OSError, match=r"/proc/no/manifest\.json can't be written .*name another place with --out"):
        preprocess(PreprocessConfig(sources=(SPEECH / "allison-01.ogg",), out=Path("/proc/no")))


def test_sources_joined_by_commas_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SPEECH)
    config = read_config(PreprocessConfig, ["--sources", "allison-01.ogg,allison-02.ogg", "--out", "x"])
    assert config.sources == (Path("allison-01.ogg"), Path("allison-02.ogg"))


def test_a_mode_that_yaml_reads_as_a_number_is_a_mode(tmp_path: Path) -> None:
    path = tmp_path / "preprocess.yaml"
    path.write_text("mode: 3200\n")
    assert read_config(PreprocessConfig, ["--config", str(path), "--sources", "a", "--out", "b"]).mode == "3200"


@pytest.mark.parametrize(
    ("hours", "has_gpu", "config", "time"),
    [
        (0.32, False, "demo", "about 3 minutes"),
        (1.9, False, "demo", "about 19 minutes"),
        (14.0, False, "babble-cpu", "about one hour"),
        (14.0, True, "babble", "about five minutes"),
    ],
)
def test_the_recommended_config_fits_machine_and_speech(hours: float, has_gpu: bool, config: str, time: str) -> None:
    found, found_time = report.recommend_config(hours, has_gpu)
    assert (found, found_time.partition(" on ")[0]) == (config, time)
    assert hours == 1.9 or time in (ROOT / f"configs/{config}.yaml").read_text(), (
        "the header of the config gives the same time"
    )


def test_a_gpu_is_found_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not report.has_nvidia_gpu()
    program = tmp_path / "nvidia-smi"
    for printed, has_gpu in (("GPU 0: NVIDIA H100", True), ("No devices found.", False)):
        program.write_text(f"#!/bin/sh\necho {printed}\n")
        program.chmod(0o755)
        assert report.has_nvidia_gpu() == has_gpu


def test_the_next_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "has_nvidia_gpu", lambda: False)
    manifest = Manifest(M1300, {}, [], [ShardFacts("train-000000.tar", "train", "", 1, 28800)], [])
    assert report.describe_next(Path("my shards/tale"), manifest) == (
        "next (about 3 minutes on two CPU cores): babble train --config demo --data.shards 'my shards/tale' --name tale"
    )


def test_a_decoder_yields_the_chunks_that_are_not_staged(tmp_path: Path) -> None:
    messages = list(decode_recording(SOURCE, tmp_path, M1300, list_encodings(1, (1.0,)), 0.0, 2000, {}))
    opened, *chunks, decoded = messages
    assert isinstance(opened, Opened)
    assert opened.seconds == pytest.approx(191.83, abs=0.01)
    assert chunks[::2] == [ChunkHeader(0, 0, 0, 2000), ChunkHeader(1, 2000, 8, 2000), ChunkHeader(2, 4000, 8, 795)]
    assert [len(pcm) for pcm in chunks[1::2]] == [2000 * 320, 2008 * 320, 803 * 320]
    assert isinstance(decoded, Decoded)
    assert decoded.facts is not None
    assert decoded.facts["seconds"] == 191.828625

    staged = {opened.sha256: worker.Staged(frozenset({0, 2}))}
    again = list(decode_recording(SOURCE, tmp_path, M1300, list_encodings(1, (1.0,)), 0.0, 2000, staged))
    assert [message for message in again if isinstance(message, ChunkHeader)] == [ChunkHeader(1, 2000, 8, 2000)]
    whole = {opened.sha256: worker.Staged(frozenset({0, 1, 2}), is_whole=True)}
    assert list(decode_recording(SOURCE, tmp_path, M1300, list_encodings(1, (1.0,)), 0.0, 2000, whole)) == [
        Opened(opened.sha256, None),
        Decoded(None),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("by zero"), Failed("can't be decoded: ZeroDivisionError: by zero")),
        (PermissionError(13, "Permission denied"), Failed("unreadable: Permission denied")),
        (OSError(28, "No space left"), DiskFull(f"No space left while unpacking {SOURCE.path}")),
    ],
)
def test_an_error_of_any_kind_ends_one_recording(
    error: Exception, message: Failed | DiskFull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Iterator[None]:
        raise error

    monkeypatch.setattr(worker, "open_recording", fail)
    assert list(decode_recording(SOURCE, tmp_path, M1300, 1, 0.0, 50, {})) == [message]


def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    code = (
        "import re, sys; from pathlib import Path; from jobs.preprocess.worker import *\n"
        "from babble.codec.frames import get_mode\n"
        "source = Source('a', Path(sys.argv[1]), None, 0)\n"
        "for message in decode_recording(source, Path('.'), get_mode('1300'), 1, 0.0, 1500, {}): pass\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(int(peak) // 1024, message.facts['seconds'])"
    )
    speech, _ = soundfile.read(SPEECH / "allison-01.ogg", dtype="int16", stop=180 * 8000)
    peaks = []
    for name, times in (("short.flac", 1), ("long.flac", 12)):
        with soundfile.SoundFile(tmp_path / name, "w", 8000, 1) as file:
            for _ in range(times):
                file.write(speech)
        command = [sys.executable, "-c", code, tmp_path / name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        megabytes, seconds = done.stdout.split()
        assert float(seconds) == 180 * times
        peaks.append(int(megabytes))
    # The longer one has 32 MB more of pcm.
    assert peaks[1] - peaks[0] < 10, peaks
    assert peaks[1] < 200
