"""A real Slurm cluster of three nodes on this machine: start and stop it, submit jobs, wait for them, kill a node."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

# BABBLE_SLURM_TESTBED names the program that starts ("up") and stops ("down") the cluster.
TESTBED = Path(os.environ.get("BABBLE_SLURM_TESTBED", ROOT.parent / "shared/slurm-testbed/slurm-testbed"))
# A job uses the project's .venv or, without one, the Python that runs the tests.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = {**os.environ, "TESTBED_NODES": "3", "PATH": PATH}
# One core per process and no GPU, as on the real machine: the nodes claim more.
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1")
# A job that takes longer is stuck: a test must end, and shut the cluster down.
STUCK_SECONDS = 1800


@dataclass(frozen=True)
class Slurm:
    """Slurm's commands, run in one folder.

    Attributes:
        folder: where jobs are submitted and run.
    """

    folder: Path

    def submit(self, *words: object, **environment: str) -> str:
        """Submit a script, after flags for sbatch and before its own arguments; return the job's id."""
        command = ["sbatch", "--parsable", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the job's state, e.g. RUNNING."""
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
        return shown.split("JobState=")[1].split()[0]

    def log(self, job: str) -> str:
        """Return the job's output so far."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.is_file() else ""

    def wait(self, job: str, condition: Callable[[], object] | None = None) -> str:
        """Wait until the job has ended, or until a condition holds; return its state.

        Raises:
            AssertionError: it takes too long, or the job ends before the condition holds; the message holds its log.
        """
        end = time.monotonic() + STUCK_SECONDS
        while time.monotonic() < end:
            state = self.state(job)
            if condition is not None and condition():
                return state
            if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
                assert condition is None, f"job {job}: {state}\n{self.log(job)}"
                return state
            time.sleep(0.2)
        raise AssertionError(f"job {job} is {self.state(job)} after {STUCK_SECONDS} s\n{self.log(job)}")

    def complete(self, job: str) -> str:
        """Wait until the job has succeeded; return its log."""
        assert self.wait(job) == "COMPLETED", self.log(job)
        return self.log(job)


def find_obstacle() -> str:
    """Start the cluster; return why this machine does not allow one, or "" if it does."""
    done = subprocess.run([TESTBED, "up"], env=ENVIRONMENT, capture_output=True, text=True)
    output = done.stdout + done.stderr
    allowed = ("must run as root", "CAP_NET_ADMIN", "already has a Slurm")
    assert done.returncode == 0 or any(cause in output for cause in allowed), output
    return output.strip().splitlines()[-1] if done.returncode else ""


def start_cluster() -> None:
    """Start the cluster, or the nodes of it that are down."""
    _run_testbed("up")


def stop_cluster() -> None:
    """Stop the cluster."""
    _run_testbed("down")


def _run_testbed(command: str) -> None:
    done = subprocess.run([TESTBED, command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_node(name: str) -> None:
    """Kill all processes of a node, as a power failure does, and report it to Slurm at once."""
    directory = Path(ENVIRONMENT.get("TESTBED_DIR", "/tmp/slurm-testbed"))
    pid = (directory / "run" / f"{name}.pid").read_text().split()[0]
    subprocess.run(["kill", "-KILL", pid], check=True)
    subprocess.run(["scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=dead"], check=True)
