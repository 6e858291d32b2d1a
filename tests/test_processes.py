"""Signals are noted once, handlers are restored, and a child ends with its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from babble.processes import StopRequest


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
