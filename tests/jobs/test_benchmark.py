"""The benchmark measures what it says: its floors do the same work, its sums are whole. Never how fast anything is."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from babble.cli import CommandError, read_config
from babble.data.datamodule import SpeechData
from babble.data.loaders import DataConfig
from babble.data.shards import read_manifest
from babble.files import read_json_lines
from babble.generation.free_run import generate_frames
from babble.model.babbler import Babbler, ModelConfig
from babble.model.heads import CategoricalHead
from babble.train import ComputeConfig, StopConfig, TrainConfig, WandbConfig, train
from babble.training.module import OptimConfig
from babble.training.samples import SamplesConfig
from jobs.benchmark import (
    BenchmarkConfig,
    bare_babble,
    find_recordings,
    measure_evaluation,
    measure_generation,
    measure_logging,
    measure_preprocess,
    measure_training,
    plain_babble,
)
from jobs.measuring import (
    MODE,
    ROOT,
    SPEECH,
    Figure,
    encode_bare,
    format_table,
    in_own_process,
    make_corpus,
    measure_command,
    take_turns,
    train_bare,
)
from jobs.scaling import (
    ENCODING,
    READING,
    SHARD_BYTES,
    SHARD_HOURS,
    STEPS,
    TRAINING,
    WEIGHTS,
    format_plan,
    measure_nodes,
    measure_ranks,
    measure_rates,
    measure_stopping,
    measure_streaming,
    measure_sweep,
)
from preprocessing.audio import open_recording
from preprocessing.encode import encode_recording

TINY = BenchmarkConfig(
    pairs=1,
    speech_hours=0.3,
    turns=2,
    corpus_hours=0.05,
    units=8,
    training_units=(8,),
    training_steps=1,
    logging_steps=2,
    frames=20,
    seconds=1.0,
    held_out_hours=0.01,
)
REGRESSION = ModelConfig(inputs="scaled", num_layers=2, units=8, head="regression")
CATEGORICAL = ModelConfig(num_layers=2, units=8, head="categorical")
AUTOREGRESSIVE = ModelConfig(num_layers=2, units=8, skips=True)


def test_a_ratio_is_of_neighbours_and_their_median_counts() -> None:
    figure = Figure("speed", "frames/s", values=(10.0, 40.0, 30.0), floors=(20.0, 50.0, 10.0), at_least=0.8)
    assert figure.ratios == (0.5, 0.8, 3.0)
    assert figure.median == 0.8
    assert figure.is_met is True
    found = figure.to_dict()
    assert (found["ratio"], found["ratio_min"], found["ratio_max"], found["is_met"]) == (0.8, 0.5, 3.0, True)


@pytest.mark.parametrize(
    ("values", "limits", "is_met"),
    [
        ((1.0,), {}, None),
        ((1.0,), {"at_least": 1.1}, False),
        ((1.0,), {"at_least": 0.9}, True),
        ((1.0,), {"at_most": 0.9}, False),
        ((1.0, 0.5, 0.5), {"at_most": 0.9}, True),
    ],
)
def test_without_a_floor_the_value_itself_is_judged(
    values: tuple[float, ...], limits: dict[str, float], is_met: bool | None
) -> None:
    assert Figure("share", "of it", values, **limits).is_met is is_met


def test_a_value_without_its_floor_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Figure("speed", "frames/s", (1.0, 2.0), (1.0,)).ratios


def test_the_table_shows_spread_limit_and_miss() -> None:
    fast = Figure("fast", "frames/s", (3.0, 5.0), (2.0, 2.0), at_least=0.8, note="so it is")
    slow = Figure("slow", "CPU s", (3.0, 5.0), (2.0, 2.0), at_most=1.1)
    _, first, second, note = format_table([fast, slow]).splitlines()
    assert first.split() == ["fast", "4", "frames/s", "2", "2.000", "1.5..2.5", ">=", "0.8", "ok"]
    assert second.split() == ["slow", "4", "CPU", "s", "2", "2.000", "1.5..2.5", "<=", "1.1", "MISS"]
    assert note == "  fast: so it is"


def test_turns_alternate_and_the_first_is_thrown_away() -> None:
    order: list[str] = []
    counter = itertools.count()

    def measure(name: str) -> float:
        order.append(name)
        return float(next(counter))

    ours, floors = take_turns(3, lambda: measure("ours"), lambda: measure("floor"))
    assert order == ["ours", "floor", "floor", "ours", "ours", "floor", "floor", "ours"]
    assert (ours, floors) == ((3.0, 4.0, 7.0), (2.0, 5.0, 6.0))


# Each of the four burns half a second: an orphan of another session, a child that is waited for, one whose parent lets
# the kernel bury it, and the command itself.
KNOWN_LOAD = """
import os, signal, time

