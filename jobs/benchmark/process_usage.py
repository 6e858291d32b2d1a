"""Commands and functions in processes of their own: started, kept to cores, and their CPU time and memory measured.

    usage = measure_command([sys.executable, "-m", "jobs.preprocess", ...])

CPU time is read from the operating system every `SAMPLE_SECONDS`, for a command and for all processes that it started.
What a process does after its last sample is missed: a small error if it runs for many seconds.
"""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from babble.cli import CommandError
from babble.processes import end_with_parent, run_in_processes
from jobs.benchmark.config import ROOT

SAMPLE_SECONDS = 0.1
# Ray names a worker process after the task that it runs; these run none.
RAY_TASK, NO_RAY_TASK = "ray::", ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")

Result = TypeVar("Result")


def run_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return the result of a function that runs in a fresh process, with threads, cores and memory of its own."""
    return next(run_in_processes([functools.partial(function, *arguments)]))


def stay_on_one_core() -> None:
    """Restrict this process, and torch in it, to one core from now on."""
    import torch

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


@contextlib.contextmanager
def start_command(
    command: list[str], cores: Collection[int] = (), stdout: int | None = None, expected_code: int = 0
) -> Iterator[psutil.Popen]:
    """Run a command in the repository during the block, and wait for its end after it.

    The command receives SIGTERM if the block raises, or if this process ends.

    Args:
        command: the program and its arguments.
        cores: restrict it to these; by default all.
        stdout: as in `subprocess.Popen`; by default its output is kept for the error message.
        expected_code: the exit code of success.

    Raises:
        CommandError: it ended with another exit code.
    """

    def prepare() -> None:
        end_with_parent()
        if cores:
            os.sched_setaffinity(0, cores)

    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = psutil.Popen(
            command, cwd=ROOT, stdout=log if stdout is None else stdout, stderr=log, text=True, preexec_fn=prepare
        )
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
        if process.returncode != expected_code:
            log.seek(0)
            words = " ".join(command)[:200]
            raise CommandError(f"{words} ended with exit code {process.returncode}: {log.read()[-2000:]}")


@dataclass
class Usage:
    """CPU time and memory of a command and all processes that it started.

    Attributes:
        cpu_seconds: user and system time.
        wall_seconds: from its start to the end of its last process.
        busy_share: CPU time per core and second, from the first Ray task to the last.
        worker_mb: highest memory of a process that runs Ray tasks (resident set size, shared pages included).
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    busy_share: float = 0.0
    worker_mb: float = 0.0


def measure_command(command: list[str]) -> Usage:
    """Return the usage of a command.

    Raises:
        CommandError: it failed.
    """
    usage, start = Usage(), time.monotonic()
    cpu_seconds: dict[psutil.Process, float] = {}
    # When Ray tasks were running, and the CPU time until then.
    working: list[tuple[float, float]] = []
    with start_command(command) as root:
        alive: set[psutil.Process] = {root}
        while alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                alive.update(root.children(recursive=True))
            names = {process: name for process in alive if (name := _read_process(process, cpu_seconds))}
            alive = set(names)
            workers = [p for p, name in names.items() if name.startswith(RAY_TASK) and not name.startswith(NO_RAY_TASK)]
            if workers:
                working.append((time.monotonic(), sum(cpu_seconds.values())))
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    usage.worker_mb = max(usage.worker_mb, worker.memory_info().rss / 1e6)
            time.sleep(SAMPLE_SECONDS)
    if len(working) > 1:
        (first, cpu_before), (last, cpu_after) = working[0], working[-1]
        usage.busy_share = (cpu_after - cpu_before) / (last - first) / len(os.sched_getaffinity(0))
    usage.cpu_seconds, usage.wall_seconds = sum(cpu_seconds.values()), time.monotonic() - start
    return usage


def _read_process(process: psutil.Process, cpu_seconds: dict[psutil.Process, float]) -> str | None:
    """Note the CPU time of a process; return its name, or None if it has ended."""
    try:
        with process.oneshot():
            cpu = process.cpu_times()
            cpu_seconds[process] = cpu.user + cpu.system
            return process.name() if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
