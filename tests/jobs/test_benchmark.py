"""The benchmark: floors do the same work, sums are complete, every part runs. Never how fast anything is."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from paths import ROOT, SPEECH

from babble.cli import CommandError, read_config
from babble.data.datamodule import SpeechData
from babble.data.shards import read_manifest
from babble.files import read_json_lines
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from jobs.benchmark.__main__ import benchmark
from jobs.benchmark.config import CPU_PARTS, MODE, BenchmarkConfig
from jobs.benchmark.corpus import make_corpus
from jobs.benchmark.floors import encode_recordings, make_generator, make_training
from jobs.benchmark.gpu import Sizes, count_operations, measure_device
from jobs.benchmark.measurement import Measurement, format_table, take_turns
from jobs.benchmark.plan import ENCODING, READING, SHARD_BYTES, SHARD_HOURS, TRAINING, WEIGHTS, format_plan
from jobs.benchmark.preprocessing import find_recordings
from jobs.benchmark.process_usage import measure_command, run_in_process, start_command
from jobs.benchmark.training import RECIPE_2017, compare_logging, compare_training, read_training
from preprocessing.audio import open_recording
from preprocessing.encode import encode_recording

BENCHMARK = [sys.executable, "-m", "jobs.benchmark"]


def test_the_median_ratio_of_value_and_floor_meets_the_target() -> None:
    speed = Measurement("speed", "frames/s", values=(10.0, 40.0, 30.0), floors=(20.0, 50.0, 10.0), at_least=0.8)
    assert speed.ratios == (0.5, 0.8, 3.0)
    assert speed.median == 0.8
    assert speed.is_met is True
    facts = speed.to_dict()
    assert (facts["ratio"], facts["ratio_min"], facts["ratio_max"], facts["is_met"]) == (0.8, 0.5, 3.0, True)


@pytest.mark.parametrize(
    ("values", "target", "is_met"),
    [
        ((1.0,), {}, None),
        ((1.0,), {"at_least": 1.1}, False),
        ((1.0,), {"at_least": 0.9}, True),
        ((1.0,), {"at_most": 0.9}, False),
        ((1.0, 0.5, 0.5), {"at_most": 0.9}, True),
    ],
)
def test_without_a_floor_the_target_applies_to_the_median_value(
    values: tuple[float, ...], target: dict[str, float], is_met: bool | None
) -> None:
    assert Measurement("share", "of it", values, **target).is_met is is_met


def test_an_absolute_target_applies_to_the_value_beside_a_floor() -> None:
    start = Measurement("start", "s", (3.0, 5.0), (2.0, 2.0), at_most=4.5, is_absolute=True)
    assert start.is_met is True
    assert start.median == 2.0
    row = format_table([start]).splitlines()[1]
    assert row.split() == ["start", "4", "s", "2", "2.000", "1.5..2.5", "<=", "4.5", "s", "ok"]


def test_a_value_without_its_floor_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Measurement("speed", "frames/s", (1.0, 2.0), (1.0,)).ratios


def test_the_table_shows_range_target_and_verdict() -> None:
    fast = Measurement("fast", "frames/s", (3.0, 5.0), (2.0, 2.0), at_least=0.8, note="one core")
    slow = Measurement("slow", "CPU s", (3.0, 5.0), (2.0, 2.0), at_most=1.1)
    _, first, second, note = format_table([fast, slow]).splitlines()
    assert first.split() == ["fast", "4", "frames/s", "2", "2.000", "1.5..2.5", ">=", "0.8", "ok"]
    assert second.split() == ["slow", "4", "CPU", "s", "2", "2.000", "1.5..2.5", "<=", "1.1", "MISS"]
    assert note == "  fast: one core"


def test_turns_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    counter = itertools.count()

    def measure(name: str) -> float:
        order.append(name)
        return float(next(counter))

    ours, floors = take_turns(3, lambda: measure("ours"), lambda: measure("floor"))
    assert order == ["ours", "floor", "floor", "ours", "ours", "floor", "floor", "ours"]
    assert (ours, floors) == ((3.0, 4.0, 7.0), (2.0, 5.0, 6.0))


# Four processes use 0.4 s each: one whose parent ends first, one that its parent waits for, one whose parent ignores
# SIGCHLD (so that the kernel adds its time to no other process), and the command itself.
KNOWN_LOAD = """
import os, signal, time

def work():
    while time.process_time() < 0.4: pass

