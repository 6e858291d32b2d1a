"""Command lines and YAML: what wins, what is refused, and how a command ends."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from babble.cli import (
    INLINED,
    CommandError,
    Interrupted,
    build_config,
    config_to_dict,
    flatten,
    read_config,
    run_command,
    unflatten,
)


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        size: how large, in frames.
    """

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"part.size={self.size}: at least 1 is needed.")


@dataclass(frozen=True)
class Config:
    """Do a thing.

    Attributes:
        run: where.
        sources: from what.
        part: its part.
        init_from: a start.
        recipe: the config's name.
    """

    run: Path | None = None
    sources: tuple[Path, ...] = ()
    part: Part = field(default_factory=Part)
    init_from: str | None = None
    recipe: str = "none"


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path):
    yaml = tmp_path / "big.yaml"
    yaml.write_text("part: {size: 5}\ninit_from: there\n")
    assert read_config(Config, []).part.size == 3
    assert read_config(Config, ["--config", str(yaml)]).part.size == 5
    config = read_config(Config, ["--config", str(yaml), "--part.size", "7"])
    assert (config.part.size, config.init_from, config.recipe) == (7, "there", "big")


def test_a_list_of_paths_follows_its_flag():
    config = read_config(Config, ["--sources", "a", "b c", "--part.size", "1"])
    assert config.sources == (Path("a"), Path("b c"))


def test_the_first_bare_word_is_the_run_and_dashes_are_underscores():
    config = read_config(Config, ["runs/x", "--init-from=y-z"], positional="run")
    assert (config.run, config.init_from) == (Path("runs/x"), "y-z")


@pytest.mark.parametrize("words", [["--part.sise", "3"], ["--part.siz", "3"], ["--part.size", "three"], ["word"]])
def test_what_is_not_known_stops_the_command(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        read_config(Config, words)
    assert stop.value.code == 2
    assert words[0].removeprefix("--") in capsys.readouterr().err


def test_help_comes_from_the_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        read_config(Config, ["--help"], prog="python -m babble.thing")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Do a thing." in shown
    assert "how large, in frames." in shown


def test_a_config_becomes_plain_values_by_the_keys_that_one_types():
    config = Config(run=Path("r"), sources=(Path("a"),), part=Part(9))
    assert flatten(config_to_dict(config)) == {
        "run": "r",
        "sources": ["a"],
        "part.size": 9,
        "init_from": None,
        "recipe": "none",
    }


def test_plain_values_become_a_config_again():
    config = Config(run=Path("runs/x"), sources=(Path("a"),), part=Part(size=9))
    values = config_to_dict(config)
    assert build_config(Config, values) == config
    assert unflatten(flatten(values)) == values
    for wrong, message in (
        ({"part": {"size": "large"}}, "part.size"),
        ({"part": {"sizes": 1}}, "sizes"),
        ({"part": {"size": 0}}, r"part.size=0: at least 1 is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            build_config(Config, wrong)


@dataclass(frozen=True)
class Extra:
    """More settings.

    Attributes:
        folders: where to look.
    """

    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Both:
    """Do both things."""

    extra: Extra = field(default_factory=Extra, metadata=INLINED)
    main: Config = field(default_factory=Config, metadata=INLINED)


def test_keys_of_inlined_parts_stand_at_the_top_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    yaml = tmp_path / "big.yaml"
    yaml.write_text("part: {size: 5}\nfolders: [c]\n")
    config = read_config(Both, ["--config", str(yaml), "--folders", "a", "b", "--init-from", "x"])
    assert config.extra == Extra((Path("a"), Path("b")))
    assert (config.main.part.size, config.main.init_from) == (5, "x")
    values = config_to_dict(config)
    assert values == config_to_dict(config.extra) | config_to_dict(config.main)
    assert build_config(Both, values) == config
    with pytest.raises(ValueError, match=r"part.size=0: at least 1 is needed"):
        build_config(Both, {"part": {"size": 0}})
    with pytest.raises(SystemExit):
        read_config(Both, ["--help"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("Do both things.", "where to look.", "how large, in frames."))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such thing"), 1),
        (CommandError("two of five failed"), 1),
        (FileNotFoundError("gone"), 1),
        (Interrupted("stopped at step 3"), 130),
        (Interrupted("stopped at step 3", signal.SIGUSR1), 138),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_command_ends_with_a_message_and_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def work(config: Config) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["thing"])
    with pytest.raises(SystemExit) as stop:
        run_command(Config, work, "thing")
    said = capsys.readouterr().err
    assert stop.value.code == code
    assert said.startswith("thing: ")
    assert str(error) in said


def test_a_config_that_refuses_a_value_is_heard_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["thing", "--part.size", "0"])
    with pytest.raises(SystemExit) as stop:
        run_command(Config, lambda config: None, "thing")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "thing: part.size=0: at least 1 is needed.\n"
