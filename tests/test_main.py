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

from babble.__main__ import DISTRIBUTION, main
from babble.commands import COMMANDS


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


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["tr"], ["train"]),
        (["train", "--model.un"], ["--model.units"]),
        (["train", "--model.cell", ""], ["diagonal_lstm", "gru", "hyperlstm", "lstm"]),
        (["generate", "--what"], ["--what-if"]),
        (["preprocess", "--mode", "700"], ["700C"]),
    ],
)
def test_a_shell_completes_commands_flags_and_choices(
    typed: list[str], completed: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a real bash."""
    script = tmp_path_factory.getbasetemp() / "completion.bash"
    if not script.is_file():
        script.write_text(run("completion", "bash").stdout)
    words = " ".join(f"'{word}'" for word in ["babble", *typed])
    ask = f"""
        source {script}
        COMP_WORDS=({words}); COMP_CWORD={len(typed)}
        $(complete -p babble | sed -E 's/.*-F ([^ ]+).*/\\1/') babble
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert sorted(done.stdout.split()) == completed, done.stderr


def test_completion_needs_the_name_of_a_shell() -> None:
    done = run("completion", "fish")
    assert (done.returncode, done.stderr.partition(",")[0]) == (2, "babble completion: name bash")
