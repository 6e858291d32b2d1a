"""In CI a skipped test fails unless its reason is on the list; tried on small test suites."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = {
    "test_passes.py": "def test_passes(): pass",
    "test_allowed.py": "import pytest\ndef test_allowed(): pytest.skip('not on this machine: CUDA')",
    "test_forbidden.py": "import pytest\n@pytest.mark.skipif(True, reason='no ffmpeg')\ndef test_forbidden(): pass",
    "test_whole_file.py": "import pytest\npytest.importorskip('no_such_module')",
    "test_expected.py": "import pytest\n@pytest.mark.xfail\ndef test_expected(): assert False",
}


def run_suite(folder: Path, files: list[str], ci: str, workers: int) -> subprocess.CompletedProcess[str]:
    for name in files:
        (folder / name).write_text(SUITE[name])
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers), "-c", os.devnull, "."]
    return subprocess.run(command, cwd=folder, env=os.environ | {"CI": ci}, capture_output=True, text=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_ci_fails_a_skip_that_is_not_on_the_list(tmp_path: Path, workers: int) -> None:
    done = run_suite(tmp_path, ["test_passes.py", "test_allowed.py", "test_forbidden.py"], "true", workers)
    assert done.returncode == 1, done.stdout
    assert "skipped in CI: no ffmpeg" in done.stdout
    assert "1 passed, 1 skipped, 1 error" in done.stdout


@pytest.mark.parametrize("workers", [0, 1])
def test_ci_fails_a_skipped_file(tmp_path: Path, workers: int) -> None:
    done = run_suite(tmp_path, ["test_passes.py", "test_whole_file.py"], "true", workers)
    assert done.returncode not in (0, 5), done.stdout
    assert "skipped in CI: could not import 'no_such_module'" in done.stdout


def test_ci_accepts_allowed_skips_and_expected_failures(tmp_path: Path) -> None:
    done = run_suite(tmp_path, ["test_passes.py", "test_allowed.py", "test_expected.py"], "true", 0)
    assert done.returncode == 0, done.stdout


def test_outside_ci_every_skip_is_accepted(tmp_path: Path) -> None:
    done = run_suite(tmp_path, ["test_passes.py", "test_forbidden.py", "test_whole_file.py"], "", 0)
    assert done.returncode == 0, done.stdout
