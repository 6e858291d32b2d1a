"""The console of a running sweep."""

import io
import sys
from dataclasses import replace

import pytest

from babble.sweeps.progress import SweepProgress
from babble.sweeps.ranking import TrialRow

DONE = TrialRow("a", "finished", {}, 0, best=27.0, frames=1000, seconds=60.0)
RUNNING = TrialRow("b", "running", {}, 0, best=28.0, frames=100, seconds=30.0)
WAITING = TrialRow("c", "waiting", {}, 0)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_per_change_of_state(capsys: pytest.CaptureFixture[str]):
    progress = SweepProgress(3, "val/bits_per_frame", known=[DONE])
    failed = replace(RUNNING, state="failed", reason="out of memory")
    for rows in ([DONE, RUNNING, WAITING], [DONE, RUNNING, WAITING], [DONE, failed, WAITING]):
        progress.show(rows)
    progress.close()
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "b: running, best bits_per_frame 28.0000 after 100 frames; "
        "1 of 3 ended, 1 running, best 27.0000, about 2 min left",
        "b: failed, best bits_per_frame 28.0000 after 100 frames (out of memory); "
        "2 of 3 ended, 0 running, best 27.0000",
    ]
    assert shown.err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    progress = SweepProgress(3, "val/bits_per_frame")
    progress.show([DONE, RUNNING, WAITING])
    progress.close()
    assert "1 of 3 ended, 1 running" in sys.stderr.getvalue()  # type: ignore[attr-defined]
