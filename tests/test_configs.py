"""Each YAML in configs/ opens with its purpose, machine, time and result, and the command it shows can read it."""

import re
import shlex
from pathlib import Path

import pytest
from documented import check_command, read_program
from paths import ROOT

from babble.training.config import Stage
from jobs.experiments import read_rows

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LABELS = ("Machine", "Time", "Expect")


def read_header(text: str) -> tuple[str, str]:
    """Return the words of the opening comment and the command in it: the indented line of a program."""
    (comment,) = re.findall(r"\A((?:#.*\n)*)", text)
    command = re.search(r"^#  +((?:python|babble) (?:.*\\\n)*.*)", comment, re.MULTILINE)
    return re.sub(r"\n?# ?", " ", comment).strip(), re.sub(r"\\\n#", "", command[1]) if command else ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_states_its_purpose(path: Path) -> None:
    words, _ = read_header(path.read_text())
    assert not words.startswith(LABELS), "the purpose comes first"
    assert [label for label in LABELS if not re.search(rf"\b{label}: +\w", words)] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_is_read_by_the_command_in_its_header(path: Path) -> None:
    _, command = read_header(path.read_text())
    others = {
        "preprocess": "babble preprocess",
        "experiments.yaml": "python -m jobs.experiments",
        "tune": "babble tune",
    }
    program = next((program for part, program in others.items() if part in path.name), "babble train")
    assert command.split()[: len(program.split()) + 2] == [*program.split(), "--config", f"configs/{path.name}"]
    check_command(command)


def test_the_other_networks_of_2017_are_flags() -> None:
    words, command = read_header((ROOT / "configs/babble-rnn-2017.yaml").read_text())
    flags = re.findall(r"`(--(?:model|unfreezing).*?)`", words)
    assert len(flags) == 4
    argv = shlex.split(command)[2:]
    read = [read_program("babble.train", [*argv, *shlex.split(flag)]) for flag in flags]
    assert [(c.model.cell, c.model.num_layers, c.model.units) for c in read] == [
        ("lstm", 3, 40),
        ("lstm", 3, 320),
        ("gru", 3, 160),
        ("lstm", 2, 320),
    ]
    assert len(read[0].unfreezing) == 3
    assert read[3].unfreezing == (Stage((1,), 60), Stage((1, 2)))


def test_experiments_csv_has_a_row_for_every_experiment() -> None:
    rows = read_rows(ROOT / "docs/experiments.csv")
    config = read_program("jobs.experiments", ["--config", "configs/experiments.yaml", "--shards", "shards/tale"])
    wanted = {(one.table, one.name, str(seed)) for one in config.experiments for seed in one.seeds}
    assert {(row["table"], row["name"], row["seed"]) for row in rows} == wanted
    assert len(rows) == len(wanted)


def test_a_header_is_read() -> None:
    text = "# Three layers.\n#\n# Machine: a core.\n#\n#   python -m x \\\n#     --y 1\n#\n# End.\nkey: 1\n# not it\n"
    words, command = read_header(text)
    assert words.startswith("Three layers.  Machine: a core.")
    assert words.endswith("End.")
    assert shlex.split(command) == ["python", "-m", "x", "--y", "1"]


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("# Wrong.\nno_such_key: 1\n")
    with pytest.raises(ValueError, match="no_such_key"):
        read_program("babble.train", ["--config", str(path)])
