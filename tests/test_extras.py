"""Each extra installs what its part needs and no more; tried in a new environment per extra."""

import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

SOURCE = ("babble", "preprocessing", "jobs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


def copy_source(folder: Path) -> Path:
    """Return a copy of what an installation needs."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    return source


def install(folder: Path, extra: str) -> Path:
    """Return the Python of a new environment with this extra alone, installed from a copy of the source."""
    copy_source(folder)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    run(python, folder, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", f".[{extra}]")
    return python


def run(python: Path, folder: Path, *words: str) -> None:
    """Run the environment's Python in the copy of the source, without the variables of the tests' own environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([python, *words], cwd=folder / "source", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_not_installed(python: Path, folder: Path, *libraries: str) -> None:
    code = f"from importlib.util import find_spec; assert not [x for x in {libraries!r} if find_spec(x)]"
    run(python, folder, "-c", code)


def test_a_preprocessing_node_needs_no_torch(tmp_path: Path) -> None:
    python = install(tmp_path, "preprocess")
    assert_not_installed(python, tmp_path, "torch", "pytorch_lightning", "wandb")
    shards = tmp_path / "shards"
    run(python, tmp_path, "-m", "jobs.preprocess", "--sources", str(ROOT / "tests/speech"), "--out", str(shards))
    assert (shards / "manifest.json").is_file()
    assert list(shards.glob("train-*.tar"))


def test_a_training_node_needs_no_ray(tmp_path: Path) -> None:
    python = install(tmp_path, "train")
    assert_not_installed(python, tmp_path, "ray", "lightning")
    for program in ("babble.train", "babble.generate"):
        run(python, tmp_path, "-m", program, "--help")


def test_dashboards_need_no_torch(tmp_path: Path) -> None:
    python = install(tmp_path, "dashboard")
    assert_not_installed(python, tmp_path, "torch", "ray")
    run(python, tmp_path, "-m", "babble.dashboard", "--entity", "us", "--out", str(tmp_path / "dashboard.json"))
    assert (tmp_path / "dashboard.json").is_file()


def test_a_tuning_node_has_torch_and_ray(tmp_path: Path) -> None:
    python = install(tmp_path, "tune")
    run(python, tmp_path, "-c", "import babble.train, ray.tune, optuna")


def make_wheel(folder: Path) -> Path:
    source = copy_source(folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_an_installed_wheel_plays_and_generates_in_an_empty_folder(tmp_path: Path) -> None:
    wheel, venv, empty = make_wheel(tmp_path), tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[live]"]
    subprocess.run(pip, check=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    babble = venv / "bin" / "babble"
    subprocess.run([babble, "generate", "--seconds", "1", "--out", "babble.wav"], cwd=empty, env=env, check=True)
    assert {path.suffix for path in empty.iterdir()} == {".wav", ".c2", ".png", ".json"}
    with subprocess.Popen([babble, "live", "--no-browser"], cwd=empty, env=env, stdout=subprocess.PIPE) as live:
        assert live.stdout
        address = live.stdout.readline().decode().strip()
        with urllib.request.urlopen(f"{address}live.js") as page:
            assert b"new WebSocket" in page.read()
        live.terminate()


def test_a_wheel_holds_all_packages_and_configs(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(make_wheel(tmp_path)).namelist())
    configs = {f"babble/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert configs | {"jobs/preprocess/__main__.py", "preprocessing/audio.py"} <= names
    assert {"babble/pretrained/checkpoints/best.ckpt", "babble/player/page/index.html", "babble/py.typed"} <= names
