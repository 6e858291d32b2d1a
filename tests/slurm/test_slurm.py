"""The scripts of slurm/ on a real cluster: nothing replaced, nothing mocked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from testbed import ENVIRONMENT, ROOT, SMALL, Slurm, kill_node

from babble.cli import config_to_dict
from babble.data.loaders import DataConfig
from babble.files import read_json_lines
from babble.model.babbler import ModelConfig
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.training.config import ComputeConfig, StopConfig, TrainConfig
from babble.training.metrics import OF_THE_MACHINE
from babble.training.module import OptimConfig
from babble.training.samples import SamplesConfig
from babble.training.unfreezing import Stage
from babble.training.wandb_run import WandbConfig

pytestmark = pytest.mark.slurm

TRAIN, PREPROCESS, PIPELINE, TUNE = (ROOT / f"slurm/{name}.sh" for name in ("train", "preprocess", "pipeline", "tune"))
STEPS = 300


def _config(folder: Path, **compute: int) -> Path:
    """Streams, dropout, stages: all that has a state of its own; a checkpoint after every step, W&B offline."""
    config = TrainConfig(
        data=DataConfig(reading="streams", window_frames=16, batch_size=4, windows_per_epoch=40),
        model=ModelConfig(num_layers=2, units=32, dropout=0.2),
        optim=OptimConfig(input_noise=0.1, schedule="cosine"),
        unfreezing=(Stage((1,), 10), Stage((1, 2))),
        stop=StopConfig(steps=STEPS),
        validate_every_epochs=20,
        samples=SamplesConfig(every_epochs=0),
        log_every_steps=5,
        checkpoint_minutes=0,
        compute=ComputeConfig(accelerator="cpu", threads=1, **compute),
        wandb=WandbConfig(mode="offline"),
    )
    values = config_to_dict(config)
    del values["name"], values["runs"], values["data"]["shards"]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _rows(run: Path) -> list[dict[str, float]]:
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in rows]


def _assert_same_run(run: Path, other: Path) -> None:
    ours, theirs = (torch.load(RunFolder(r).checkpoint("last"), weights_only=True)["state_dict"] for r in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert _rows(run) == _rows(other)


@pytest.fixture(scope="module")
def undisturbed(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by two processes without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = ["--config", _config(folder, devices=2), "--data.shards", speech_shards, "--runs", folder, "--name", "run"]
    command = [sys.executable, "-m", "babble.train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def _submit_training(slurm: Slurm, shards: Path, *flags: str, script: Path = TRAIN) -> str:
    words = ("--config", _config(slurm.folder), "--data.shards", shards, "--name", "night")
    return slurm.submit("--nodes=2", *SMALL, *flags, script, *words)


def _without_signal(folder: Path) -> Path:
    """Return a train.sh that asks Slurm for no signal, as others' scripts."""
    scripts = folder / "slurm"
    shutil.copytree(TRAIN.parent, scripts)
    for package in ("babble", "preprocessing"):
        (folder / package).symlink_to(ROOT / package)
    script = scripts / "train.sh"
    line = "#SBATCH --signal=SIGUSR1@120\n"
    text = script.read_text()
    assert line in text
    script.write_text(text.replace(line, ""))
    return script


def test_two_nodes_train_as_two_processes_do(slurm: Slurm, speech_shards: Path, undisturbed: Path) -> None:
    job = _submit_training(slurm, speech_shards)
    log = slurm.complete(job)
    assert "2 (node[1-2]), 1 processes on each" in log
    assert "best val/bits_per_frame" in log
    rank_0, rank_1 = ((slurm.folder / f"logs/babble-train-{job}/rank-{n}.log").read_text() for n in (0, 1))
    assert "2 processes on 2 nodes" in rank_0
    assert "new run" not in rank_1
    run = slurm.folder / "runs/night"
    _assert_same_run(run, undisturbed)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert not list(slurm.folder.glob("**/hpc_ckpt*"))
    again = _submit_training(slurm, speech_shards)
    assert "is finished" in slurm.complete(again)
    alone = slurm.submit(
        *SMALL, TRAIN, "--config", slurm.folder / "tiny.yaml", "--name", "night", "--data.shards", speech_shards
    )
    assert slurm.wait(alone) == "FAILED"
    assert "compute.nodes: was 2, now 1" in slurm.log(alone)


