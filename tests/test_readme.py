"""Commands and links in README.md and docs/ work; no text recommends installing another project's package."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import check_command, find_commands
from paths import ROOT

from babble.commands import COMMANDS

PAGES = [
    ROOT / "README.md",
    ROOT / "babble/pretrained/README.md",
    ROOT / "tests/speech/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = ("*.py", "*.md", "*.sh", "*.yaml", "*.toml", "*.js", "*.html", "Makefile", "run")


def test_readme_shows_how_to_start() -> None:
    assert {"make demo", "make test"} <= set(find_commands((ROOT / "README.md").read_text()))


@pytest.mark.parametrize(
    "command", dict.fromkeys(command for page in PAGES for command in find_commands(page.read_text()))
)
def test_documented_command_would_work(command: str) -> None:
    check_command(command)


def test_python_example_generates_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    speech = names["speech"]
    assert (speech.pcm.dtype, speech.pcm.shape, speech.frames.shape) == (np.int16, (80_000,), (250, 16))
    assert np.abs(speech.pcm).max() > 1000, "silence"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.wav", "tests"]
    assert np.abs(next(names["blocks"]).pcm).max() > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}
            assert heading in slugs, target


def test_no_text_recommends_another_projects_package() -> None:
    """A distribution named babble exists and is not this one, so `pip install` may only name a path of the clone."""
    wrong = re.compile(r"pip3? install\b[^\n`]*[\s'\"]babble(?!-speech)\b")
    folders = [".ci", "babble", "configs", "docs", "jobs", "preprocessing", "slurm", "tests"]
    files = [path for folder in folders for name in SOURCES for path in (ROOT / folder).rglob(name)]
    files += [path for name in SOURCES for path in ROOT.glob(name)]
    assert len(files) > 100
    found = [str(path.relative_to(ROOT)) for path in files if wrong.search(path.read_text())]
    assert found in ([], ["tests/test_readme.py"]), "this file itself has an example"


def find_modules(extras: str) -> set[str]:
    """Return what these extras of pyproject.toml, separated by commas, install, as names of modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed, todo = set(), extras.split(",")
    while todo:
        for requirement in project["optional-dependencies"][todo.pop()]:
            name, more = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()  # type: ignore[union-attr]
            installed.add(name.replace("-", "_"))
            todo += more.split(",") if name == project["name"] else []
    return installed


@pytest.mark.parametrize(
    ("script", "extra"), [("preprocess", "preprocess"), ("train", "train"), ("tune", "tune"), ("evaluate", "train")]
)
def test_batch_scripts_need_what_their_extra_and_the_cluster_page_install(script: str, extra: str) -> None:
    (line,) = re.findall(r"^find_python (.*)", (ROOT / f"slurm/{script}.sh").read_text(), re.MULTILINE)
    (extras,) = re.findall(r"-e '\.\[(.*?)\]'", (ROOT / "docs/cluster.md").read_text())
    needed = set(line.split()) - {"babble", "jobs"}
    assert needed <= find_modules(extra)
    assert needed <= find_modules(extras)


def test_readme_and_help_say_the_same_of_each_command() -> None:
    table = dict(re.findall(r"^\| `babble (\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == {name: command.summary for name, command in COMMANDS.items()}


def test_cluster_page_documents_the_variables_of_the_pipeline() -> None:
    variables = set(re.findall(r"\$\{(\w+_FLAGS):-", (ROOT / "slurm/pipeline.sh").read_text()))
    assert len(variables) == 3
    assert variables <= set(re.findall(r"`(\w+_FLAGS)`", (ROOT / "docs/cluster.md").read_text()))


def test_only_sh_blocks_are_commands() -> None:
    text = "```sh\n# why\nmake demo  # now\n\nmake \\\n  test\n```\n```text\nmade\n```\n```sh\nmake lint\n```\n"
    assert [" ".join(command.split()) for command in find_commands(text)] == [
        "make demo # now",
        "make test",
        "make lint",
    ]


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("make no-such-target", "'no-such-target' is not a target"),
        ("make test NOTHING=1", "'NOTHING=1' is not a target"),
        ("sbatch slurm/no-such-script.sh", "'slurm/no-such-script.sh' is not a script"),
        ("sbatch", "is not a script"),
        ("sbatch --nodes=2 slurm/train.sh --no-such-flag 1", "no.such.flag"),
        ("slurm/pipeline.sh book --source x -- --config configs/babble.yaml", "source"),
        ("slurm/pipeline.sh book --sources x -- --no-such-flag 1", "no.such.flag"),
        ("pip install -c constraints.txt -e '.[no-such-extra]'", "'no-such-extra' is not an extra"),
        ("pip install babble", "cannot check this kind"),
        ("rm -rf runs", "cannot check this kind"),
        ("make demo && rm -rf runs", "cannot check this kind"),
        ("babble generate runs/demo --out - | no-such-player", "cannot check this kind"),
        ("babble train --no-such-flag 1", "no.such.flag"),
        ("babble train --model.units many", "model.units"),
        ("babble train --config configs/no-such-file.yaml", "no-such-file"),
        ("babble generate runs/demo --second 60", "second"),
        ("babble preprocess --source tests/speech --out shards/demo", "source"),
    ],
)
def test_a_command_that_would_fail_is_found(command: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "make test PYTHON=python3.12",
        "pip install -c constraints.txt -e '.[preprocess,train]'",
        "WANDB_MODE=offline babble train --config configs/demo.yaml --data.shards shards/demo --name demo",
        "babble generate runs/demo --seconds 60 --out - | aplay -f S16_LE -r 8000",
        "babble preprocess --sources a.mp3 b.mp3 --out shards/demo",
    ],
)
def test_a_working_command_passes(command: str) -> None:
    check_command(command)
