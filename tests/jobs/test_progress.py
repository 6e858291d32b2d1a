"""The progress of a preprocessing: hours done, speed and time left."""

from pathlib import Path

import pytest

from jobs.preprocess.progress import Progress
from preprocessing.sources import Source


def test_unopened_recordings_are_estimated_from_their_size() -> None:
    progress = Progress([Source(name, Path(name), None, size) for name, size in (("a", 1000), ("b", 3000), ("c", 0))])
    assert progress.total_seconds() == 0
    progress.set_length("a", 10.0)
    assert progress.total_seconds() == 40.0
    progress.set_length("b", 50.0)
    assert progress.total_seconds() == 60.0


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_log_gets_lines_and_a_terminal_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    progress = Progress([Source("a", Path("a"), None, 1)])
    progress.set_length("a", 7200.0)
    progress.add(1800.0, is_staged=True)
    progress.add(1800.0)
    progress.show()
    assert capsys.readouterr().out == ""
    now += 60.0
    progress.show()
    progress.close()
    printed = capsys.readouterr()
    state = "1.00 of about 2.00 h, 30 x real time, 2:00 left"
    if is_terminal:
        assert printed.out == ""
        assert "50%|" in printed.err
        assert state in printed.err
    else:
        assert printed.out == f"{state}\n"
