"""Config dataclass -> command line: the one place where command lines and YAML are read.

jsonargparse does the reading: defaults < YAML < command line, unknown keys stop the run, `--help` comes from the
config's docstring. Here is what it lacks, and nothing else: lists after a flag (`--sources A B C`), a run folder as
first word (`python -m babble.generate runs/NAME`), errors as a message instead of a traceback, Ctrl-C.
"""

import argparse
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import jsonargparse
import yaml

Config = TypeVar("Config")

EXIT_FAILED = 1
# `metadata` of a field that is itself a config and whose keys stand at the top level: of a field `sweep` with the key
# `search`, the flag is --search instead of --sweep.search. Two inlined configs must not share a key.
INLINED = {"inlined": True}


class CommandError(Exception):
    """The work could not be done, or not all of it: shown as a message, exit code 1."""


class Interrupted(Exception):
    """Work stopped when asked and can go on later: shown as a message, exit code 128 + the signal's number.

    Args:
        message: what the user is told.
        number: the signal that asked; Ctrl-C's by default.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def _split_fields(config_class: type[Any]) -> tuple[list[Any], list[Any]]:
    """Return the fields that are inlined, and the others."""
    every = fields(config_class)
    return [f for f in every if f.metadata == INLINED], [f for f in every if f.metadata != INLINED]


def _add_arguments(parser: jsonargparse.ArgumentParser, config_class: type[Any]) -> None:
    parts, own = _split_fields(config_class)
    for part in parts:
        _add_arguments(parser, part.type)
    if own:
        parser.add_class_arguments(config_class, as_group=False, skip={part.name for part in parts})


def _assemble(config_class: type[Config], values: Any) -> Config:
    """Return the config whose values jsonargparse has read, its inlined parts built of the same values."""
    parts, own = _split_fields(config_class)
    built = {part.name: _assemble(part.type, values) for part in parts}
    return config_class(**{f.name: values[f.name] for f in own}, **built)


def _config_parser(config_class: type[Any], prog: str) -> jsonargparse.ArgumentParser:
    description = (config_class.__doc__ or "").strip().splitlines()[0]
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of settings; the command line wins over it.")
    _add_arguments(parser, config_class)
    return parser


def _list_flags(config_class: type[Any], prefix: str = "--") -> Iterator[str]:
    for f in fields(config_class):
        if get_args(f.type)[:1] in ((Path,), (str,)) and get_origin(f.type) is tuple:
            yield f"{prefix}{f.name}"
        elif is_dataclass(f.type) and isinstance(f.type, type):
            yield from _list_flags(f.type, prefix if f.metadata == INLINED else f"{prefix}{f.name}.")


def _spell_out(argv: list[str], config_class: type[Any], positional: str | None) -> list[str]:
    """Return the words as jsonargparse reads them: `A B` after a list's flag as JSON, the first bare word by name."""
    list_flags = set(_list_flags(config_class))
    words = list(argv)
    if positional and words and not words[0].startswith("-"):
        words[0:1] = [f"--{positional}", words[0]]
    spelled: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            # --init-from is easier to type than --init_from, and is what most programs would call it.
            word = flag[:2] + flag[2:].replace("-", "_") + equals + value
        spelled.append(".inf" if word == "inf" else word)  # YAML's spelling, which jsonargparse reads numbers in.
        if word in list_flags:
            items = []
            while words and not words[0].startswith("-"):
                items.append(words.pop(0))
            spelled.append(json.dumps(items))
    return spelled


def read_config(
    config_class: type[Config], argv: list[str], prog: str = "babble", positional: str | None = None
) -> Config:
    """Return the config that a command line asks for.

    Args:
        config_class: a frozen dataclass with a default for every field; nested dataclasses become `--part.key`.
        argv: the words after the program's name.
        prog: the command as the user types it, for `--help` and messages.
        positional: the field that a bare first word fills.

    A field named `recipe` takes the name of the last --config file.

    Raises:
        ValueError: a value that the config itself refuses, in its own words.
        SystemExit: anything jsonargparse refuses (code 2, the message on stderr), or `--help` (code 0).
    """
    parser = _config_parser(config_class, prog)
    parsed = parser.parse_args(_spell_out(argv, config_class, positional))
    instantiated = parser.instantiate(parsed)
    if "recipe" in instantiated and parsed.config:
        instantiated["recipe"] = Path(str(parsed.config[-1])).stem
    return _assemble(config_class, instantiated)


@functools.cache
def _values_parser(config_class: type[Any]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    _add_arguments(parser, config_class)
    return parser


def build_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Return the config that nested values describe, as a YAML file of them would.

    Raises:
        ValueError: a key that the config lacks, a value of another type, or one that the config itself refuses.
    """
    parser = _values_parser(config_class)  # type: ignore[arg-type]
    try:
        instantiated = parser.instantiate(parser.parse_object(values))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    return _assemble(config_class, instantiated)


def config_to_dict(config: object) -> dict[str, Any]:
    """Return a config as plain nested values, ready for YAML, JSON or W&B: paths as text, tuples as lists."""
    values: dict[str, Any] = {}
    for f in fields(config):  # type: ignore[arg-type]
        value = _plain(getattr(config, f.name))
        values |= value if f.metadata == INLINED else {f.name: value}
    return values


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return config_to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_yaml(values: dict[str, Any]) -> bytes:
    """Return plain nested values as a YAML file has them, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by the key that a user types: {"model": {"units": 8}} -> {"model.units": 8}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the nested values of typed keys: {"model.units": 8} -> {"model": {"units": 8}}."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.split(".")
        inner = values
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def run_command(
    config_class: type[Config], work: Callable[[Config], None], prog: str, positional: str | None = None
) -> None:
    """Read the command line, do the work, and exit as a command should.

    Exit code 0: done. 1: the work failed for a reason that a user can mend, shown as one message. 2: the command line
    could not be read. 128 + a signal's number: stopped by it, Ctrl-C is 130. Our own bugs keep their traceback.
    """
    try:
        work(read_config(config_class, sys.argv[1:], prog, positional))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{prog}: {stop or 'interrupted.'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except BrokenPipeError:
        # The player at the other end of the pipe has been closed: nothing is wrong and nobody is left to tell.
        sys.stderr.close()
        sys.exit(0)
    except (CommandError, ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
