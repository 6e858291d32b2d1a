"""How Ray is started where little is allowed; with a real Ray in test_tune.py."""

import os
import resource
from pathlib import Path

import pytest

from babble import ray_cluster
from babble.cli import CommandError
from babble.ray_cluster import _choose_temporary_folder, _explain_failure, _raise_process_limit


@pytest.mark.parametrize(
    ("folder", "chosen"),
    [("/tmp", None), ("/tmp/" + "x" * 34, "/tmp"), ("/dev/null/none", "/tmp"), (None, None)],
)
def test_a_temporary_folder_that_ray_can_not_use_is_replaced(
    folder: str | None, chosen: str | None, monkeypatch: pytest.MonkeyPatch
):
    # Both are undone by monkeypatch.
    for name, value in (("RAY_TMPDIR", ""), ("TMPDIR", folder or "")):
        monkeypatch.setenv(name, value)
        if not value:
            os.environ.pop(name)
    _choose_temporary_folder()
    assert os.environ.get("RAY_TMPDIR") == chosen


def test_too_few_processes_are_refused_before_ray_aborts(monkeypatch: pytest.MonkeyPatch):
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 400))
    _raise_process_limit()
    assert raised == [(400, 400)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, ray_cluster.MIN_PROCESSES - 1))
    with pytest.raises(CommandError, match="this user may have 169: raise ulimit -u"):
        _raise_process_limit()


def test_a_failed_start_names_the_limit_or_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert "RAY_TMPDIR" in _explain_failure(PermissionError(13, "Permission denied", str(tmp_path)))
    assert _explain_failure(ValueError("else")) == ""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    assert "this user may have 300: raise ulimit -u" in _explain_failure(TimeoutError("no answer"))
