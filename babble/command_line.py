"""The words of a command line and the keys of a YAML file, rewritten as jsonargparse reads them.

    words = CommandLine(TrainConfig, positional=None)
    words.rewrite(["--model.cell", "LSTM", "--data.batch-size", "8"])  # --model.cell=lstm --data.batch_size=8

1. `list_settings` lists the keys of a config class with their types.
2. `CommandLine.rewrite` joins each flag with its value: lists, which a repeated flag makes longer, booleans, choices in
   any case, positional arguments anywhere, YAML files after `--config`.
3. What is unknown is a `UsageError` in one line, with "did you mean".
"""

import difflib
import json
import os
import re
import types
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import jsonargparse
import yaml

# `metadata` of a field that is itself a config and whose keys stand at the top level: of a field `sweep` with the key
# `search`, the flag is --search instead of --sweep.search. Two inlined configs must not share a key.
INLINED = {"inlined": True}
# U+DC80, the surrogate for the byte 80, becomes U+EF80.
_HIDING = 0x1300
# The files of configs/, also where babble is installed without its repository.
CONFIGS = Path(__file__).parent / "configs"
_BOOLEANS = ("true", "false", "yes", "no")


class UsageError(ValueError):
    """The command line or a YAML file could not be read: shown as a message, exit code 2."""


