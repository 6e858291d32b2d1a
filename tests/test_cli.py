"""Command lines and YAML: precedence, validation, messages, and how a command ends."""

import importlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from babble.cli import (
    INLINED,
    CommandError,
    Interrupted,
    UsageError,
    build_config,
    config_to_dict,
    describe_changes,
    flatten,
    read_config,
    run_command,
    unflatten,
)
from babble.command_line import find_config


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        size: length in frames.
        cell: kind of cell.
    """

    size: int = 3
    cell: Literal["lstm", "gru"] = "lstm"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"part.size={self.size}: must be at least 1.")


@dataclass(frozen=True)
class Config:
    """Do a thing.

    Attributes:
        run: the run folder.
        sources: input files.
        part: its part.
        init_from: initial weights.
        recipe: the config's name.
        speeds: speeds of the recordings.
        with_prompt: include the prompt.
        top_p: nucleus sampling.
        space: what varies.
    """

    run: Path | None = None
    sources: tuple[Path, ...] = ()
    part: Part = field(default_factory=Part)
    init_from: str | None = None
    recipe: str = "none"
    speeds: tuple[float, ...] = (1.0,)
    with_prompt: bool = True
    top_p: float | None = None
    space: dict[str, object] = field(default_factory=dict)


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


def test_a_list_of_numbers_follows_its_flag():
    assert read_config(Config, ["--speeds", "0.9", "1", "--part.size", "1"]).speeds == (0.9, 1.0)
    assert read_config(Config, ["--speeds=1.1"]).speeds == (1.1,)
    assert read_config(Config, ["--speeds", "[0.9, 1]"]).speeds == (0.9, 1.0)
    with pytest.raises(UsageError, match=r"^--speeds fast: expected a list of numbers$"):
        read_config(Config, ["--speeds", "fast"])


def test_the_first_bare_word_is_the_run_and_dashes_are_underscores():
    config = read_config(Config, ["runs/x", "--init-from=y-z"], positional="run")
    assert (config.run, config.init_from) == (Path("runs/x"), "y-z")


def test_the_config_name_is_the_recipe_unless_one_is_given(tmp_path: Path):
    yaml = tmp_path / "big.yaml"
    yaml.write_text("part: {size: 5}\n")
    words = ["--config", str(yaml)]
    assert read_config(Config, words).recipe == "big"
    assert read_config(Config, [*words, "--recipe", "mine"]).recipe == "mine"
    yaml.write_text("recipe: demo\n")
    assert read_config(Config, words).recipe == "demo"


def test_flags_without_a_value_are_booleans():
    assert read_config(Config, ["--no-with_prompt"]).with_prompt is False
    assert read_config(Config, ["--no-with-prompt"]).with_prompt is False
    config = read_config(Config, ["--with-prompt", "runs/x", "--top-p", "0.5"], positional="run")
    assert (config.with_prompt, config.run, config.top_p) == (True, Path("runs/x"), 0.5)
    assert read_config(Config, ["--with-prompt", "false"]).with_prompt is False


def test_positional_arguments_may_stand_anywhere():
    config = read_config(Config, ["--part.size", "5", "runs/x", "--top-p", "0.5"], positional="run")
    assert (config.run, config.part.size) == (Path("runs/x"), 5)
    assert read_config(Config, ["a", "--top-p", "1", "b"], positional="sources").sources == (Path("a"), Path("b"))
    with pytest.raises(UsageError, match="unexpected argument 'b'"):
        read_config(Config, ["a", "b"], positional="run")


def test_commas_separate_paths_that_exist(tmp_path: Path):
    first, second, odd = tmp_path / "a.ogg", tmp_path / "b.ogg", tmp_path / "c,d.ogg"
    for path in (first, second, odd):
        path.touch()
    assert read_config(Config, ["--sources", f"{first},{second}"]).sources == (first, second)
    assert read_config(Config, ["--sources", str(odd), f"{first},gone"]).sources == (odd, Path(f"{first},gone"))


def test_choices_are_accepted_in_any_case(tmp_path: Path):
    yaml = tmp_path / "big.yaml"
    yaml.write_text("part: {cell: GRU}\n")
    assert read_config(Config, ["--part.cell", "GRU"]).part.cell == "gru"
    assert read_config(Config, ["--config", str(yaml)]).part.cell == "gru"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part.sise", "3"], "unknown flag --part.sise; did you mean --part.size?"),
        (["--size", "3"], "unknown flag --size; did you mean --part.size?"),
        (["--init_form", "3"], "unknown flag --init_form; did you mean --init-from?"),
        (["--zzz"], "unknown flag --zzz; --help lists all settings"),
        (["--part.size", "three"], "--part.size three: expected a whole number"),
        (["--top-p", "most"], "--top-p most: expected a number or null"),
        (["--part.cell", "lstn"], "--part.cell lstn: expected one of lstm, gru; did you mean lstm?"),
        (["--part.size"], "--part.size needs a value"),
        (["--part.size", "--top-p", "1"], "--part.size needs a value"),
        (["word"], "unexpected argument 'word'; --help shows what this command takes"),
        (["--run", ""], "--run got an empty path: give a path, or omit the flag"),
        (["--run="], "--run got an empty path: give a path, or omit the flag"),
        (["--sources", "a", ""], "--sources got an empty path: give a path, or omit the flag"),
    ],
)
def test_a_wrong_command_line_gets_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["thing", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(Config, lambda config: None, "thing")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"thing: error: {message}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: [1\nb: 2\n", r"line 2: not valid YAML"),
        ("part: {sise: 1}\n", r"unknown setting part.sise; did you mean part.size\?"),
        ("part: {size: many}\n", r"part.size many: expected a whole number"),
        ("- 1\n", r"holds list, but settings are a mapping"),
        ("a: \x00\n", r"is not valid YAML"),
    ],
)
def test_a_wrong_yaml_file_is_named(text: str, message: str, tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"wrong.yaml.*{message}"):
        read_config(Config, ["--config", str(path)])
    with pytest.raises(UsageError, match="no such file"):
        read_config(Config, ["--config", str(tmp_path / "missing.yaml")])


def test_numbers_in_yaml_are_numbers(tmp_path: Path):
    path = tmp_path / "space.yaml"
    path.write_text("space: {optim.lr: {loguniform: [1e-4, 1e-2]}}\n")
    assert read_config(Config, ["--config", str(path)]).space == {"optim.lr": {"loguniform": [1e-4, 1e-2]}}


def test_help_comes_from_the_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        read_config(Config, ["--help"], prog="python -m babble.thing")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Do a thing." in shown
    assert "length in frames." in shown
    assert "{lstm,gru}" in shown
    assert "--init-from" in shown
    assert "--sources ITEM ..." in shown
    assert "_" not in "".join(word for word in shown.split() if word.startswith("--"))


def test_a_config_becomes_plain_values_by_the_keys_that_one_types():
    config = Config(run=Path("r"), sources=(Path("a"),), part=Part(9))
    flat = flatten(config_to_dict(config))
    assert (flat["run"], flat["sources"], flat["part.size"], flat["init_from"]) == ("r", ["a"], 9, None)


def test_changes_name_the_key_and_both_values():
    before = {"model": {"units": 40, "cell": "lstm"}, "seed": 0}
    assert describe_changes(before, {"model": {"units": 160, "cell": "lstm"}}) == [
        "model.units: was 40, now 160",
        "seed: was 0, now None",
    ]


def test_plain_values_become_a_config_again():
    config = Config(run=Path("runs/x"), sources=(Path("a"),), part=Part(size=9))
    values = config_to_dict(config)
    assert build_config(Config, values) == config
    assert unflatten(flatten(values)) == values
    for wrong, message in (
        ({"part": {"size": "large"}}, "part.size"),
        ({"part": {"sizes": 1}}, "sizes"),
        ({"part": {"size": 0}}, r"part.size=0: must be at least 1"),
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
    with pytest.raises(ValueError, match=r"part.size=0: must be at least 1"):
        build_config(Both, {"part": {"size": 0}})
    with pytest.raises(SystemExit):
        read_config(Both, ["--help"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("Do both things.", "where to look.", "length in frames."))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such thing"), 1),
        (CommandError("two of five failed"), 1),
        (FileNotFoundError("gone"), 1),
        (Interrupted("stopped at step 3"), 130),
        (Interrupted("stopped at step 3", signal.SIGUSR1), 138),
        (KeyboardInterrupt(), 130),
        (UsageError("no flag"), 2),
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
    assert (str(error) or "interrupted by Ctrl-C.") in said
    # An exception without a text must not leave an empty message.
    assert said.strip() != "thing:"


@pytest.mark.parametrize("positional", ["run", "sources"])
def test_an_empty_word_is_no_path(positional: str):
    with pytest.raises(UsageError, match=f"--{positional} got an empty path"):
        read_config(Config, [""], positional=positional)
    assert read_config(Config, ["--init-from", ""]).init_from == ""


def test_a_value_that_the_config_rejects_gets_a_message_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["thing", "--part.size", "0"])
    with pytest.raises(SystemExit) as stop:
        run_command(Config, lambda config: None, "thing")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "thing: part.size=0: must be at least 1.\n"


def test_a_list_given_twice_is_one_list(tmp_path: Path):
    yaml = tmp_path / "big.yaml"
    yaml.write_text("sources: [z]\n")
    words = ["--config", str(yaml), "--sources", "a", "b", "--part.size", "1", "--sources=c"]
    assert read_config(Config, words).sources == (Path("a"), Path("b"), Path("c"))
    both = read_config(Config, ["--sources", "a", "--top-p", "1", "b"], positional="sources")
    assert both.sources == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--part.size", "1", "--part.size=2"], "--part.size"),
        (["--init-from", "a", "--init_from", "a"], "--init-from"),
        (["--with-prompt", "--no-with-prompt"], "--with-prompt"),
        (["runs/x", "--run", "runs/y"], "--run"),
    ],
)
def test_a_flag_given_twice_is_refused(words: list[str], flag: str):
    with pytest.raises(UsageError, match=f"^{flag} is given twice: give it once$"):
        read_config(Config, words, positional="run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {size: 1}\nsources: [a]\npart: {cell: gru}\n", "line 3: part is set in line 1 already"),
        ("part:\n  size: 1\n  cell: gru\n  size: 2\n", "line 4: part.size is set in line 2 already"),
        ("part: {size: 1}\npart.size: 2\n", "line 2: part.size is set in line 1 already"),
        ("space: {optim.lr: 1, optim.lr: 2}\n", "line 1: space.optim.lr is set in line 1 already"),
    ],
)
def test_a_key_set_twice_in_a_file_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"twice.yaml, {message}: set it once"):
        read_config(Config, ["--config", str(path)])


def test_names_that_are_not_utf_8_reach_the_config():
    name = os.fsdecode(b"caf\xe9 \xef\xbe\x80")
    config = read_config(Config, ["--sources", name, "b", "--init-from", name, "--part.size", "4", name], "", "run")
    assert (config.sources, config.init_from, config.run) == ((Path(name), Path("b")), name, Path(name))
    assert config.part.size == 4
    assert read_config(Config, ["--run", "\uef80"]).run == Path("\uef80")
    with pytest.raises(UsageError, match=f"--top-p {name}: expected a number or null"):
        read_config(Config, ["--top-p", name])


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_name_that_the_terminal_lacks_is_printed_escaped(environment: dict[str, str]):
    code = (
        "import os; from test_cli import *\n"
        "def work(config):\n"
        "    print(config.run, 'd\\u0159\\u00ed', os.fsdecode(b'\\xe9'))\n"
        "    raise CommandError(str(config.run))\n"
        "run_command(Config, work, 'thing', 'run')"
    )
    command = [sys.executable, "-c", code, b"caf\xe9"]
    folders = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    done = subprocess.run(command, env=os.environ | environment | {"PYTHONPATH": folders}, capture_output=True)
    assert done.returncode == 1
    assert done.stdout == b"caf\\udce9 d\\u0159\\xed \\udce9\n"
    assert done.stderr == b"thing: caf\\udce9\n"


def _run_code(work: str, shell: str = "exec", stdin: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command whose work is this code, through a line of the shell that starts it as "$@"."""
    code = f"from test_cli import *\ndef work(config):\n    {work}\nrun_command(Config, work, 'thing', 'run')"
    folders = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    return subprocess.Popen(
        ["bash", "-c", f'{shell} "$@"', "bash", sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": folders},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_command_whose_reader_has_ended_does_its_work(tmp_path: Path):
    done = tmp_path / "done"
    work = f"print(1, flush=True); sys.stdin.readline(); print(2, flush=True); Path({str(done)!r}).touch(); print(3)"
    with _run_code(work, stdin=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdin
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        process.stdin.write(b"go on\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert done.is_file()


def test_a_failure_is_a_failure_without_a_reader_too(tmp_path: Path):
    with _run_code("print(1); raise CommandError('no')", "2>&1 exec") as process:
        assert process.stdout
        process.stdout.close()
    assert process.returncode == 1


def test_a_command_without_standard_streams_does_its_work(tmp_path: Path):
    out = tmp_path / "out"
    work = f"print(sys.stdout.isatty(), file=sys.stderr); Path({str(out)!r}).write_text('whole')"
    with _run_code(work, "exec <&- >&- 2>&-; exec") as process:
        pass
    assert (process.returncode, out.read_text()) == (0, "whole")


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), BlockingIOError(11, "Resource temporarily unavailable")]
)
def test_a_limit_of_processes_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def work(config: Config) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["thing"])
    monkeypatch.setattr("resource.getrlimit", lambda _: (40, 40))
    with pytest.raises(SystemExit) as stop:
        run_command(Config, work, "thing")
    assert stop.value.code == 1
    expected = f"thing: {error}. The limit of processes and threads is 40 for this user, other programs included, and "
    assert capsys.readouterr().err == f"{expected}is reached: raise it (ulimit -u; in a container, pids.max).\n"


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
)