@pytest.mark.parametrize("signal", ["SIGUSR1", "SIGTERM"])
def test_preempted_a_training_goes_on_as_if_nothing_had_been(
    signal: str, slurm: Slurm, speech_shards: Path, undisturbed: Path
) -> None:
    """Sites differ in what they send before the nodes are taken: the job's own --signal, or SIGTERM."""
    script = TRAIN if signal == "SIGUSR1" else _without_signal(slurm.folder)
    job = _submit_training(slurm, speech_shards, script=script)
    run = slurm.folder / "runs/night"
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    urgent = slurm.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
    slurm.complete(urgent)
    log = slurm.complete(job)
    assert "requeueing job" in log
    assert "requeued for the 1. time" in log
    rank_0 = (slurm.folder / f"logs/babble-train-{job}/rank-0.log").read_text()
    assert f"by {signal}; the same command resumes from there" in rank_0
    assert "resumes at step" in rank_0
    _assert_same_run(run, undisturbed)
    ids = {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}
    assert ids == {(run / "wandb_id").read_text()}


def test_a_cancelled_training_is_not_requeued_but_kept(slurm: Slurm, speech_shards: Path, undisturbed: Path) -> None:
    jobs = [_submit_training(slurm, speech_shards) for _ in range(2)]
    run = slurm.folder / "runs/night"
    slurm.wait(jobs[0], lambda: "FAILED" in map(slurm.state, jobs))
    refused = next(job for job in jobs if slurm.state(job) == "FAILED")
    job = next(job for job in jobs if job != refused)
    assert "is in use by another training" in slurm.log(refused)
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    subprocess.run(["scancel", job], check=True)
    assert slurm.wait(job) == "CANCELLED"
    assert "requeueing" not in slurm.log(job)
    slurm.complete(_submit_training(slurm, speech_shards))
    _assert_same_run(run, undisturbed)


def test_a_lost_node_costs_only_time(slurm: Slurm, speech_shards: Path, undisturbed: Path) -> None:
    other = slurm.submit("--nodelist=node3", "--exclusive", "--wrap=sleep 600")
    slurm.wait(other, lambda: slurm.state(other) == "RUNNING")
    job = _submit_training(slurm, speech_shards)
    run = slurm.folder / "runs/night"
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    subprocess.run(["scancel", other], check=True)
    kill_node("node2")
    log = slurm.complete(job)
    assert "2 (node[1,3])" in log
    _assert_same_run(run, undisturbed)


def test_a_rank_that_dies_ends_the_job_with_its_traceback(slurm: Slurm, speech_shards: Path) -> None:
    job = _submit_training(slurm, speech_shards)
    slurm.wait(job, lambda: len(_rows(slurm.folder / "runs/night")) > 10)
    find = "ps -eo pid,args | grep '[b]abble.train' | grep -v srun | head -n 1 | awk '{print $1}'"
    subprocess.run(
        [
            "srun",
            "--overlap",
            f"--jobid={job}",
            "--nodes=1",
            "--ntasks=1",
            "--nodelist=node2",
            "bash",
            "-c",
            f"kill -SEGV $({find})",
        ],
        check=True,
    )
    assert slurm.wait(job, seconds=60) == "FAILED"
    assert "The first process to end was rank 1" in slurm.log(job)
    assert "Segmentation fault" in slurm.log(job)


def test_what_is_missing_is_said_at_once(slurm: Slurm, speech_shards: Path) -> None:
    job = slurm.submit("--gpus-per-node=8", "--cpus-per-task=1", TRAIN, "--data.shards", speech_shards)
    assert slurm.wait(job, seconds=30) == "FAILED"
    assert "8 GPUs but 1 processes a node: give sbatch --gpus-per-node=8 --ntasks-per-node=8" in slurm.log(job)


SOURCES = [ROOT / f"tests/speech/allison-0{number}.ogg" for number in (1, 2, 3, 4)]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.txt"}