def burn():
    end = time.process_time() + 0.5
    while time.process_time() < end: pass

def start(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def leave_an_orphan():
    os.setsid()
    start(burn)

def ignore_a_child():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    start(lambda: (burn(), time.sleep(1)))
    try:
        os.wait()
    except ChildProcessError:
        pass

for work in (leave_an_orphan, burn, ignore_a_child):
    os.waitpid(start(work), 0)
burn()
"""


def test_cpu_time_is_that_of_the_whole_tree() -> None:
    usage = in_own_process(measure_command, [sys.executable, "-c", KNOWN_LOAD])
    assert 1.95 < usage.cpu_seconds < 2.4
    assert usage.wall_seconds > usage.cpu_seconds / (os.cpu_count() or 1)


def test_a_command_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(CommandError, match="no such luck"):
        in_own_process(measure_command, [sys.executable, "-c", "raise SystemExit('no such luck')"])


@pytest.mark.parametrize("rate_hz", [8000, 44100])
def test_the_bare_floor_gives_the_packets_of_the_job(tmp_path: Path, rate_hz: int) -> None:
    speech, _ = soundfile.read(SPEECH / "allison-01.ogg", frames=80_000)
    path = tmp_path / "recording.flac"
    soundfile.write(path, np.stack([speech, speech / 2], axis=1), rate_hz)
    with open_recording(path) as recording:
        expected = encode_recording(recording.pcm_blocks(), MODE, chunk_frames=100)
    assert list(encode_bare([path])) == [expected]
    assert expected


def test_only_recordings_that_the_floor_can_read_are_taken(tmp_path: Path) -> None:
    for name in ("b.flac", "a.wav", "c.m4b", "notes.txt"):
        (tmp_path / name).write_bytes(b"none is opened here")
    assert [path.name for path in find_recordings([tmp_path])] == ["a.wav", "b.flac"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--sources"):
        find_recordings([tmp_path / "empty"])


def test_the_corpus_is_as_long_as_asked_and_has_something_held_out(tmp_path: Path) -> None:
    # Two clips and a repeat of the first.
    manifest = read_manifest(make_corpus(tmp_path, hours=0.11))
    assert 0.11 <= manifest.split_hours("train") < 0.17
    assert manifest.split_frames("validation") == 1000


def test_the_bare_loop_trains_as_train_does(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, hours=0.05)
    settings = TrainConfig(
        name="lightning",
        runs=tmp_path,
        data=DataConfig(corpus, window_frames=20, batch_size=4),
        model=REGRESSION,
        optim=OptimConfig(clip_norm=None),
        stop=StopConfig(steps=3),
        samples=SamplesConfig(every_epochs=0, prompts=1, frames=2),
        compute=ComputeConfig(accelerator="cpu"),
        wandb=WandbConfig(mode="off"),
    )
    train(settings)
    trained = torch.load(tmp_path / "lightning" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    torch.manual_seed(settings.seed)
    model = Babbler(REGRESSION, MODE)
    data = SpeechData(settings.data, settings.seed)
    data.setup()
    train_bare(model, iter(data.train_dataloader()))(3)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, trained[f"model.{name}"]), name


@pytest.mark.parametrize("shape", [REGRESSION, CATEGORICAL])
def test_the_bare_loop_babbles_as_generate_does(shape: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Babbler(shape, MODE).eval()
    with torch.no_grad():
        # Untrained it would say one frame for ever, and draw from distributions that leave all open.
        for weights in model.parameters():
            weights.mul_(5)
        if shape is CATEGORICAL:
            model.head.dense.weight.mul_(10_000)
    prompts = np.random.default_rng(0).integers(MODE.levels, size=(3, 10, MODE.num_fields))
    expected = generate_frames(model, prompts, 30)
    babble = bare_babble(model, prompts)
    found = np.concatenate([babble(10), babble(20)]).swapaxes(0, 1)
    assert len(np.unique(expected[0], axis=0)) > 5
    np.testing.assert_array_equal(found, expected)


def test_the_bare_loop_draws_from_the_categorical_heads_distribution() -> None:
    torch.manual_seed(0)
    model = Babbler(CATEGORICAL, MODE).eval()
    head, streams = model.head, 20_000
    assert isinstance(head, CategoricalHead)
    with torch.no_grad():
        head.dense.weight.mul_(20)
    prompt = np.random.default_rng(0).integers(MODE.levels, size=(1, 5, MODE.num_fields))
    with torch.no_grad():
        hidden_BTH, _ = model(torch.from_numpy(prompt))
        shares = [logits.softmax(-1)[0].numpy() for logits in head.dense(hidden_BTH[:, -1]).split(head.levels, dim=-1)]
    drawn_BF = bare_babble(model, np.repeat(prompt, streams, axis=0))(1)[0]
    for f, share in enumerate(shares):
        counts = np.bincount(drawn_BF[:, f], minlength=len(share))
        assert len(counts) == len(share)
        deviation = np.sqrt(streams * share * (1 - share)) + 1
        assert (abs(counts - streams * share) < 5 * deviation).all(), MODE.fields[f].name


def test_the_plain_loop_draws_frames_as_often_as_they_are_probable() -> None:
    torch.manual_seed(0)
    model = Babbler(AUTOREGRESSIVE, MODE).eval()
    prompt, streams = np.random.default_rng(0).integers(MODE.levels, size=(1, 5, MODE.num_fields)), 20_000
    with torch.no_grad():
        model.head.earlier_LK.mul_(20)
        hidden_BTH, _ = model(torch.from_numpy(prompt))
        # The sixteen ways to voice a frame: what is behind the four bits does not count for them.
        frames = torch.zeros(1, 16, MODE.num_fields, dtype=torch.long)
        frames[..., :4] = torch.tensor(list(itertools.product((0, 1), repeat=4)))
        bits = model.head.loss(hidden_BTH[:, -1:].expand(1, 16, -1), frames)[0, :, :4].sum(dim=-1)
    p = torch.exp2(-bits).numpy()
    drawn_BF = plain_babble(model, np.repeat(prompt, streams, axis=0))(1)[0]
    counts = np.bincount(drawn_BF[:, :4] @ np.array([8, 4, 2, 1]), minlength=16)
    assert (abs(counts - streams * p) < 4.5 * np.sqrt(streams * p * (1 - p))).all()


def check_figures(figures: list[Figure], names: list[str]) -> None:
    assert [figure.name for figure in figures] == names
    for figure in figures:
        assert len(figure.ratios) == len(figure.values) > 0
        assert min(figure.ratios) > 0
        # As `--json` writes it: numpy's own numbers and truths are none of JSON's.
        assert json.loads(json.dumps(figure.to_dict()))["name"] == figure.name
    assert len(format_table(figures).splitlines()) > len(figures)


def test_training_is_measured_beside_the_bare_loop(tmp_path: Path) -> None:
    figures = measure_training(TINY, tmp_path)
    check_figures(figures, ["training, 2017 3x8"])
    assert len(figures[0].floors) == TINY.turns


def test_logging_is_measured_beside_none(tmp_path: Path) -> None:
    figures = measure_logging(TINY, tmp_path)
    check_figures(figures, ["logging, babble-cpu", "logging, babble-cpu, CPU time"])
    assert [len(figure.floors) for figure in figures] == 2 * [TINY.turns]
    # Every other turn ends with a row, and those between with none; the last step of a run has one of its own.
    rows = read_json_lines(tmp_path / "logging" / "metrics.jsonl")
    assert [row["step"] for row in rows if "gradient_norm/head" in row] == [1, 5, 9, 12]
    (log,) = (tmp_path / "logging" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"gradient_norm/head" in log.read_bytes()


def test_generation_is_measured_beside_the_bare_loop(tmp_path: Path) -> None:
    figures = measure_generation(TINY, tmp_path)
    networks = ("2017 3x8", "categorical 3x8", "babble-cpu")
    check_figures(
        figures,
        [
            name
            for network in networks
            for name in (
                f"generation, {network}, 1 at once",
                f"generation, {network}, 1 at once, by itself",
                f"generation, {network}, 64 at once",
                f"generation, {network}, 64 at once, by itself",
                f"python -m babble.generate, {network}",
            )
            if network == "babble-cpu" or "by itself" not in name
        ],
    )


def test_evaluation_is_measured_as_a_whole_command(tmp_path: Path) -> None:
    figures = measure_evaluation(TINY, tmp_path)
    check_figures(figures, ["evaluation, babble-cpu"])
    # Two turns, each with Python's start, of 36 s of speech.
    assert len(figures[0].values) == 2
    assert min(figures[0].values) * 0.01 > 1


@pytest.mark.slow
def test_two_nodes_are_measured_beside_one(tmp_path: Path) -> None:
    (figure,) = measure_nodes(tmp_path, pairs=1, hours=0.1)
    assert figure.values[0] > 0
    assert figure.floors[0] > 0


@pytest.mark.slow
def test_two_processes_are_measured_beside_one(tmp_path: Path) -> None:
    together, apart = measure_ranks(tmp_path, turns=1, steps=24)
    for figure in (together, apart):
        assert figure.values[0] > 0
        assert figure.floors[0] > 0


def test_stopping_and_going_on_are_measured(tmp_path: Path) -> None:
    saving, starting = measure_stopping(tmp_path, turns=2)
    for figure in (saving, starting):
        assert all(0 < seconds < 60 for seconds in figure.values), figure


@pytest.mark.slow
def test_a_sweep_is_measured_beside_two_loops(tmp_path: Path) -> None:
    (figure,) = measure_sweep(tmp_path, turns=1, trials=2, steps=5)
    assert figure.values[0] > 0
    assert figure.floors[0] > 0


def test_reading_from_shards_is_measured(tmp_path: Path) -> None:
    figures = measure_streaming(tmp_path, hours=1.0)
    assert [figure.name.split()[0] for figure in figures] == 2 * ["windows"] + 2 * ["streams"]
    assert all(min(figure.values) > 0 for figure in figures)


def test_a_plan_is_made_from_measured_rates(tmp_path: Path) -> None:
    found = {figure.name: figure.median for figure in measure_rates(tmp_path)}
    assert min(found.values()) > 0
    assert "| 60,000 | 256 |" in format_plan(found)


def test_the_plans_sums() -> None:
    rates = {
        ENCODING: 100.0,
        SHARD_BYTES: 1.0,
        SHARD_HOURS: 1.0,
        READING: 1e6,
        TRAINING: 1e4,
        STEPS: 10.0,
        WEIGHTS: 1e6,
    }
    rows = [line.strip("| ").split(" | ") for line in format_plan(rates).splitlines() if line.startswith("| ")][2:]
    # 1,000 hours, 90 million frames, on 8 devices of one node: 6,400 hours are encoded an hour.
    assert rows[4] == ["1,000", "8", "1,000", "1", "0.16", "0.31", "0.89", "7.0", "training (then reading, at 1%)"]
    # So fast a device would wait for its reader; across nodes, for 8 MB of gradients five thousand times a second.
    fast = [line.split("|")[-2].strip() for line in format_plan(rates, 5e6).splitlines() if line.startswith("| ")][2:]
    assert fast == 3 * ["reading", "reading", "the network"]


def test_preprocessing_is_measured_beside_the_bare_floor(tmp_path: Path) -> None:
    figures = measure_preprocess(TINY, tmp_path)
    apart, whole, ray, crowd, busy, memory = figures
    assert apart.values[0] == pytest.approx(whole.values[0] - ray.values[0])
    assert apart.floors == whole.floors
    assert len(crowd.floors) == 1
    assert 0 < busy.values[0] <= 1.05
    assert 50 < memory.values[0] < 500


def _session(folder: Path) -> str:
    try:
        return (folder / "stat").read_text().rsplit(")", 1)[1].split()[3]
    except OSError:
        return ""


@pytest.mark.parametrize("part", ["data", pytest.param("preprocess", marks=pytest.mark.slow)])
def test_sigterm_leaves_nothing_behind(tmp_path: Path, part: str) -> None:
    sizes = ["--turns=100000", "--corpus_hours=0.05", "--speech_hours=0.5"]
    command = [sys.executable, "-m", "jobs.benchmark", "--only", part, *sizes]
    # The paths of Ray's sockets have to be short.
    environment = os.environ | {"TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stderr
    assert started.stderr.readline().startswith(part)
    # Into the work of the process that measures.
    time.sleep(5 if part == "data" else 15)
    started.terminate()
    assert started.wait(60) == 130
    started.stderr.close()
    assert list(tmp_path.glob("babble-benchmark-*")) == []
    deadline = time.monotonic() + 10
    while str(started.pid) in map(_session, Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "a process of the benchmark lives on"
        time.sleep(0.1)


def test_a_part_that_there_is_not_is_refused() -> None:
    assert read_config(BenchmarkConfig, ["--only", "data", "training"]).only == ("data", "training")
    with pytest.raises(ValueError, match="--only dta"):
        read_config(BenchmarkConfig, ["--only", "dta"])


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    sizes = ["--turns=2", "--corpus_hours=0.05", "--units=8"]
    command = [sys.executable, "-m", "jobs.benchmark", "--only", "data", *sizes, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data for 3x8" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    (figure,) = found["figures"]
    assert len(figure["values"]) == len(figure["floors"]) == 2
    assert figure["ratio_min"] <= figure["ratio"] <= figure["ratio_max"]
    assert found["config"]["units"] == 8
    assert "versions" in found["environment"]
