"""Every YAML of configs/ opens with what one must know of it, and the command that it shows reads it."""

import re
import shlex
from pathlib import Path

import pytest
from documented import ROOT, check_command, read_program

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LABELS = ("Machine", "Time", "Expect")


def read_header(text: str) -> tuple[str, str]:
    """Return the words of the opening comment and the command in it: the indented line that begins with python."""
    (comment,) = re.findall(r"\A((?:#.*\n)*)", text)
    command = re.search(r"^#  +(python (?:.*\\\n)*.*)", comment, re.MULTILINE)
    return re.sub(r"\n?# ?", " ", comment).strip(), re.sub(r"\\\n#", "", command[1]) if command else ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_says_what_it_is_for(path: Path) -> None:
    words, _ = read_header(path.read_text())
    assert not words.startswith(LABELS), "first what it shows"
    assert [label for label in LABELS if not re.search(rf"\b{label}: +\w", words)] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_is_read_by_the_command_that_it_shows(path: Path) -> None:
    _, command = read_header(path.read_text())
    others = {"preprocess": "jobs.preprocess", "experiments.yaml": "jobs.experiments", "tune": "babble.tune"}
    program = next((program for part, program in others.items() if part in path.name), "babble.train")
    assert shlex.split(command)[:5] == ["python", "-m", program, "--config", f"configs/{path.name}"]
    check_command(command)


def test_there_are_configs() -> None:
    assert {"demo.yaml", "demo-preprocess.yaml"} <= {path.name for path in CONFIGS}


def test_a_header_is_read() -> None:
    text = "# Three layers.\n#\n# Machine: a core.\n#\n#   python -m x \\\n#     --y 1\n#\n# End.\nkey: 1\n# not it\n"
    words, command = read_header(text)
    assert words.startswith("Three layers.  Machine: a core.")
    assert words.endswith("End.")
    assert shlex.split(command) == ["python", "-m", "x", "--y", "1"]


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("# Wrong.\nno_such_key: 1\n")
    with pytest.raises(ValueError, match="no_such_key"):
        read_program("babble.train", ["--config", str(path)])
