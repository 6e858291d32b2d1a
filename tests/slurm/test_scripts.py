"""The scripts of slurm/ as a shell runs them, without a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT


def run_script(name: str, folder: Path, python_code: str, *arguments: str) -> tuple[Path, str]:
    """Run a copy of a batch script, as Slurm does, with a shell script as the project's Python; return both outputs."""
    project, programs, spool = folder / "Mein Hörbuch", folder / "bin", folder / "slurm_script"
    shutil.copytree(ROOT / "slurm", project / "slurm")
    shutil.copy(ROOT / f"slurm/{name}.sh", spool)
    programs.mkdir()
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for path, code in (
        (programs / "scontrol", f"echo '   Command={project}/slurm/{name}.sh --name a b'"),
        (python, python_code),
    ):
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    done = subprocess.run(["bash", spool, *arguments], env=environment, cwd=folder, capture_output=True, text=True)
    return python, done.stderr


@pytest.mark.parametrize("name", ["preprocess", "train", "evaluate", "tune"])
def test_a_job_finds_its_project_in_a_path_with_spaces(name: str, tmp_path: Path) -> None:
    python, message = run_script(name, tmp_path, "exit 1", "runs/x")
    assert f"{python} does not run on" in message


@pytest.mark.parametrize("words", ["--name x", "--name=x", "--resume x", "--resume=x"])
def test_a_sweep_is_named_in_any_way_that_the_command_takes(words: str, tmp_path: Path) -> None:
    # The first thing that a job creates once its arguments are accepted.
    (tmp_path / "logs").touch()
    _, message = run_script("tune", tmp_path, "exit 0", *words.split())
    assert "cannot create logs/" in message


@pytest.mark.parametrize("words", ["", "--names x", "--config name"])
def test_a_sweep_without_a_name_is_refused(words: str, tmp_path: Path) -> None:
    _, message = run_script("tune", tmp_path, "exit 0", *words.split())
    assert "give the sweep a name" in message