def start(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid

def leave_an_orphan():
    os.setsid()
    start(work)
    time.sleep(0.4)

def ignore_a_child():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    start(work)
    try:
        os.wait()
    except ChildProcessError:
        pass

for function in (leave_an_orphan, work, ignore_a_child):
    os.waitpid(start(function), 0)
work()
"""


def test_cpu_time_includes_all_processes_that_a_command_started() -> None:
    usage = measure_command([sys.executable, "-c", KNOWN_LOAD])
    # Of each process up to a tenth of a second may be missed.
    assert 1.1 < usage.cpu_seconds < 2.2
    assert usage.wall_seconds > usage.cpu_seconds / (os.cpu_count() or 1)


def test_the_error_of_a_failed_command_holds_its_output() -> None:
    with (
        pytest.raises(CommandError, match="exit code 3: no such file"),
        start_command(["bash", "-c", "echo no such file; exit 3"]),
    ):
        pass


@pytest.mark.parametrize("rate_hz", [8000, 44100])
def test_the_floor_encodes_the_same_packets(tmp_path: Path, rate_hz: int) -> None:
    speech, _ = soundfile.read(SPEECH / "allison-01.ogg", frames=80_000)
    path = tmp_path / "recording.flac"
    soundfile.write(path, np.stack([speech, speech / 2], axis=1), rate_hz)
    with open_recording(path) as recording:
        expected = encode_recording(recording.pcm_blocks(), MODE, chunk_frames=100)
    assert list(encode_recordings([path])) == [expected]
    assert expected


def test_only_recordings_that_soundfile_reads_are_preprocessed(tmp_path: Path) -> None:
    for name in ("b.flac", "a.wav", "c.m4b", "notes.txt"):
        (tmp_path / name).write_bytes(b"not opened here")
    assert [path.name for path in find_recordings([tmp_path])] == ["a.wav", "b.flac"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--sources"):
        find_recordings([tmp_path / "empty"])


def test_the_floor_trains_as_train_does(tmp_path: Path) -> None:
    # Two clips and a repeat of the first.
    corpus = make_corpus(tmp_path, hours=0.11)
    manifest = read_manifest(corpus)
    assert 0.11 <= manifest.split_hours("train") < 0.17
    assert manifest.split_frames("validation") == 1000
    (training,) = compare_training(BenchmarkConfig(turns=2, units=8), corpus, tmp_path)
    assert training.name == "training, 2017 3x8"
    assert len(training.values) == len(training.floors) == 2
    trained = torch.load(tmp_path / "training" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    settings = read_training({**RECIPE_2017, "model.units": 8, "data.shards": corpus})
    torch.manual_seed(settings.seed)
    model = Babbler(settings.model, MODE)
    data = SpeechData(settings.data, settings.seed)
    data.setup()
    make_training(model, iter(data.train_dataloader()))(6)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, trained[f"model.{name}"]), name


def test_the_floor_generates_the_same_frames() -> None:
    torch.manual_seed(0)
    model = Babbler(ModelConfig(inputs="scaled", num_layers=2, units=8, head="regression"), MODE).eval()
    with torch.no_grad():
        # An untrained network would repeat one frame.
        for weights in model.parameters():
            weights.mul_(5)
    prompts_BTF = np.random.default_rng(0).integers(MODE.levels, size=(3, 10, MODE.num_fields))
    expected_BTF = generate_frames(model, prompts_BTF, 30)
    generate = make_generator(model, prompts_BTF)
    assert len(np.unique(expected_BTF[0], axis=0)) > 5
    np.testing.assert_array_equal(np.concatenate([generate(10), generate(20)]).swapaxes(0, 1), expected_BTF)


def test_the_plan_follows_from_the_rates() -> None:
    rates = {ENCODING: 100.0, SHARD_BYTES: 1.0, SHARD_HOURS: 1.0, READING: 1e6, TRAINING: 1e4, WEIGHTS: 1e6}
    rows = [line.strip("| ").split(" | ") for line in format_plan(rates).splitlines() if line.startswith("| ")][2:]
    # 1,000 hours are 90 million frames. One node of 64 cores encodes 6,400 hours per hour; 8 devices train on 80,000
    # frames per second.
    assert rows[4] == ["1,000", "8", "1,000", "1", "0.16", "0.31", "0.89", "7.0", "training (next: reading, at 1 %)"]
    # Devices this fast would wait for their readers, and across nodes for 8 MB of gradients per step.
    fast = [line.split("|")[-2].strip() for line in format_plan(rates, 5e6).splitlines() if line.startswith("| ")][2:]
    assert fast == 3 * ["reading", "reading", "the network"]


def test_without_a_gpu_only_its_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--only gpu: PyTorch finds no GPU on this machine"):
        benchmark(read_config(BenchmarkConfig, ["--only", "plan", "gpu"]))
    assert "gpu" not in BenchmarkConfig().only


def test_the_measurements_of_a_gpu_on_a_cpu(tmp_path: Path) -> None:
    tiny = {"model.units": 8, "model.head_units": 8, "data.batch_size": 2, "data.window_frames": 8}
    sizes = Sizes({**tiny, "compute.precision": "32-true"}, (1, 2), (1, 3), steps=2, formats=("float32",))
    measured = {m.name: m for m in measure_device(BenchmarkConfig(turns=2, scale=0.5), tmp_path, "cpu", sizes)}
    assert list(measured) == [
        "train",
        "train next to bare LSTM layers, float32",
        "training steps, batch 1",
        "training steps, batch 2",
        *(f"training steps, {cell}" for cell in ("gru", "hyperlstm", "diagonal_lstm")),
        "generation, 1 streams",
        "generation, 3 streams",
    ]
    for measurement in measured.values():
        assert min(measurement.values) > 0
        assert len(measurement.floors) == (2 if measurement.name in list(measured)[:2] + list(measured)[4:7] else 0)


def test_operations_are_those_of_the_matrix_products() -> None:
    config = ModelConfig(embedding_size=4, num_layers=2, units=8, skips=True, head="categorical")
    layers = 4 * 8 * (4 + 8) + 4 * 8 * (4 + 8 + 8)
    assert count_operations(Babbler(config, MODE)) == 6 * (layers + 2 * 8 * int(MODE.levels.sum()))


def test_an_unknown_part_is_an_error_that_shows_the_parts() -> None:
    assert read_config(BenchmarkConfig, ["--only", "logging", "training"]).only == ("logging", "training")
    with pytest.raises(ValueError, match=r"--only lodging: expected one of .*; did you mean logging"):
        read_config(BenchmarkConfig, ["--only", "training", "lodging"])
    with pytest.raises(ValueError, match="--turns 0: must be at least 1"):
        read_config(BenchmarkConfig, ["--turns", "0"])


def run_parts(folder: Path, *parts: str, scale: float = 0.005) -> list[dict[str, object]]:
    """Run parts at a small scale; return the measurements that they write as JSON."""
    words = ["--turns=2", "--units=8", f"--scale={scale}", "--json", str(folder / "benchmark.json"), "--only", *parts]
    done = subprocess.run([*BENCHMARK, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((folder / "benchmark.json").read_text())
    assert facts["config"]["units"] == 8
    assert "versions" in facts["environment"]
    measurements: list[dict[str, object]] = facts["measurements"]
    for measurement in measurements:
        assert min(measurement["values"]) > 0, measurement
        assert measurement["name"] in done.stdout
        if measurement["floors"]:
            assert measurement["ratio_min"] <= measurement["ratio"] <= measurement["ratio_max"]
    return measurements


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    rates = run_parts(tmp_path, "plan")
    assert [rate["name"] for rate in rates] == [ENCODING, SHARD_BYTES, SHARD_HOURS, READING, TRAINING, WEIGHTS]


@pytest.mark.slow
def test_every_second_turn_logs(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, hours=0.5)
    (logging,) = run_in_process(compare_logging, BenchmarkConfig(turns=2, scale=0.04), corpus, tmp_path)
    assert len(logging.values) == len(logging.floors) == 2
    rows = read_json_lines(tmp_path / "logging" / "metrics.jsonl")
    # Turns of two steps. The last step of a run is always logged.
    assert [row["step"] for row in rows if "gradient_norm/head" in row] == [1, 5, 9, 12]


@pytest.mark.slow
@pytest.mark.parametrize("part", CPU_PARTS)
def test_each_part_runs(tmp_path: Path, part: str) -> None:
    # The first Ray task has to last long enough to be seen; a classifier on few clips takes as long as on many.
    scales = {"preprocess": 0.1, "evaluation": 0.0015}
    assert run_parts(tmp_path, part, scale=scales.get(part, 0.005))


@pytest.mark.parametrize("part", ["generation", pytest.param("preprocess", marks=pytest.mark.slow)])
def test_sigterm_leaves_nothing_behind(tmp_path: Path, part: str) -> None:
    # The paths of Ray's sockets have to be short.
    environment = os.environ | {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    words = ["--only", part, "--turns=100000", "--scale=0.1"]
    benchmark = psutil.Popen([*BENCHMARK, *words], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    # One process for a part that runs in a process of its own, some for a command that has started Ray.
    while len(children := benchmark.children(recursive=True)) < (5 if part == "preprocess" else 1):
        assert benchmark.poll() is None
        time.sleep(0.1)
    benchmark.send_signal(signal.SIGTERM)
    assert benchmark.wait() == 128 + signal.SIGINT
    assert list(tmp_path.glob("babble-benchmark-*")) == []
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
