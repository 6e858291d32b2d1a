"""Config dataclass -> command line: the one place where command lines and YAML files are read.

    run_command(TrainConfig, work, "babble train")

jsonargparse parses: defaults < YAML < command line, unknown keys stop the run, `--help` comes from the config's
docstring. command_line.py prepares the words for it; here are errors in one line, exit codes and Ctrl-C.
"""

import argparse
import atexit
import difflib
import errno
import functools
import gc
import io
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from babble.command_line import INLINED, CommandLine, UsageError, hide_bytes, list_settings, show_bytes

Config = TypeVar("Config")

EXIT_FAILED, EXIT_USAGE = 1, 2


class CommandError(Exception):
    """The work could not be done, or not all of it: shown as a message, exit code 1."""


class OutputClosed(Exception):
    """The program that reads the output has ended, e.g. a player: nothing is wrong, exit code 0."""


class Interrupted(Exception):
    """Work stopped on request and can be continued: shown as a message, exit code 128 + the signal's number.

    Args:
        message: shown to the user.
        number: the signal; Ctrl-C's by default.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


# ---- parsing


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Flags with dashes, and the examples of the module docstring as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def format_help(self) -> str:
        return re.sub(r"(?<![\w-])--[a-z_.]+", lambda flag: flag[0].replace("_", "-"), super().format_help())


class _Parser(jsonargparse.ArgumentParser):
    """Raises UsageError instead of printing the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message)


def _split_fields(config_class: type[Any]) -> tuple[list[Any], list[Any]]:
    """Return the fields that are inlined, and the others."""
    every = fields(config_class)
    return [f for f in every if f.metadata == INLINED], [f for f in every if f.metadata != INLINED]


def _add_arguments(parser: jsonargparse.ArgumentParser, config_class: type[Any]) -> None:
    inlined, own = _split_fields(config_class)
    for part in inlined:
        _add_arguments(parser, part.type)
    if own:
        parser.add_class_arguments(config_class, as_group=False, skip={part.name for part in inlined})


def _assemble(config_class: type[Config], values: Any) -> Config:
    """Return the config built from the values that jsonargparse read, its inlined parts from the same values."""
    inlined, own = _split_fields(config_class)
    parts = {part.name: _assemble(part.type, values) for part in inlined}
    return config_class(**{f.name: values[f.name] for f in own}, **parts)


def _make_parser(config_class: type[Any], prog: str, positional: str | None, epilog: str | None) -> _Parser:
    description = (config_class.__doc__ or "").strip().splitlines()[0]
    usage = prog + (f" [{positional.upper()}]" if positional else "") + " [--config FILE] [--FLAG VALUE ...]"
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of settings, or the name of a bundled one such as demo.",
    )
    _add_arguments(parser, config_class)
    settings = list_settings(config_class)
    for action in parser._actions:
        if (setting := settings.get(action.dest)) and setting.is_list:
            # As `CommandLine` reads it, not as jsonargparse does.
            action.metavar = "ITEM ..."
    return parser


