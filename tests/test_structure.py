"""The structure that DESIGN and docs/design.md promise: who may import what, sizes, and docstrings.

So a preprocessing node needs no torch, a training node no Ray, and evaluation no Lightning.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from paths import ROOT

from babble.commands import COMMANDS

# A module may import its own layer and the layers before it, without cycles. A package stands for all its modules.
LAYERS = (
    (
        *("babble.codec", "babble.command_line", "babble.cli", "babble.commands", "babble.files", "babble.processes"),
        "babble.ray_cluster",
    ),
    ("preprocessing",),
    ("babble.data", "babble.model", "babble.run_folder", "babble.tokenizer"),
    ("babble.evaluation",),
    ("babble.generation", "babble.sweeps"),
    ("babble.player",),
    ("babble.reporting",),
    ("babble.training",),
    ("babble.api",),
    *((f"babble.{word}",) for word in COMMANDS if word not in ("preprocess", "inspect", "voice")),
    ("jobs.preprocess",),
    ("babble.voice",),
    ("jobs",),
    ("babble.__main__", "babble.completion"),
)
# The only modules that may import a library.
LIBRARIES = {
    "ray": ("babble.ray_cluster", "babble.tune", "babble.sweeps.trial", "babble.sweeps.tuner", "jobs"),
    "wandb": ("babble.training.wandb_run", "babble.reporting.workspace"),
    "wandb_workspaces": ("babble.reporting.workspace",),
    "pytorch_lightning": ("babble.training", "babble.data.datamodule", "babble.train"),
    # Where both are installed, Ray picks the callback classes of this one.
    "lightning": (),
    "starlette": ("babble.player.server",),
    "uvicorn": ("babble.player.server",),
    "sounddevice": ("babble.play",),
    "jsonargparse": ("babble.cli", "babble.command_line"),
}
# These, and what they import of the project, do without torch.
WITHOUT_TORCH = (
    *("babble.codec", "babble.cli", "babble.files", "babble.processes", "babble.ray_cluster", "babble.run_folder"),
    *("babble.data.shards", "babble.reporting", "babble.report", "babble.dashboard", "babble.training.wandb_run"),
    *("babble.sweeps.space", "babble.sweeps.folder", "babble.sweeps.ranking", "preprocessing", "jobs.preprocess"),
)
WITHOUT_LIGHTNING = (
    "babble.evaluation",
    "babble.evaluate",
    "babble.generation",
    "babble.generate",
    "babble.player",
    "babble.live",
    "babble.play",
    "babble.api",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

Imports = dict[str, list[tuple[str, int]]]


def read_sources() -> dict[str, str]:
    """Return the code of every module of the project by its name."""
    paths = [path for folder in ("babble", "preprocessing", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in paths
    }


def read_imports(sources: dict[str, str]) -> Imports:
    """Return what each module imports, anywhere in it, with the line; `from a import b` is a.b if that is a module."""
    found: Imports = {}
    for name, source in sources.items():
        found[name] = []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found[name] += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                assert not node.level, f"{name}:{node.lineno}: imports are absolute"
                for alias in node.names:
                    target = f"{origin}.{alias.name}"
                    found[name].append((target if target in sources else origin, node.lineno))
    return found


def is_within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def layer_of(name: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if is_within(name, layer)), None)


def find_violations(sources: dict[str, str]) -> Iterator[str]:
    """Yield each import that breaks the structure, as `module:line: what`."""
    imports = read_imports(sources)
    for name, imported in imports.items():
        for target, line in imported:
            library = target.partition(".")[0]
            if library in LIBRARIES and not is_within(name, LIBRARIES[library]):
                yield f"{name}:{line}: imports {library}, allowed in {', '.join(LIBRARIES[library]) or 'no module'}"
            mine, theirs = layer_of(name), layer_of(target)
            if mine is not None and theirs is not None and theirs > mine and name != "babble":
                yield f"{name}:{line}: imports {target}, which is above it"
        for places, library in ((WITHOUT_TORCH, "torch"), (WITHOUT_LIGHTNING, "pytorch_lightning")):
            if is_within(name, places):
                yield from (f"{name}: imports {library} by {way}" for way in find_ways(name, library, imports))


def find_ways(name: str, library: str, imports: Imports) -> Iterator[str]:
    """Yield each chain of imports that leads from a module to a library."""
    todo, seen = [(name, name)], set()
    while todo:
        here, way = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for target, line in imports[here]:
            if is_within(target, (library,)):
                yield f"{way}:{line}"
            elif target in imports:
                todo.append((target, f"{way} -> {target}"))


def find_cycle(imports: Imports) -> list[str]:
    """Return modules that import each other in a circle; empty without one."""
    state: dict[str, bool] = {}

    def visit(name: str, way: list[str]) -> list[str]:
        if state.get(name) is not None:
            return [*way[way.index(name) :], name] if state[name] else []
        state[name] = True
        for target, _ in imports[name]:
            if target in imports and target != name and (cycle := visit(target, [*way, name])):
                return cycle
        state[name] = False
        return []

    return next((cycle for name in imports if (cycle := visit(name, []))), [])


def test_imports_go_one_way() -> None:
    sources = read_sources()
    assert list(find_violations(sources)) == []
    assert find_cycle(read_imports(sources)) == []


def test_every_module_has_a_layer() -> None:
    assert [name for name in read_sources() if layer_of(name) is None] == ["babble"]


@pytest.mark.parametrize(
    ("name", "source", "what"),
    [
        ("babble.codec.codec2", "import babble.model.babbler", "is above it"),
        ("babble.model.cells", "from babble import train", "is above it"),
        ("babble.model.babbler", "def f():\n    import wandb.plot", "imports wandb"),
        ("babble.train", "import wandb_workspaces.workspaces", "imports wandb_workspaces"),
        ("babble.train", "from ray.tune import Tuner", "imports ray"),
        ("babble.model.babbler", "import pytorch_lightning as pl", "imports pytorch_lightning"),
        ("babble.evaluation.baselines", "from babble.training.module import x", "is above it"),
        (
            "babble.evaluate",
            "from babble.train import x",
            "imports pytorch_lightning by babble.evaluate -> babble.train:1",
        ),
        ("babble.train", "from lightning.pytorch import Trainer", "imports lightning"),
        ("babble.train", "import jobs.preprocess", "is above it"),
        ("preprocessing.audio", "from babble.data.shards import write_shards", "is above it"),
        ("babble.codec.frames", "import torch", "imports torch by babble.codec.frames:1"),
        ("jobs.preprocess", "import babble.model.babbler", "jobs.preprocess -> babble.model.babbler:1"),
    ],
)
def test_a_planted_violation_is_found(name: str, source: str, what: str) -> None:
    planted = {
        **dict.fromkeys(
            ("babble", "babble.data.shards", "preprocessing.audio", "jobs.preprocess", "babble.training.module"), ""
        ),
        "babble.train": "import pytorch_lightning",
        "babble.model.babbler": "import torch",
        name: source,
    }
    assert [found for found in find_violations(planted) if what in found]


def test_a_planted_cycle_is_found() -> None:
    assert find_cycle(read_imports({"a": "import b", "b": "import c", "c": "def f():\n    import a"})) == [
        "a",
        "b",
        "c",
        "a",
    ]


HEAVY = ("torch", "pytorch_lightning", "matplotlib", "ray", "wandb", "wandb_workspaces", "webdataset", "starlette")


def test_a_command_imports_nothing_heavy_before_its_work() -> None:
    modules = {name for command in COMMANDS.values() for name in (command.module, command.config.rpartition(".")[0])}
    # That of jobs.preprocess is a package, whose __main__ `python -m` runs.
    modules = {f"{name}.__main__" if name == "jobs.preprocess" else name for name in modules}
    code = f"import {', '.join(sorted(modules))}, sys; print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# The source does not show everything: webdataset, for one, imports torch where it is installed.
@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("jobs.preprocess.job, babble.reporting.render", "torch webdataset ray wandb"),
        ("babble.training.trainer", "ray wandb"),
        ("babble.api, babble.generation.free_run, babble.evaluation.comparison", "pytorch_lightning ray wandb"),
    ],
)
def test_importing_it_does_not_import(module: str, libraries: str) -> None:
    code = f"import {module}, sys; print(*(set({libraries.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def iterate_definitions(source: str, name: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield the module, its functions and classes, and the methods of these, by name."""
    module = ast.parse(source)
    yield name, module
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{name}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{name}.{node.name}.{n.name}", n) for n in node.body if isinstance(n, ast.FunctionDef))