@dataclass(frozen=True)
class Setting:
    """A key that a user can set, such as model.units.

    Attributes:
        key: as typed after `--`, with underscores.
        type: its annotation, without None.
        is_optional: whether None is allowed.
    """

    key: str
    type: Any
    is_optional: bool

    @property
    def is_list(self) -> bool:
        """Whether bare words after the flag are its items."""
        return get_origin(self.type) is tuple and (
            self.item in (str, Path, int, float) or get_origin(self.item) is Literal
        )

    @property
    def item(self) -> Any:
        """Type of the items of a tuple; of another setting, its own type."""
        return get_args(self.type)[0] if get_origin(self.type) is tuple else self.type

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values, or items of a list, of a closed set; empty for other types."""
        return get_args(self.item) if get_origin(self.item) is Literal else ()

    def expected(self) -> str:
        """Return what values are allowed, in words."""
        if self.choices:
            words = f"one of {', '.join(map(str, self.choices))}"
        else:
            names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}
            kind = get_origin(self.type) or self.type
            numbers = {int: "a list of whole numbers", float: "a list of numbers"}.get(self.item, "a list")
            words = {tuple: numbers, dict: "a mapping"}.get(kind) or names.get(kind, "another type")
        return words + (" or null" if self.is_optional else "")


def list_settings(config_class: type[Any], prefix: str = "") -> dict[str, Setting | None]:
    """Return every key of a config class with its setting; None for a key that stands for a nested config."""
    found: dict[str, Setting | None] = {}
    for f in fields(config_class):
        key = f"{prefix}{f.name}"
        if is_dataclass(f.type) and isinstance(f.type, type):
            if f.metadata == INLINED:
                found.update(list_settings(f.type, prefix))
                continue
            found[key] = None
            found.update(list_settings(f.type, f"{key}."))
            continue
        kind, is_optional = f.type, False
        if get_origin(kind) in (Union, types.UnionType):
            members = [member for member in get_args(kind) if member is not type(None)]
            is_optional = len(members) < len(get_args(kind))
            kind = members[0] if len(members) == 1 else str
        found[key] = Setting(key, kind, is_optional)
    return found


def _find_setting(key: str, config_class: type[Any]) -> Setting | None:
    """Return the setting that a key belongs to: itself, or the mapping that it is a part of; None for nested configs.

    Raises:
        UsageError: there is none; the message names the most similar one.
    """
    known = list_settings(config_class)
    if key in known:
        return known[key]
    parent = key.rpartition(".")[0]
    while parent:
        setting = known.get(parent)
        if setting and (get_origin(setting.type) or setting.type) is dict:
            return setting
        parent = parent.rpartition(".")[0]
    raise UsageError(f"unknown setting {key}{_did_you_mean(key, list(known))}")


def _did_you_mean(word: str, known: list[str]) -> str:
    # A key typed without its section: units for model.units.
    close = [key for key in known if key.rpartition(".")[2] == word] or difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists all settings"


def _match_choice(value: Any, setting: Setting | None) -> Any:
    """Return a value as its closed set spells it: typed in any case, or read as a number by YAML."""
    if setting and setting.choices and isinstance(value, str | int):
        return next((choice for choice in setting.choices if str(choice).lower() == str(value).lower()), value)
    return value


def _refuse_empty_paths(setting: Setting | None, words: list[str]) -> None:
    """Raise if a path is an empty word, e.g. from "$UNSET": `Path("")` is the current folder."""
    if setting and setting.item is Path and "" in words:
        raise UsageError(f"--{setting.key.replace('_', '-')} got an empty path: give a path, or omit the flag")


class CommandLine:
    """Rewrites a command line as jsonargparse reads it: one `--flag=value` per setting.

    Args:
        config_class: whose settings the flags are.
        positional: the field that bare words fill, if any.
    """

    def __init__(self, config_class: type[Any], positional: str | None) -> None:
        self.config_class = config_class
        self.positional = positional
        self.positional_words: list[str] = []
        self.config_files: list[str] = []
        self.given: set[str] = set()
        self._lists: dict[str, list[str]] = {}

    def rewrite(self, argv: list[str]) -> list[str]:
        """Return the rewritten words.

        Raises:
            UsageError: an unknown flag, a flag without its value, an unexpected word, or a flag given twice that is
                not a list.
        """
        words, rewritten = list(argv), []
        while words:
            word = words.pop(0)
            if word in ("-h", "--help", "--print_config", "--print-config"):
                rewritten.append(word.replace("print-", "print_"))
            elif word.startswith("--") and len(word) > 2:
                rewritten += self._rewrite_flag(word, words)
            else:
                self.positional_words.append(word)
        rewritten += self._rewrite_positional()
        settings = list_settings(self.config_class)
        return rewritten + [f"--{key}={_dump_items(items, settings[key])}" for key, items in self._lists.items()]

    def _rewrite_flag(self, word: str, words: list[str]) -> list[str]:
        flag, equals, value = word.partition("=")
        key = flag[2:].replace("-", "_")
        if key == "config":
            path = value if equals else self._next_value(flag, words)
            self.config_files.append(path)
            return [f"--config={json.dumps(_read_yaml(Path(path), self.config_class))}"]
        settings = list_settings(self.config_class)
        negated = settings.get(key.removeprefix("no_")) if key.startswith("no_") and not equals else None
        if negated and negated.type is bool and key not in settings:
            self._give_once(negated.key)
            return [f"--{negated.key}=false"]
        try:
            setting = _find_setting(key.removesuffix("+"), self.config_class)
        except UsageError:
            known = [name.replace("_", "-") for name in settings]
            hint = _did_you_mean(flag[2:].replace("_", "-"), known).replace("did you mean ", "did you mean --")
            raise UsageError(f"unknown flag {flag}{hint}") from None
        if setting and setting.is_list:
            items = [value] if equals else self._take_items(words)
            self.given.add(key)
            _refuse_empty_paths(setting, items)
            self._lists.setdefault(key, []).extend(_split_items(items))
            return []
        self._give_once(key)
        if setting and setting.type is bool and not equals and (not words or words[0].lower() not in _BOOLEANS):
            return [f"--{key}=true"]
        value = value if equals else self._next_value(flag, words)
        _refuse_empty_paths(setting, [value])
        value = str(_match_choice(value, setting))
        # YAML's spelling of infinity, which jsonargparse reads numbers in.
        return [f"--{key}={'.inf' if value == 'inf' else value}"]

    def _give_once(self, key: str) -> None:
        # The last one would win, and what the first one asks for would be ignored without a word.
        if key in self.given:
            raise UsageError(f"--{key.replace('_', '-')} is given twice: give it once")
        self.given.add(key)

    @staticmethod
    def _take_items(words: list[str]) -> list[str]:
        items = []
        while words and not words[0].startswith("-"):
            items.append(words.pop(0))
        return items

    @staticmethod
    def _next_value(flag: str, words: list[str]) -> str:
        if not words or words[0].startswith("--"):
            raise UsageError(f"{flag} needs a value")
        return words.pop(0)

    def _rewrite_positional(self) -> list[str]:
        if not self.positional_words:
            return []
        setting = list_settings(self.config_class).get(self.positional or "")
        is_list = bool(setting and setting.is_list)
        if setting is None or (len(self.positional_words) > 1 and not is_list):
            unexpected = self.positional_words[-1]
            raise UsageError(f"unexpected argument {unexpected!r}; --help shows what this command takes")
        _refuse_empty_paths(setting, self.positional_words)
        if is_list:
            self._lists.setdefault(setting.key, []).extend(self.positional_words)
            return []
        self._give_once(setting.key)
        return [f"--{setting.key}={self.positional_words[0]}"]


def hide_bytes(text: str) -> str:
    """Return text with the bytes that are not UTF-8 (surrogates, as in `os.fsdecode`) as private characters.

    YAML, which jsonargparse reads values with, has no surrogates; `show_bytes` undoes it.
    """
    return "".join(chr(ord(letter) + _HIDING) if "\udc80" <= letter <= "\udcff" else letter for letter in text)


def show_bytes(value: Any) -> Any:
    """Return a value, or nested values, with the characters of `hide_bytes` as the bytes that they stand for."""
    if isinstance(value, str):
        return re.sub("[\uef80-\uefff]", lambda letter: chr(ord(letter[0]) - _HIDING), value)
    if isinstance(value, Path):
        return Path(show_bytes(str(value)))
    if isinstance(value, list | tuple):
        return type(value)(show_bytes(item) for item in value)
    if isinstance(value, dict):
        return {show_bytes(key): show_bytes(item) for key, item in value.items()}
    if isinstance(value, jsonargparse.Namespace):
        return jsonargparse.Namespace({key: show_bytes(item) for key, item in vars(value).items()})
    return value


def _dump_items(items: list[str], setting: Setting | None) -> str:
    if setting and setting.item in (int, float):
        listed = ", ".join(items)
        return listed if listed.startswith("[") else f"[{listed}]"
    return json.dumps([hide_bytes(item) for item in items])


def _split_items(items: list[str]) -> list[str]:
    """Return a list's items; one that is not there but names existing paths with commas between is taken as those."""
    found = []
    for item in items:
        parts = [part.strip() for part in item.split(",")]
        is_joined = len(parts) > 1 and not os.path.lexists(item) and all(os.path.lexists(part) for part in parts)
        found += parts if is_joined else [item]
    return found


