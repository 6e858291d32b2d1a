"""The scripts of slurm/ on a real Slurm cluster, without mocks."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from testbed import ENVIRONMENT, ROOT, SMALL, Slurm, kill_node

from babble.cli import config_to_dict
from babble.data.config import DataConfig
from babble.files import read_json_lines
from babble.model.config import ModelConfig
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder
from babble.training.config import ComputeConfig, OptimConfig, SamplesConfig, Stage, StopConfig, TrainConfig
from babble.training.metrics import OF_THE_MACHINE
from babble.training.wandb_run import WandbConfig

pytestmark = pytest.mark.slurm

TRAIN, PREPROCESS, PIPELINE, TUNE = (ROOT / f"slurm/{name}.sh" for name in ("train", "preprocess", "pipeline", "tune"))
STEPS = 300


def _config(folder: Path, **compute: int) -> Path:
    """Write a config with all state that a resume must restore: streams, dropout, stages, a schedule, offline W&B."""
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
def uninterrupted(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training by two processes without Slurm and without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    words = ["--config", _config(folder, devices=2), "--data.shards", speech_shards, "--runs", folder, "--name", "run"]
    command = [sys.executable, "-m", "babble.train", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def _submit_training(slurm: Slurm, shards: Path, *flags: str, script: Path = TRAIN) -> str:
    words = ("--config", _config(slurm.folder), "--data.shards", shards, "--name", "run")
    return slurm.submit("--nodes=2", *SMALL, *flags, script, *words)


def _without_signal(folder: Path) -> Path:
    """Return a copy of train.sh that does not ask Slurm for a signal before the time limit or a preemption."""
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


def test_two_nodes_train_as_two_processes_do(slurm: Slurm, speech_shards: Path, uninterrupted: Path) -> None:
    job = _submit_training(slurm, speech_shards)
    log = slurm.complete(job)
    assert "2 (node[1-2]), 0 GPUs per node, 1 processes per node" in log
    assert "best val/bits_per_frame" in log
    rank_0, rank_1 = ((slurm.folder / f"logs/babble-train-{job}/rank-{n}.log").read_text() for n in (0, 1))
    assert "2 processes on 2 nodes" in rank_0
    assert "new run" not in rank_1
    run = slurm.folder / "runs/run"
    _assert_same_run(run, uninterrupted)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert not list(slurm.folder.glob("**/hpc_ckpt*"))
    again = _submit_training(slurm, speech_shards)
    assert "is finished" in slurm.complete(again)
    alone = slurm.submit(
        *SMALL, TRAIN, "--config", slurm.folder / "tiny.yaml", "--name", "run", "--data.shards", speech_shards
    )
    assert slurm.wait(alone) == "FAILED"
    assert "compute.nodes: was 2, now 1" in slurm.log(alone)


@pytest.mark.parametrize("signal", ["SIGUSR1", "SIGTERM"])
def test_a_preempted_training_resumes_with_the_same_result(
    signal: str, slurm: Slurm, speech_shards: Path, uninterrupted: Path
) -> None:
    """Clusters differ in the signal that they send before a preemption: the one of --signal, or SIGTERM."""
    script = TRAIN if signal == "SIGUSR1" else _without_signal(slurm.folder)
    job = _submit_training(slurm, speech_shards, script=script)
    run = slurm.folder / "runs/run"
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    urgent = slurm.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
    slurm.complete(urgent)
    log = slurm.complete(job)
    assert "requeueing job" in log
    assert ", restart 1," in log
    rank_0 = (slurm.folder / f"logs/babble-train-{job}/rank-0.log").read_text()
    assert f"by {signal}; the same command resumes from there" in rank_0
    assert "resumes at step" in rank_0
    _assert_same_run(run, uninterrupted)
    ids = {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}
    assert ids == {(run / "wandb_id").read_text()}


def test_a_cancelled_training_is_not_requeued_and_can_be_resumed(
    slurm: Slurm, speech_shards: Path, uninterrupted: Path
) -> None:
    jobs = [_submit_training(slurm, speech_shards) for _ in range(2)]
    run = slurm.folder / "runs/run"
    slurm.wait(jobs[0], lambda: "FAILED" in map(slurm.state, jobs))
    rejected = next(job for job in jobs if slurm.state(job) == "FAILED")
    job = next(job for job in jobs if job != rejected)
    assert "is in use by another training" in slurm.log(rejected)
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    subprocess.run(["scancel", job], check=True)
    assert slurm.wait(job) == "CANCELLED"
    assert "requeueing" not in slurm.log(job)
    slurm.complete(_submit_training(slurm, speech_shards))
    _assert_same_run(run, uninterrupted)


def test_a_training_resumes_on_another_node_when_one_fails(
    slurm: Slurm, speech_shards: Path, uninterrupted: Path
) -> None:
    other = slurm.submit("--nodelist=node3", "--exclusive", "--wrap=sleep 600")
    slurm.wait(other, lambda: slurm.state(other) == "RUNNING")
    job = _submit_training(slurm, speech_shards)
    run = slurm.folder / "runs/run"
    slurm.wait(job, lambda: len(_rows(run)) > 10)
    subprocess.run(["scancel", other], check=True)
    kill_node("node2")
    log = slurm.complete(job)
    assert "2 (node[1,3])" in log
    _assert_same_run(run, uninterrupted)


def test_a_killed_rank_ends_the_job_with_its_log(slurm: Slurm, speech_shards: Path) -> None:
    job = _submit_training(slurm, speech_shards)
    slurm.wait(job, lambda: len(_rows(slurm.folder / "runs/run")) > 10)
    find = "ps -eo pid,args | grep '[b]abble.train' | grep -v srun | head -n 1 | awk '{print $1}'"
    step = ["srun", "--overlap", f"--jobid={job}", "--nodes=1", "--ntasks=1", "--nodelist=node2"]
    subprocess.run([*step, "bash", "-c", f"kill -SEGV $({find})"], check=True)
    assert slurm.wait(job) == "FAILED"
    assert "The first process to end was rank 1" in slurm.log(job)
    assert "Segmentation fault" in slurm.log(job)


def test_a_wrong_number_of_processes_fails_at_once(slurm: Slurm, speech_shards: Path) -> None:
    job = slurm.submit("--gpus-per-node=8", "--cpus-per-task=1", TRAIN, "--data.shards", speech_shards)
    assert slurm.wait(job) == "FAILED"
    assert "8 GPUs but 1 processes per node: submit with --gpus-per-node=8 --ntasks-per-node=8" in slurm.log(job)


SOURCES = [ROOT / f"tests/speech/allison-0{number}.ogg" for number in (1, 2, 3, 4)]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.txt"}


def test_one_node_two_nodes_and_an_array_make_the_same_shards(slurm: Slurm) -> None:
    words = ("--sources", *SOURCES, "--chunk-seconds", 20, "--out")
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


def test_preprocessing_resumes_on_another_node_when_one_fails(slurm: Slurm) -> None:
    # Recordings of several lengths, so that some are finished and others not when the node fails.
    clips, (rate_hz, *_) = zip(*(soundfile.read(path, dtype="int16") for path in SOURCES), strict=True)
    book = slurm.folder / "book"
    book.mkdir()
    for repeats in range(2, 8):
        pcm = np.concatenate([clip for clip in clips for _ in range(repeats)])
        soundfile.write(book / f"part-{repeats:02d}.flac", pcm, rate_hz)
    # Twelve hours, which are encoded twice.
    words = ("--shifts", "1", "--speeds", "1", "--sources", book, "--out")
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


def test_a_sweep_on_two_nodes_resumes_after_a_requeue(slurm: Slurm, speech_shards: Path) -> None:
    # One trial is far longer than the time that Slurm takes to preempt the job.
    words = ("--config", _config(slurm.folder), "--data.shards", speech_shards, "--name", "sweep")
    words += ("--space", '{"stop.steps": {"choice": [100, 110, 1000]}}', "--validate-every-epochs", 2)
    job = slurm.submit("--nodes=2", *SMALL, TUNE, *words)
    sweep = SweepFolder(slurm.folder / "runs/sweep")

    def trials(state: str) -> list[str]:
        return [row.trial for row in sweep.read_rows() if row.state == state]

    slurm.wait(job, lambda: trials("finished"))
    slurm.wait(job, lambda: any("steps-1000" in trial for trial in trials("running")))
    (long,) = (trial for trial in trials("running") if "steps-1000" in trial)
    slurm.wait(job, lambda: RunFolder(sweep.trials / long).checkpoint("last").is_file())
    finished = trials("finished")
    before = {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished}
    urgent = slurm.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
    slurm.complete(urgent)
    log = slurm.complete(job)
    assert "3 of 3 ended" in log
    assert ", restart 1," in log
    assert len(trials("finished")) == 3
    assert {name: (sweep.trials / name / "metrics.jsonl").stat().st_mtime_ns for name in finished} == before
    assert "resumes at step" in sweep.log(long).read_text()
    assert sweep.best.checkpoint("best").is_file()


def test_the_pipeline_runs_all_three_jobs(slurm: Slurm) -> None:
    words = ["book", "--sources", ROOT / "tests/speech", "--", "--config", _config(slurm.folder), "--stop.steps", 20]
    words += ["--", "--babble-seconds", 20]
    flags = {
        "PREPROCESS_FLAGS": "--cpus-per-task=2",
        "TRAIN_FLAGS": " ".join(SMALL),
        "EVALUATE_FLAGS": "--cpus-per-task=1",
    }
    pipeline = subprocess.run(
        [PIPELINE, *map(str, words)], cwd=slurm.folder, env={**ENVIRONMENT, **flags}, capture_output=True, text=True
    )
    assert pipeline.returncode == 0, pipeline.stderr
    jobs = [line.split()[2].rstrip(",") for line in pipeline.stdout.splitlines()[:3]]
    for job in jobs:
        slurm.complete(job)
    run = slurm.folder / "runs/book"
    assert {path.name for path in run.iterdir()} >= {"evaluation.json", "evaluation.png", "babble.wav", "babble.c2"}
