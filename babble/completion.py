"""Shell completion of `babble`: commands, flags, choices and paths.

source <(babble completion bash)
"""

import argparse
from importlib import import_module
from pathlib import Path

import shtab

from babble.command_line import list_settings
from babble.commands import COMMANDS


def write_completion(shell: str) -> str:
    """Return the script that completes `babble` in a shell: bash, zsh or tcsh."""
    parser = argparse.ArgumentParser("babble")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        module, _, config = command.config.rpartition(".")
        one = commands.add_parser(name, help=command.summary)
        one.add_argument("--config").complete = shtab.FILE  # type: ignore[attr-defined]
        for key, setting in list_settings(getattr(import_module(module), config)).items():
            # A key without a setting is a section of settings.
            if setting is None:
                continue
            flag = one.add_argument(f"--{key.replace('_', '-')}", choices=setting.choices or None)
            if Path in (setting.type, *getattr(setting.type, "__args__", ())):
                flag.complete = shtab.FILE  # type: ignore[attr-defined]
        one.add_argument("words", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
