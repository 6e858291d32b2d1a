"""A night of faults: killed at random moments, four commands end with an undisturbed run's result: `make chaos`.

    python tests/chaos.py --jobs preprocess,train,ranks,tune --kills 50 --seed 0

1. An undisturbed run of the command, as a user types it, gives its result and its time.
2. It is killed by SIGKILL, all its processes or only the first one, at a moment drawn uniformly from that time, and
   started again until it ends by itself. Its result must then be equal: shards and manifest; the tensors of checkpoints
   and the rows of metrics.jsonl; trials.csv, best.yaml and answer.txt; all without times. All this is repeated until it
   was killed often enough.
3. Between the kills the disk is full, or stdout is closed. Then the command must name the cause with exit code 1 (141
   for stdout), or end with the result. What it started must have ended 60 seconds after it.

Exits with 1 if any of this fails, or on a traceback, and keeps logs and results then. Takes two hours.
"""

import argparse
import collections
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml
from paths import ROOT, SPEECH

from babble.codec.codec2 import encode_pcm, write_c2
from babble.codec.frames import get_mode, unpack_packets
from babble.files import read_json_lines
from babble.training.metrics import OF_THE_MACHINE

MODE, RATE_HZ = get_mode("1300"), 8000
ORPHAN_SECONDS = 60
# A start without a kill may take this many times the undisturbed time, and a minute.
MAX_TIMES, MAX_STARTS_PER_ROUND = 6, 60
# Of all faults (the others are kills); and of all kills, those of the command's first process only.
DISK_FULL_SHARE, CLOSED_SHARE, FIRST_PROCESS_SHARE = 0.08, 0.08, 0.15
Result = dict[str, Any]
TRAIN: dict[str, Any] = {
    "data": {"window_frames": 40, "batch_size": 4, "windows_per_epoch": 40},
    "model": {"num_layers": 3, "units": 16, "dropout": 0.2},
    "optim": {"input_noise": 0.1, "ema_decay": 0.8, "schedule": "cosine"},
    "unfreezing": [{"layers": [1], "epochs": 2}, {"layers": [1, 2], "epochs": 2}, {"layers": [1, 2, 3]}],
    "stop": {"epochs": 9},
    "validate_every_epochs": 2,
    "samples": {"every_epochs": 0, "prompts": 1, "prompt_frames": 20, "frames": 20},
    "checkpoint_minutes": 0,
    "log_every_steps": 2,
    "compute": {"threads": 1, "accelerator": "cpu"},
}
STREAMS = {
    "data": {**TRAIN["data"], "reading": "streams", "batch_size": 2},
    "before_unfreezing": "bypassed",
    "compute": {**TRAIN["compute"], "devices": 2},
}
SWEEP = {"space": {"model.units": {"choice": [8, 12, 16]}}, "unfreezing": [], "stop": {"epochs": 5}}


@dataclass(frozen=True)
class Job:
    """A command (the words after `python -m`), the folder that it writes, and how the result there is read."""

    name: str
    out: Path
    words: list[str]
    read: Callable[[Path], Result]
    # Used instead of `words` once the sweep has been started.
    again: list[str] = field(default_factory=list)


def make_sources(folder: Path) -> Path:
    """Write recordings of every kind: 7 minutes of speech."""
    for part in ("book", "zipped"):
        (folder / part).mkdir(parents=True)
    for number in range(1, 9):
        path = folder / ("book" if number < 5 else "zipped") / f"{number}.{('wav', 'flac', 'mp3', 'ogg')[number % 4]}"
        pcm, _ = soundfile.read(SPEECH / f"allison-{number:02d}.ogg", dtype="int16", stop=50 * RATE_HZ)
        soundfile.write(path, pcm, RATE_HZ)
    shutil.make_archive(str(folder / "book" / "more"), "zip", folder / "zipped")
    write_c2(folder / "book" / "9.c2", unpack_packets(encode_pcm(pcm[RATE_HZ:], MODE), MODE), MODE)
    return folder / "book"