def _explain(message: str, words: CommandLine) -> str:
    """Return jsonargparse's message about a value in one line that says what was expected."""
    keys = list(re.finditer(r'Parser key "([^"]+)":\s', message))
    found = keys[-1] if keys else None
    if not found:
        return " ".join(message.split())
    setting = list_settings(words.config_class).get(found[1])
    value = re.search(r"(?:Got value|Given value): (.*)\Z", message, re.DOTALL)
    where = f"--{found[1].replace('_', '-')}" if found[1] in words.given else ", ".join([*words.config_files, found[1]])
    if setting is None or value is None or setting.expected().startswith("another"):
        return f"{where}: {' '.join(message[found.end() :].split())}"
    close = difflib.get_close_matches(value[1].lower(), [str(choice) for choice in setting.choices], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{where} {value[1]}: expected {setting.expected()}{hint}"


def read_config(
    config_class: type[Config],
    argv: list[str],
    prog: str = "babble",
    positional: str | None = None,
    epilog: str | None = None,
) -> Config:
    """Return the config that a command line asks for.

    Args:
        config_class: a frozen dataclass with a default for every field. Nested dataclasses become `--part.key`, except
            fields with the metadata `INLINED`, whose keys stand at the top level.
        argv: the words after the program's name.
        prog: the command as the user types it, for `--help` and messages.
        positional: the field that bare words fill.
        epilog: shown below the flags by `--help`.

    A field named `recipe` takes the name of the last --config file, unless the file or the command line sets it.

    Raises:
        UsageError: an unknown flag or key, or a value of the wrong type.
        ValueError: a value that the config itself rejects.
        SystemExit: `--help` (code 0).
    """
    words = CommandLine(config_class, positional)
    rewritten = [hide_bytes(word) for word in words.rewrite(argv)]
    parser = _make_parser(config_class, prog, positional, epilog)
    if "recipe" in list_settings(config_class) and words.config_files:
        parser.set_defaults({"recipe": Path(words.config_files[-1]).stem})
    # Names may have these characters of their own.
    are_hidden = any(hide_bytes(word) != word for word in argv)
    try:
        values = parser.parse_args(rewritten)
        values = parser.instantiate(show_bytes(values) if are_hidden else values)
    except UsageError as error:
        message = _explain(str(error), words)
        raise UsageError(show_bytes(message) if are_hidden else message) from None
    return _assemble(config_class, values)


@functools.cache
def _values_parser(config_class: type[Any]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    _add_arguments(parser, config_class)
    return parser


def build_config(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Return the config that nested values describe, as a YAML file of them would.

    Raises:
        ValueError: a key that the config lacks, a value of another type, or one that the config itself rejects.
    """
    parser = _values_parser(config_class)  # type: ignore[arg-type]
    try:
        return _assemble(config_class, parser.instantiate(parser.parse_object(values)))
    except argparse.ArgumentError as error:
        raise ValueError(_explain(str(error), CommandLine(config_class, None))) from None


# ---- plain values


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
    """Return plain nested values as the bytes of a YAML file, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by the key that a user types: {"model": {"units": 8}} -> {"model.units": 8}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the nested values of flat keys: {"model.units": 8} -> {"model": {"units": 8}}."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.split(".")
        inner = values
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each setting whose value differs, in order of keys: "model.units: was 40, now 160"."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


# ---- commands


def explain_process_limit(error: BaseException) -> str:
    """Return what to add to the message of an error, if it says that no process or thread could be started."""
    if not re.search("start new thread|Resource temporarily unavailable", str(error)):
        return ""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    own = "" if limit == resource.RLIM_INFINITY else f" is {limit} for this user, other programs included, and"
    return f". The limit of processes and threads{own} is reached: raise it (ulimit -u; in a container, pids.max)."


# Settings on which the memory of a GPU depends, where a command has them.
_MEMORY_SETTINGS = ("data.batch_size", "data.window_frames", "streams")


def explain_gpu_memory(error: BaseException, config_class: type[Any]) -> str:
    """Return a message with what to lower, if an error says that a GPU has too little memory; else nothing.

    By the name of torch's class, because torch is imported only by commands that need it; cuBLAS and cuDNN have none.
    """
    text = str(error)
    other = re.search("(CUDA|HIP) error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", text)
    if type(error).__name__ != "OutOfMemoryError" and not other:
        return ""
    numbers = re.findall(r"Tried to allocate [\d.]+ \w+|[\d.]+ \w+ of which [\d.]+ \w+ is free", text)
    found = ": " + ", ".join(numbers).replace("Tried", "tried") if numbers else ""
    settings = list_settings(config_class)
    lower = [f"--{key.replace('_', '-')}" for key in _MEMORY_SETTINGS if key in settings]
    advice = [f"lower {' or '.join(lower)}"] if lower else []
    if "data.batch_size" in settings:
        # A run is not continued with other settings.
        advice[0] += " under another --name"
    advice += ["use --device cpu"] if "device" in settings else []
    advice += [] if advice else ["use a GPU with more memory"]
    return f"the GPU has too little memory{found}. Other programs may use it too; if not, {', or '.join(advice)}."


def _prepare_console() -> None:
    """Let no output to the console end the work: a name that its encoding lacks, a closed pipe or terminal."""
    # Without standard streams, `print` works but `isatty` does not, and a file could be opened in their place.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            _drop_output_when_closed(stream)


def _drop_output_when_closed(stream: io.TextIOWrapper) -> None:
    """Have a stream write to nowhere as soon as its reader has ended, as with `| head -1`: the work continues."""

    def make(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any) -> Any:
            try:
                return method(*args)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
                return method(*args)

        return call

    # Tests call several commands in one process.
    if "flush" not in vars(stream):
        stream.write = make(stream.write)  # type: ignore[method-assign]
        stream.flush = make(stream.flush)  # type: ignore[method-assign]


def run_command(
    config_class: type[Config], work: Callable[[Config], None], prog: str, positional: str | None = None
) -> None:
    """Read the command line, do the work, and exit as a command should.

    Exit code 0: done. 1: the work failed for a reason that a user can fix, shown as one message. 2: the command line
    could not be read. 128 + a signal's number: stopped by it; Ctrl-C is 130. Our own bugs keep their traceback. If the
    program that reads the output has ended, the work goes on without output.

    Args:
        config_class: see `read_config`.
        work: called with the config. The docstring of its module is the epilog of `--help`.
        prog: the command as the user types it.
        positional: the field that bare words fill.
    """
    epilog = sys.modules[work.__module__].__doc__
    # At its end Python searches all objects for cycles to free: with torch imported, for half a second.
    atexit.register(gc.freeze)
    _prepare_console()
    try:
        work(read_config(config_class, sys.argv[1:], prog, positional, epilog))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{prog}: {str(stop) or 'interrupted by Ctrl-C.'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except OutputClosed:
        sys.exit(0)
    except UsageError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (CommandError, ValueError, OSError, RuntimeError) as error:
        hint, memory = explain_process_limit(error), explain_gpu_memory(error, config_class)
        if isinstance(error, RuntimeError) and not (hint or memory):
            raise
        print(f"{prog}: {memory or error}{hint}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