def find_undocumented(source: str, name: str) -> Iterator[str]:
    """Yield what is public and has no docstring: the module, its functions and its classes; ruff looks at methods."""
    for what, node in iterate_definitions(source, name):
        is_public = not any(part.startswith("_") for part in what.removeprefix(name).split("."))
        if is_public and what.removeprefix(name).count(".") < 2 and not ast.get_docstring(node):  # type: ignore[arg-type]
            yield what


def find_long(source: str, name: str) -> Iterator[str]:
    """Yield files and functions over the limits whose docstring gives no reason, a sentence with "Long because"."""
    for what, node in iterate_definitions(source, name):
        is_module = isinstance(node, ast.Module)
        length = source.count("\n") if is_module else node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]
        limit = MAX_FILE_LINES if is_module else MAX_FUNCTION_LINES
        is_measured = is_module or isinstance(node, ast.FunctionDef)
        if is_measured and length > limit and "Long because" not in (ast.get_docstring(node) or ""):  # type: ignore[arg-type]
            yield f"{what}: {length} lines"


def test_everything_public_has_a_docstring() -> None:
    assert [what for name, source in read_sources().items() for what in find_undocumented(source, name)] == []


def test_files_and_functions_fit_on_screens() -> None:
    assert [what for name, source in read_sources().items() for what in find_long(source, name)] == []


def test_missing_docstrings_and_long_functions_are_found() -> None:
    source = "def _own(): pass\ndef shown(): pass\nclass Shown: pass\nclass Documented:\n    '''Yes.'''\n"
    assert list(find_undocumented(source, "m")) == ["m", "m.shown", "m.Shown"]
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(find_long(f"def f():\n{body}class C:\n  def g(self):\n{body}", "m")) == [
        "m.f: 61 lines",
        "m.C.g: 61 lines",
    ]
    assert list(find_long(f"def f():\n    '''Do. Long because it is a table.'''\n{body}", "m")) == []
    assert list(find_long("x = 1\n" * (MAX_FILE_LINES + 1), "m")) == ["m: 401 lines"]


def test_tests_mirror_the_packages() -> None:
    names = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest needs unique names"
    for folder in ("codec", "data", "model", "training", "evaluation", "generation", "sweeps", "reporting"):
        assert (ROOT / "babble" / folder / "__init__.py").is_file()
        assert list((ROOT / "tests" / folder).glob("test_*.py")), folder