def test_shards_are_the_same_from_one_node_two_nodes_and_an_array(slurm: Slurm) -> None:
    words = ("--sources", *SOURCES, "--chunk_seconds", 20, "--out")
    folders = {name: slurm.folder / name for name in ("one", "two", "array")}
    flags = {"one": (), "two": ("--nodes=2",), "array": ("--array=0-2",)}
    for name, folder in folders.items():
        job = slurm.submit("--cpus-per-task=1", *flags[name], PREPROCESS, *words, folder)
        for part in [f"{job}_{share}" for share in range(3)] if name == "array" else [job]:
            slurm.complete(part)
    contents = {name: _bytes(folder) for name, folder in folders.items()}
    assert len(contents["one"]) > 3
    assert contents["two"] == contents["one"]
    assert contents["array"] == contents["one"]


def test_a_node_lost_while_preprocessing_costs_only_time(slurm: Slurm) -> None:
    # The same recordings in several lengths, so that there is time to lose a node while some are done and others not.
    book = slurm.folder / "book"
    book.mkdir()
    for repeats in range(4, 12):
        names = [str(path) for path in SOURCES for _ in range(repeats)]
        subprocess.run(["sox", *names, str(book / f"part-{repeats:02d}.flac")], check=True)
    words = ("--sources", book, "--out")
    command = [sys.executable, "-m", "jobs.preprocess", *map(str, words), str(slurm.folder / "one")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)

    other = slurm.submit("--nodelist=node3", "--exclusive", "--wrap=sleep 600")
    slurm.wait(other, lambda: slurm.state(other) == "RUNNING")
    job = slurm.submit("--cpus-per-task=1", "--nodes=2", PREPROCESS, *words, slurm.folder / "two")
    slurm.wait(job, lambda: len(list((slurm.folder / "two").glob(".partial/*/*/facts.json"))) >= 2)
    subprocess.run(["scancel", other], check=True)
    kill_node("node2")
    log = slurm.complete(job)
    assert "2 (node[1,3])" in log
    assert "were encoded before" in log
    assert _bytes(slurm.folder / "two") == _bytes(slurm.folder / "one")


def test_a_sweep_on_two_nodes_goes_on_after_a_requeue(slurm: Slurm, speech_shards: Path) -> None:
    words = ("--config", _config(slurm.folder), "--data.shards", speech_shards, "--name", "sweep")
    words += ("--space", '{"model.units": {"choice": [8, 12, 16]}}', "--validate_every_epochs", 2)
    job = slurm.submit("--nodes=2", *SMALL, TUNE, *words)
    sweep = SweepFolder(slurm.folder / "runs/sweep")

    def states() -> list[str]:
        return [row.state for row in sweep.read_rows()]

    slurm.wait(job, lambda: "finished" in states())
    # Another trial is at work, and has something to go on from.
    last = sorted(sweep.trials.glob("*.yaml"))[-1].with_suffix("")
    slurm.wait(job, lambda: len(_rows(last)) > 10)
    finished = [row.trial for row in sweep.read_rows() if row.state == "finished"]
    before = {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished}
    urgent = slurm.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
    slurm.complete(urgent)
    log = slurm.complete(job)
    assert "3 of 3 ended" in log
    assert "requeued for the 1. time" in log
    assert states() == 3 * ["finished"]
    assert {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished} == before
    assert any("resumes at step" in sweep.log(row.trial).read_text() for row in sweep.read_rows())
    assert sweep.best.checkpoint("best").is_file()


def test_a_pipeline(slurm: Slurm) -> None:
    words = ["book", "--sources", ROOT / "tests/speech", "--", "--config", _config(slurm.folder), "--stop.steps", 20]
    words += ["--", "--babble_seconds", 20]
    flags = {
        "PREPROCESS_FLAGS": "--cpus-per-task=2",
        "TRAIN_FLAGS": " ".join(SMALL),
        "EVALUATE_FLAGS": "--cpus-per-task=1",
    }
    said = subprocess.run(
        [PIPELINE, *map(str, words)], cwd=slurm.folder, env={**ENVIRONMENT, **flags}, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    jobs = [line.split()[2] for line in said.stdout.splitlines()[:3]]
    for job in jobs:
        slurm.complete(job)
    run = slurm.folder / "runs/book"
    assert {path.name for path in run.iterdir()} >= {"evaluation.json", "evaluation.png", "babble.wav", "babble.c2"}