def make_jobs(folder: Path, site: Path) -> dict[str, Job]:
    """Return all jobs: their inputs lie in `folder`, their results in `site`."""
    shards, out, runs = folder / "shards", site / "shards", site / "runs"
    for recipe, settings in {"train": {}, "ranks": STREAMS, "tune": SWEEP}.items():
        (folder / f"{recipe}.yaml").write_text(yaml.safe_dump(TRAIN | settings))
    sources = ["jobs.preprocess", "--sources", str(folder / "sources" / "book")]
    preprocess = [*sources, "--chunk-seconds", "2", "--entries-per-shard", "4", "--out", str(out)]

    def configured(command: str, recipe: str) -> list[str]:
        where = ["--data.shards", str(shards), "--runs", str(runs), "--name", recipe]
        return [command, "--config", str(folder / f"{recipe}.yaml"), *where, "--wandb.mode", "off"]

    again = ["babble.tune", "--resume", "tune", "--runs", str(runs)]
    jobs = [
        Job("preprocess", out, preprocess, lambda out: read_files(out, ".tar", "manifest.json")),
        Job("train", runs / "train", configured("babble.train", "train"), read_run),
        Job("ranks", runs / "ranks", configured("babble.train", "ranks"), read_run),
        Job("tune", runs / "tune", configured("babble.tune", "tune"), read_sweep, again),
    ]
    return {job.name: job for job in jobs}


def read_files(folder: Path, *kept: str) -> Result:
    """Return the hash of each file with such an ending, and the names of all, so that leftovers of a kill are found."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {"files": list(paths)} | {name: hash_file(path) for name, path in paths.items() if name.endswith(kept)}


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_tensors(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the name and hash of every tensor within nested values."""
    if isinstance(values, torch.Tensor):
        yield prefix, hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
    elif isinstance(values, dict | list | tuple):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from read_tensors(value, f"{prefix}/{key}")


def read_run(run: Path) -> Result:
    """Return the hashes of all tensors in its checkpoints, the rows of metrics, its samples, and its files' names."""
    result = read_files(run, ".c2", "finished.json")
    # Not previous.ckpt, which depends on when last.ckpt was saved.
    for path in sorted((run / "checkpoints").glob("[!p]*.ckpt")):
        result |= dict(read_tensors(torch.load(path, weights_only=True), path.stem))
    for number, row in enumerate(read_json_lines(run / "metrics.jsonl")):
        result[f"row {number}"] = json.dumps({k: v for k, v in row.items() if k not in OF_THE_MACHINE})
    return result


def read_sweep(sweep: Path) -> Result:
    """Return the rows of trials.csv, best.yaml and answer.txt; without times and without Ray's random ids."""
    kept = ("answer.png", "answer.txt", "best.yaml", "best/checkpoints/best.ckpt")
    result: Result = {"files": [name for name in kept if (sweep / name).is_file()]}
    for row in csv.DictReader((sweep / "trials.csv").read_text().splitlines()):
        name, units = row["trial"], row["model.units"]
        result[f"trial {units}"] = row | {"seconds": "", "trial": name.partition("-")[2]}
        run = read_run(sweep / "trials" / name)
        result |= {f"{units} {key}": value for key, value in run.items() if key.startswith(("row", "finished"))}
    answer = (sweep / "answer.txt").read_text().splitlines()
    result["answer.txt"] = [re.sub(r"\s+(minutes|\d+\.\d)$", "", line) for line in answer]
    return result | {"best.yaml": (sweep / "best.yaml").read_text()}


def describe_difference(expected: Result, found: Result) -> str:
    """Return what differs, or ""."""
    differ = [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]
    lines = [f"{key}: expected {expected.get(key)}, found {found.get(key)}" for key in differ if key != "files"]
    if names := set(expected["files"]) ^ set(found["files"]):
        lines.insert(0, f"only one of them has {sorted(names)}")
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


