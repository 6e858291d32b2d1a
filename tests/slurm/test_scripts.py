"""The scripts of slurm/ as a shell runs them, without a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT


@pytest.mark.parametrize("name", ["preprocess", "train", "evaluate", "tune"])
def test_a_job_finds_its_project_in_a_path_with_spaces(name: str, tmp_path: Path) -> None:
    project, programs, spool = tmp_path / "Mein Hörbuch", tmp_path / "bin", tmp_path / "slurm_script"
    shutil.copytree(ROOT / "slurm", project / "slurm")
    shutil.copy(ROOT / f"slurm/{name}.sh", spool)
    programs.mkdir()
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for path, code in (
        (programs / "scontrol", f"echo '   Command={project}/slurm/{name}.sh --name a b'"),
        (python, "exit 1"),
    ):
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    done = subprocess.run(["bash", spool, "runs/x"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert f"{python} does not run on" in done.stderr
