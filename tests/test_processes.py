"""Signals are noted once, handlers are restored, and processes that were started end with their parent."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from babble.processes import StopRequest, run_in_processes


def test_the_first_signal_is_noted_and_a_second_ctrl_c_stops_at_once(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGINT)
    calls = []
    with StopRequest("stopping soon").watching(signal.SIGTERM, on_request=lambda: calls.append(1)) as request:
        request.watch(signal.SIGINT)
        assert request.number is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGTERM
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) == before
    with StopRequest("stopping soon").watching(signal.SIGINT) as request:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    err = capsys.readouterr().err
    assert "SIGTERM: stopping soon\n" in err
    assert "SIGINT: stopping soon; press Ctrl-C again to stop at once\n" in err


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_with_a_killed_parent():
    code = (
        "import subprocess, sys, time\nfrom babble.processes import end_with_parent\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], preexec_fn=end_with_parent)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while True:
        # As a zombie of whoever adopted it, it may still have its number.
        try:
            with open(f"/proc/{child}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    break
            os.kill(child, 0)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.05)


def test_tasks_run_in_processes_of_their_own_and_their_errors_arrive() -> None:
    mine, *roots = run_in_processes([os.getpid, partial(math.sqrt, 4), partial(math.sqrt, 9)], workers=2)
    assert mine != os.getpid()
    assert roots == [2, 3]
    with pytest.raises(ValueError, match="math domain error"):
        list(run_in_processes([partial(math.sqrt, -1)]))


def test_the_first_tasks_run_while_the_later_ones_are_made(tmp_path: Path) -> None:
    def make_tasks() -> Iterator[Callable[[], None]]:
        yield (tmp_path / "first").touch
        while not (tmp_path / "first").exists():
            time.sleep(0.01)
        yield (tmp_path / "second").touch

    assert list(run_in_processes(make_tasks())) == [None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_program_leaves_no_process_behind(number: signal.Signals) -> None:
    code = (
        "import os, time\nfrom functools import partial\nfrom babble.processes import run_in_processes\n"
        "if __name__ == '__main__':\n"
        "    for value in run_in_processes([os.getpid, partial(time.sleep, 600)], workers=1):\n"
        "        print(value, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(10)
        end = time.monotonic() + 10
        while os.path.exists(f"/proc/{worker}") and time.monotonic() < end:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{worker}")
