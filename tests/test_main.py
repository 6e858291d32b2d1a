"""`babble COMMAND`: every command is reached under the name that its own messages use."""

import re
import subprocess
import sys
import tomllib
import warnings
from typing import Any
from unittest import mock

import pytest
from paths import ROOT

from babble.__main__ import COMMANDS, DISTRIBUTION, main


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "babble", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_itself_by_its_name(name: str) -> None:
    progs = []

    def only_note(config_class: type[Any], work: Any, prog: str, positional: str | None = None) -> None:
        progs.append(prog)

    with (
        mock.patch("babble.cli.run_command", only_note),
        mock.patch("sys.argv", ["babble", name, "--flag"]),
        # runpy warns of modules that are imported already, as they are in tests.
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),
    ):
        main()
    assert progs == [f"babble {name}"]


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == list(COMMANDS)


def test_a_command_runs_as_by_its_module() -> None:
    done = run("report", "--help")
    assert (done.returncode, done.stdout.splitlines()[0][:21]) == (0, "usage: babble report ")
    assert done.stdout == subprocess.check_output([sys.executable, "-m", "babble.report", "--help"], text=True)


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    assert run("--version").stdout == f"babble {project['version']}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "babble: error: unknown command 'trian'; did you mean babble train?\n"),
        (["42"], "babble: error: unknown command '42'; babble --help lists all commands\n"),
    ],
)
def test_an_unknown_command_is_an_error(words: list[str], message: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_without_a_command_the_help_is_shown_as_an_error() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout
