"""A real Slurm of three nodes on this machine: what the tests of slurm/ do with it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

# BABBLE_SLURM_TESTBED names the program that brings the cluster up and down.
TESTBED = Path(os.environ.get("BABBLE_SLURM_TESTBED", ROOT.parent / "shared/slurm-testbed/slurm-testbed"))
# A job takes the project's .venv, and where there is none the Python that runs the tests.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = {**os.environ, "TESTBED_NODES": "3", "PATH": PATH}
# One core a process, no GPU: what the machine has, whatever the nodes claim.
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1")


@dataclass(frozen=True)
class Slurm:
    """The cluster as a user sees it, from one directory.

    Attributes:
        folder: where jobs are submitted.
    """

    folder: Path

    def submit(self, *words: object, **environment: str) -> str:
        """Submit a script of slurm/, sbatch's flags before it; return the job's id."""
        command = ["sbatch", "--parsable", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=ENVIRONMENT | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return what Slurm calls the job's state."""
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
        return shown.split("JobState=")[1].split()[0]

    def log(self, job: str) -> str:
        """Return what the job has written so far."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text() if path.is_file() else ""

    def wait(self, job: str, condition: Callable[[], object] | None = None, seconds: float = 600) -> str:
        """Wait until the job has ended, or until a condition holds; return its state.

        Raises:
            AssertionError: it takes too long, or the job ends before the condition holds; with the job's log.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.state(job)
            if condition is not None and condition():
                return state
            if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
                assert condition is None, f"job {job}: {state}\n{self.log(job)}"
                return state
            time.sleep(0.2)
        raise AssertionError(f"job {job} is {self.state(job)} after {seconds} s\n{self.log(job)}")

    def complete(self, job: str, seconds: float = 600) -> str:
        """Wait until the job has ended well; return its log."""
        assert self.wait(job, seconds=seconds) == "COMPLETED", self.log(job)
        return self.log(job)


def why_not() -> str:
    """Bring the cluster up; return why this machine does not allow it, nothing where it does."""
    done = subprocess.run([TESTBED, "up"], env=ENVIRONMENT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    allowed = ("must run as root", "CAP_NET_ADMIN", "already has a Slurm")
    assert done.returncode == 0 or any(cause in said for cause in allowed), said
    return said.strip().splitlines()[-1] if done.returncode else ""


def bring(direction: str) -> None:
    """Bring the cluster "up", repaired where it was damaged, or "down"."""
    done = subprocess.run([TESTBED, direction], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_node(name: str) -> None:
    """Kill a node as a power cut does, and have Slurm know at once."""
    directory = Path(ENVIRONMENT.get("TESTBED_DIR", "/tmp/slurm-testbed"))
    pid = (directory / "run" / f"{name}.pid").read_text().split()[0]
    subprocess.run(["kill", "-KILL", pid], check=True)
    subprocess.run(["scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=dead"], check=True)
