"""What README.md and the configs tell a user to type, and whether it would work: read by the real parsers, not run."""

import contextlib
import io
import re
import runpy
import shlex
import tomllib
import warnings
from itertools import groupby
from typing import Any
from unittest import mock

from paths import ROOT

from babble.cli import read_config

FENCED_SH = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Not ours to check: a command that begins so is taken as it is.
FROM_OUTSIDE = (
    "aplay",
    "apt-get",
    "cd",
    "export",
    "git",
    "python3",
    "source",
    "squeue",
    "sudo",
    "unzip",
    "wandb",
    "wget",
)
# What each script of slurm/ hands its words to.
SCRIPTS = {
    "slurm/preprocess.sh": "jobs.preprocess",
    "slurm/train.sh": "babble.train",
    "slurm/evaluate.sh": "babble.evaluate",
    "slurm/tune.sh": "babble.tune",
}


def find_commands(markdown: str) -> list[str]:
    """Return the commands of the fenced sh blocks, one a line: comments left out, continued lines joined."""
    lines = "".join(FENCED_SH.findall(markdown)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def read_program(module: str, argv: list[str]) -> Any:
    """Return the config that `python -m module argv` would work with.

    Raises:
        ValueError: the program's parser or config refuses, in its words.
    """
    found = []

    def only_read(config_class: type[Any], work: Any, prog: str, positional: str | None = None) -> None:
        found.append(read_config(config_class, argv, prog, positional))

    said = io.StringIO()
    with mock.patch("babble.cli.run_command", only_read), contextlib.redirect_stderr(said):
        try:
            # As `python -m` runs it: executed anew, so it finds the run_command above, whoever imported it before.
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit:
            raise ValueError(said.getvalue().partition("error: ")[2].strip()) from None
    return found[0]


def check_command(command: str) -> None:
    """Raise ValueError, naming the cause, if a command of README's would not work; any kind not known here is one."""
    for part in re.split(r"&&|\|", command):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        match words:
            case ["python" | ".venv/bin/python", "-m", module, *argv] if module.startswith(("babble.", "jobs.")):
                read_program(module, argv)
            case ["make", *goals]:
                targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                check_known(goals, [*targets, "PYTHON"], "target of the Makefile")
            case ["sbatch", *rest]:
                script = next((n for n, word in enumerate(rest) if word.endswith(".sh")), None)
                check_known(["nothing" if script is None else rest[script]], list(SCRIPTS), "script")
                assert script is not None
                argv = [word for word in rest[script + 1 :] if word != "..."]
                # "..." stands for what stands above: there is nothing to read then.
                if argv:
                    read_program(SCRIPTS[rest[script]], argv)
            case ["slurm/pipeline.sh", name, *rest]:
                parts = [list(part) for is_rest, part in groupby(rest, lambda word: word != "--") if is_rest]
                ours = (["--out", name], ["--data.shards", name, "--name", name], [])
                for module, argv, filled in zip(SCRIPTS.values(), parts, ours, strict=False):
                    read_program(module, [*argv, *filled] if module != "babble.evaluate" else [name, *argv])
            case ["pip" | ".venv/bin/pip", "install", "-c", "constraints.txt", "-e", place]:
                extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                check_known(re.split(r"[\[\],]+", place)[1:-1], list(extras), "extra of pyproject.toml")
            case [program, *_] if program in FROM_OUTSIDE:
                pass
            case _:
                raise ValueError(f"{part.strip()!r}: no kind of command that tests/documented.py can check")


def check_known(words: list[str], known: list[str], what: str) -> None:
    """Raise ValueError for the first word that is not known; of NAME=VALUE the name counts."""
    for word in words:
        if word.partition("=")[0] not in known:
            raise ValueError(f"{word!r} is no {what}: {', '.join(known)}")