def find_config(path: Path) -> Path:
    """Return the YAML file that `--config` names: a path, or the name of a file in configs/ such as "babble-cpu".

    Raises:
        UsageError: there is none; the message lists the names.
    """
    bundled = CONFIGS / f"{path}.yaml"
    found = next((file for file in (path, bundled) if file.is_file()), None)
    if found is None:
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UsageError(f"--config {path}: no such file, and none of the bundled configs: {names}")
    return found


def _read_yaml(path: Path, config_class: type[Any]) -> dict[str, Any]:
    """Return the settings in a YAML file, nested, choices spelled as their closed sets spell them.

    Raises:
        UsageError: it does not exist, is damaged, or has an unknown key; the message names the file.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = jsonargparse.get_loader("yaml")(text)
        _refuse_doubled_keys(yaml.compose(text, Loader=yaml.SafeLoader), "", {}, path)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {type(values).__name__}, but settings are a mapping: key: value")
    return _check_keys(values, config_class, "", path)


def _refuse_doubled_keys(node: yaml.Node | None, prefix: str, lines: dict[str, int], path: Path) -> None:
    """Raise if two keys name one setting. YAML's loader keeps the last one, and ignores the others without a word.

    Args:
        node: a value of the file.
        prefix: the key that it belongs to, with a dot.
        lines: where the keys read so far are.
        path: the file.

    Raises:
        UsageError: names key and file.
    """
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_doubled_keys(item, f"{prefix}{index}.", lines, path)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            if key in lines:
                raise UsageError(f"{path}, line {line}: {key} is set in line {lines[key]} already: set it once")
            lines[key] = line
            _refuse_doubled_keys(value, f"{key}.", lines, path)


def _check_keys(values: dict[str, Any], config_class: type[Any], prefix: str, path: Path) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        try:
            setting = _find_setting(key, config_class)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        is_nested = setting is None and isinstance(value, dict)
        checked[str(name)] = (
            _check_keys(value, config_class, f"{key}.", path) if is_nested else _match_choice(value, setting)
        )
    return checked
