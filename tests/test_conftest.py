"""CI's rule for skipped tests, applied to a small suite."""

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


def run_suite(folder: Path, ci: str, workers: int) -> subprocess.CompletedProcess[str]:
    for name, source in SUITE.items():
        (folder / name).write_text(source)
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    options = ["-p", "no:cacheprovider", "-n", str(workers), "-c", os.devnull, "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, "."]
    return subprocess.run(command, cwd=folder, env=os.environ | {"CI": ci}, capture_output=True, text=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_ci_fails_skipped_tests_and_files_that_are_not_on_the_list(tmp_path: Path, workers: int) -> None:
    done = run_suite(tmp_path, "true", workers)
    assert done.returncode == 1, done.stdout
    assert "skipped in CI: no ffmpeg" in done.stdout
    assert "skipped in CI: could not import 'no_such_module'" in done.stdout
    assert "1 passed, 1 skipped, 1 xfailed, 2 errors" in done.stdout


def test_elsewhere_any_skip_passes(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "", 0)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 skipped, 1 xfailed" in done.stdout