@pytest.mark.parametrize(
    ("command", "words", "advice"),
    [
        ("train", ["--stop.epochs=1"], "lower --data.batch-size or --data.window-frames under another --name"),
        ("generate", [], "lower --streams, or use --device cpu"),
        ("evaluate", [], "use --device cpu"),
        ("export", ["--run=a", "--out=b"], "use a GPU with more memory"),
    ],
)
def test_a_gpu_with_too_little_memory_is_told_in_one_line(
    command: str, words: list[str], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch = importlib.import_module("torch")
    config_class = getattr(importlib.import_module(f"babble.{command}"), f"{command.title()}Config")
    monkeypatch.setattr(sys, "argv", ["thing", *words])
    for error, found in (
        (torch.OutOfMemoryError(OUT_OF_MEMORY), ": tried to allocate 2.50 GiB, 79.11 GiB of which 1.20 GiB is free"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
    ):

        def work(config: object, error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as stop:
            run_command(config_class, work, "thing")
        assert stop.value.code == 1
        expected = f"thing: the GPU has too little memory{found}. Other programs may use it too; if not, {advice}.\n"
        assert capsys.readouterr().err == expected


def test_a_runtime_error_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def work(config: Config) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["thing"])
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(Config, work, "thing")


def test_a_config_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "unfreezing" in find_config(Path("babble-rnn-2017")).read_text()
    Path("demo").write_text("part: {size: 3}\n")
    assert find_config(Path("demo")) == Path("demo")
    assert read_config(Config, ["--config", "demo"]).part.size == 3
    with pytest.raises(UsageError, match="--config demi: no such file, and none of the bundled configs: babble, "):
        read_config(Config, ["--config", "demi"])
