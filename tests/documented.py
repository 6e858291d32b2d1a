"""Commands shown in README.md, docs/ and configs/: find them, and check with the real parsers that they would work."""

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
from babble.commands import COMMANDS

FENCED_SH = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Commands that are not babble's are not checked.
EXTERNAL_PROGRAMS = (
    "aplay",
    "apt-get",
    "cd",
    "export",
    "ffmpeg",
    "git",
    "python3",
    "source",
    "squeue",
    "sudo",
    "unzip",
    "wandb",
)
# The module to which each script of slurm/ passes its arguments.
SCRIPTS = {
    "slurm/preprocess.sh": "jobs.preprocess",
    "slurm/train.sh": "babble.train",
    "slurm/evaluate.sh": "babble.evaluate",
    "slurm/tune.sh": "babble.tune",
}


def find_commands(markdown: str) -> list[str]:
    """Return the commands in fenced sh blocks, one per line, without comment lines and with continued lines joined."""
    lines = "".join(FENCED_SH.findall(markdown)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def read_program(module: str, argv: list[str]) -> Any:
    """Return the config that `python -m module argv` would run with.

    Raises:
        ValueError: the program's parser or config rejects the arguments; the message is the program's.
    """
    configs = []

    def only_read(config_class: type[Any], work: Any, prog: str, positional: str | None = None) -> None:
        configs.append(read_config(config_class, argv, prog, positional))

    stderr = io.StringIO()
    with (
        mock.patch("babble.cli.run_command", only_read),
        mock.patch("sys.argv", [module, *argv]),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            # Executed again, as `python -m` does, so that the module imports the patched run_command.
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit:
            message = stderr.getvalue()
            raise ValueError((message.partition("error: ")[2] or message).strip()) from None
    return configs[0]


def check_command(command: str) -> None:
    """Raise ValueError, with the cause, if a documented command would fail or is of a kind not known here."""
    for part in re.split(r"&&|\|", command):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        match words:
            case ["babble" | ".venv/bin/babble", name, *argv] if name in COMMANDS:
                read_program(COMMANDS[name].module, argv)
            case ["python" | ".venv/bin/python", "-m", module, *argv] if module.startswith(("babble.", "jobs.")):
                read_program(module, argv)
            case ["make", *goals]:
                targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                check_known(goals, [*targets, "PYTHON"], "a target of the Makefile")
            case ["sbatch", *rest]:
                script = next((n for n, word in enumerate(rest) if word.endswith(".sh")), None)
                check_known(["nothing" if script is None else rest[script]], list(SCRIPTS), "a script")
                assert script is not None
                argv = [word for word in rest[script + 1 :] if word != "..."]
                # "..." stands for the arguments of an earlier command.
                if argv:
                    read_program(SCRIPTS[rest[script]], argv)
            case ["slurm/pipeline.sh", name, *rest]:
                parts = [list(part) for is_rest, part in groupby(rest, lambda word: word != "--") if is_rest]
                added = (["--out", name], ["--data.shards", name, "--name", name], [])
                for module, argv, more in zip(SCRIPTS.values(), parts, added, strict=False):
                    read_program(module, [*argv, *more] if module != "babble.evaluate" else [name, *argv])
            case ["pip" | ".venv/bin/pip", "install", "-c", "constraints.txt", "-e", target]:
                extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                check_known(re.split(r"[\[\],]+", target)[1:-1], list(extras), "an extra of pyproject.toml")
            case [program, *_] if program in EXTERNAL_PROGRAMS:
                pass
            case _:
                raise ValueError(f"{part.strip()!r}: tests/documented.py cannot check this kind of command")


def check_known(words: list[str], known: list[str], what: str) -> None:
    """Raise ValueError for the first word that is not known; of NAME=VALUE only the name is checked."""
    for word in words:
        if word.partition("=")[0] not in known:
            raise ValueError(f"{word!r} is not {what}: {', '.join(known)}")