@dataclass
class Start:
    """A running command: its first process, what it prints, and the marker in the environment of all its processes."""

    process: subprocess.Popen[bytes]
    log: Path
    marker: str

    @classmethod
    def of(cls, job: Job, log: Path, *, has_pipe: bool = False) -> "Start":
        """Start a job's command; with a pipe, only stderr goes to the log."""
        marker = secrets.token_hex()
        own = {"CHAOS_ID": marker, "RAY_TMPDIR": str(log.parent.parent), "PYTHONPATH": str(ROOT)}
        words = job.again if job.again and (job.out / "sweep.yaml").is_file() else job.words
        with log.open("wb") as file:
            stdout = subprocess.PIPE if has_pipe else file
            command, environment = [sys.executable, "-m", *words], os.environ | own
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stdout, stderr=file, start_new_session=True
            )
        return cls(process, log, f"CHAOS_ID={marker}")

    def wait(self, seconds: float) -> int | None:
        """Return its exit code, or None if it is still running after this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def list_processes(self) -> dict[int, str]:
        """Return the command line of each of its processes that is running; zombies have no environment."""
        found = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.marker.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    line = Path(f"/proc/{entry}/cmdline").read_text(errors="replace")
                    found[int(entry)] = line.replace("\0", " ").strip()[:200]
        return found

    def await_end(self, seconds: float) -> dict[int, str]:
        """Wait until all but Ray's agents, idle for up to 90 s, have ended; kill the others and return them."""
        end = time.monotonic() + seconds
        while any("Agent" not in line for line in self.list_processes().values()) and time.monotonic() < end:
            time.sleep(0.1)
        stayed = {pid: line for pid, line in self.list_processes().items() if "Agent" not in line}
        while left := self.list_processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return stayed


