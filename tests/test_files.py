"""Files that are whole or absent, JSON lines, and locks."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from babble.files import (
    FileInUse,
    append_json_line,
    check_writable,
    lock,
    read_json,
    read_json_lines,
    write_bytes,
    write_json,
)


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": "ä"})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match=r"disk full: .*a\.json"):
        write_json(path, {"a": "half"})
    monkeypatch.undo()
    assert read_json(path) == {"a": "ä"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    write_bytes(path, b"no json")
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        read_json(path)


def test_the_folder_of_a_file_is_created(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.json"
    check_writable(path, "--json")
    write_json(path, 1)
    assert read_json(path) == 1


def test_lines_are_appended_and_a_half_line_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"step": 0})
    append_json_line(path, {"step": 1, "loss": float("inf")})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 0}, {"step": 1, "loss": float("inf")}]
    path.write_text('{"step": 0}\n[1]\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_json_lines(path)


def test_a_lock_excludes_other_processes_and_ends_with_its_holder(tmp_path: Path):
    path = tmp_path / "folder" / ".lock"
    code = f"from babble.files import lock; from pathlib import Path\nwith lock(Path({str(path)!r}), 'in use'): pass"
    with lock(path, "in use"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "FileInUse: in use" in done.stderr
        with pytest.raises(FileInUse, match="in use"), lock(path, "in use", is_shared=True):
            pass
    with lock(path, "in use", is_shared=True), lock(path, "in use", is_shared=True):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks_are_worked_on_unlocked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock(tmp_path / ".lock", "in use"), lock(tmp_path / ".lock", "in use"):
        pass
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), lock(tmp_path / ".lock", "in use"):
        pass


def test_what_can_not_be_written_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_writable(tmp_path / "new" / "a.wav", "--out")
    (tmp_path / "old.wav").write_bytes(b"old")
    check_writable(tmp_path / "old.wav", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"old"
    with pytest.raises(OSError, match=r": name another place with --out\.$"):
        check_writable(tmp_path, "--out")
    with pytest.raises(OSError, match=r"can't be written \(Not a directory\): name another place with --json"):
        check_writable(tmp_path / "old.wav" / "a.json", "--json")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(OSError, match=r"^babble.wav can't be written \(Read-only\)"):
        check_writable(Path("babble.wav"), "--out")