@dataclass
class Ordeal:
    """One job with all its faults, on a small disk of its own or in a plain folder (`site`)."""

    job: Job
    site: Path
    logs: Path
    kills: int
    rng: random.Random

    def __post_init__(self) -> None:
        self.seconds, self.slowest_end, self.expected = 0.0, 0.0, Result()
        self.counts, self.findings = collections.Counter[str](), list[str]()

    def find(self, text: str, log: Path) -> None:
        """Note a finding."""
        self.findings.append(f"{self.job.name}: {text} ({log})")
        print(f"FOUND {self.findings[-1]}", flush=True)

    @contextlib.contextmanager
    def started(self, *, has_pipe: bool = False) -> Iterator[Start]:
        """Start the command; at the end wait until all its processes have ended, and check what it printed."""
        start = Start.of(self.job, self.logs / f"{self.job.name}-{self.counts['starts']:03d}.log", has_pipe=has_pipe)
        self.counts["starts"] += 1
        try:
            yield start
        except BaseException:
            start.await_end(0)
            raise
        begin = time.monotonic()
        if left := start.await_end(ORPHAN_SECONDS):
            self.find(f"processes left after {ORPHAN_SECONDS} s: {left}", start.log)
        self.slowest_end = max(self.slowest_end, time.monotonic() - begin)
        if b"Traceback" in start.log.read_bytes():
            self.find("a traceback", start.log)

    def finish(self, start: Start, codes: tuple[int, ...] = (0,)) -> bool:
        """Wait for a command that is not killed; return whether it ended with exit code 0."""
        code = start.wait(60 + MAX_TIMES * self.seconds if self.seconds else 600)
        if code is None:
            self.find(f"it did not end: {start.await_end(0)}", start.log)
        elif code not in codes:
            self.find(f"exit code {code}, expected {codes}", start.log)
        return code == 0

    def kill(self) -> bool:
        """Kill the command at a random moment; return whether it had done all its work before."""
        with self.started() as start:
            if start.wait(self.rng.uniform(0, self.seconds)) is not None:
                return self.finish(start)
            is_whole = self.rng.random() > FIRST_PROCESS_SHARE
            (os.killpg if is_whole else os.kill)(start.process.pid, signal.SIGKILL)
            self.counts.update({"kills": 1, "kills of one process": not is_whole})
            start.process.wait()
            return False

    def fill_disk(self) -> bool:
        """Fill the disk at a random moment; return whether the command could do all its work."""
        self.counts["disk full"] += 1
        filler = self.site / "filler"
        with self.started() as start:
            start.wait(self.rng.uniform(0, self.seconds))
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            is_done = self.finish(start, (0, 1))
            if not is_done and not re.search("disk full|No space left", start.log.read_text(errors="replace")):
                self.find("the message about a full disk does not say so", start.log)
            filler.unlink()
            return is_done

    def close_stdout(self) -> bool:
        """Close stdout after the first line; return whether the command did all its work nevertheless."""
        self.counts["stdout closed"] += 1
        with self.started(has_pipe=True) as start:
            with start.process.stdout as stdout:
                stdout.readline()
            return self.finish(start)

    def run(self) -> bool:
        """Run the command with the next fault, or without any more; return whether it did all its work."""
        drawn = self.rng.random()
        if not self.seconds or self.counts["kills"] >= self.kills:
            with self.started() as start:
                return self.finish(start)
        if drawn < DISK_FULL_SHARE and self.site.is_mount():
            return self.fill_disk()
        return self.close_stdout() if 1 - drawn < CLOSED_SHARE else self.kill()

    def run_round(self) -> None:
        """Disturb the command until it ends by itself, and compare the result."""
        for path in self.site.iterdir():
            shutil.rmtree(path)
        is_done = any(self.run() for _ in range(MAX_STARTS_PER_ROUND))
        self.counts["rounds"] += 1
        try:
            difference = describe_difference(self.expected, self.job.read(self.job.out))
        except Exception as error:  # Whatever is missing or damaged in the result is a difference.
            difference = f"the result can't be read: {type(error).__name__}: {error}"
        if difference or not is_done:
            kept = self.logs / f"{self.job.name}-round-{self.counts['rounds']:03d}"
            shutil.copytree(self.site, kept, symlinks=True)
            self.counts["different"] += 1
            self.find(f"the result differs after {self.counts['starts']} starts: {difference}", kept)

    def run_all(self) -> None:
        """Run the job undisturbed, then with faults, and print what happened."""
        begin = time.monotonic()
        if not self.run():
            raise SystemExit(f"the undisturbed run of {self.job.name} failed: see {self.logs}")
        self.seconds = time.monotonic() - begin
        self.expected = self.job.read(self.job.out)
        print(f"{self.job.name}: {self.seconds:.1f} s undisturbed", flush=True)
        begin = time.monotonic()
        while self.counts["kills"] < self.kills and len(self.findings) < self.kills:
            self.run_round()
            print(f"  {dict(self.counts)}, {time.monotonic() - begin:.0f} s", flush=True)
        counts, minutes = self.counts, (time.monotonic() - begin) / 60
        print(
            f"{self.job.name}: {counts['kills']} kills, {counts['kills of one process']} of one process; "
            f"{counts['starts'] - 1 - counts['rounds']} restarts; {counts['rounds']} results, {counts['different']} "
            f"different; disk full {counts['disk full']} times, stdout closed {counts['stdout closed']} times; last "
            f"process {self.slowest_end:.1f} s after the first; {minutes:.1f} min, {len(self.findings)} findings",
            flush=True,
        )


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Give a folder on a disk of its own; a plain folder if this user must not mount."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "babble-chaos", str(path)]
    if not (is_mounted := subprocess.run(mount, capture_output=True).returncode == 0):
        print("skipped: full disks, because this user must not mount one", flush=True)
    try:
        yield path
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", path], check=True)


def main() -> None:
    """Run the jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="preprocess,train,ranks,tune")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folder of logs in any case")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    (logs := folder / "logs").mkdir()
    shards = ["--sources", str(make_sources(folder / "sources")), "--out", str(folder / "shards")]
    subprocess.run([sys.executable, "-m", "jobs.preprocess", *shards], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    findings: list[str] = []
    for name in args.jobs.split(","):
        with small_disk(folder / f"disk-{name}") as site:
            job = make_jobs(folder, site)[name]
            ordeal = Ordeal(job, site, logs, args.kills, random.Random(f"{args.seed} {name}"))
            ordeal.run_all()
            findings += ordeal.findings
    print(f"{len(findings)} findings" + "".join(f"\n  {finding}" for finding in findings))
    if findings or args.keep:
        print(f"Logs and different results are in {logs}.")
    else:
        shutil.rmtree(folder)
    sys.exit(bool(findings))


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", RAY_USAGE_STATS_ENABLED="0", WANDB_MODE="offline")
    main()
