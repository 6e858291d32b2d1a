"""Holds the source to the house of DESIGN.md: who may import what, and a docstring on everything public.

So a preprocessing node needs no torch, a training node needs no Ray, and whoever reads model.py needs to know nothing
else.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

FOLDERS = ("babble", "preprocessing", "jobs")

# Imports within babble/ go one way: a module may import those before it.
BABBLE_ORDER = (
    *("frames", "what_if", "commands", "cluster"),
    *("codec", "shards", "run", "tracking", "cells", "sampling", "heads", "plots"),
    *("detectors", "statistics"),
    *("model", "loaders", "streaming", "data"),
    *("unfreezing", "averaging", "module", "generate", "voice"),
    *("baselines", "discriminator", "evaluate", "samples", "checkpoints", "metrics"),
    *("space", "sweep", "report", "trial"),
    *("train", "tune", "dashboard"),
)

# Who of the house may import what of its other folders, or of jobs/: all that is not here is forbidden.
ACROSS_FOLDERS = (
    ("preprocessing", "babble.codec.frames"),
    ("preprocessing", "babble.codec.codec2"),
    # A seed can be the user's own audio.
    ("babble.generate", "preprocessing"),
    # A report can show the recordings themselves.
    ("babble.report", "preprocessing"),
    ("jobs", "preprocessing"),
    ("jobs", "babble"),
    # Parts of a job: the jobs themselves nobody imports.
    ("jobs", "jobs.progress"),
    ("jobs", "jobs.staging"),
    ("jobs", "jobs.measuring"),
    ("jobs", "jobs.scaling"),
)

# A library, and the only ones that may import it: a folder stands for all its modules.
ONLY_IN = {
    "ray": ("jobs", "babble.ray_cluster", "babble.sweeps.trial", "babble.sweeps.tuner"),
    "wandb": ("babble.training.wandb_run", "babble.dashboard"),
    "wandb_workspaces": ("babble.dashboard",),
    "pytorch_lightning": tuple(
        f"babble.{name}"
        for name in (
            *("data", "module", "unfreezing", "averaging"),
            *("samples", "checkpoints", "metrics", "train", "tune"),
        )
    ),
    # Beside pytorch_lightning, Ray picks the callback classes of this one.
    "lightning": (),
    "jsonargparse": ("babble.cli",),
}

# These, and whatever of the house they import, do without torch.
WITHOUT_TORCH = (
    *(
        "babble.codec.frames",
        "babble.cli",
        "babble.codec.codec2",
        "babble.data.shards",
        "babble.run_folder",
        "babble.reporting.plots",
    ),
    *("babble.training.wandb_run", "babble.dashboard", "babble.report"),
    *(
        "babble.codec.edits",
        "babble.codec.failures",
        "babble.evaluation.speech_statistics",
        "babble.sweeps.space",
        "babble.sweeps.ranking",
        "babble.sweeps.folder",
    ),
    *("preprocessing", "jobs.preprocess"),
)

Imports = list[tuple[str, int]]


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def read_imports(source: str, name: str) -> Imports:
    """Return each module that a source imports, anywhere in it, with the line; `from a import b` gives a and a.b."""
    found: Imports = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            found += [(origin, node.lineno), *((f"{origin}.{alias.name}", node.lineno) for alias in node.names)]
    return found


def is_within(name: str, places: tuple[str, ...] | str) -> bool:
    places = (places,) if isinstance(places, str) else places
    return any(name == place or name.startswith(f"{place}.") for place in places)


def place_in_order(name: str) -> int:
    """Return how many modules of babble/ one of them may import; babble itself may import none."""
    part = name.partition(".")[2]
    return BABBLE_ORDER.index(part) if part in BABBLE_ORDER else 0


def find_violations(sources: dict[str, str]) -> Iterator[str]:
    """Yield what the imports of the house break, as `module:line: what`; `sources` has the code by module name."""
    imports = {name: read_imports(source, name) for name, source in sources.items()}
    for name, imported in imports.items():
        for target, line in imported:
            folder, _, part = target.partition(".")
            if folder in ONLY_IN and not is_within(name, ONLY_IN[folder]):
                yield f"{name}:{line}: imports {folder}, which only {', '.join(ONLY_IN[folder]) or 'nobody'} may"
            if folder not in FOLDERS or target not in sources:
                continue
            if name.split(".")[0] != folder or folder == "jobs":
                if not any(is_within(name, who) and is_within(target, what) for who, what in ACROSS_FOLDERS):
                    yield f"{name}:{line}: imports {target}, which lies outside its reach"
            elif folder == "babble" and part and part not in BABBLE_ORDER[: place_in_order(name)]:
                yield f"{name}:{line}: imports {target}, which does not come before it"
        if is_within(name, WITHOUT_TORCH):
            yield from (f"{name}: reaches torch by {way}" for way in find_ways_to_torch(name, imports))


def find_ways_to_torch(name: str, imports: dict[str, Imports]) -> Iterator[str]:
    """Yield each chain of imports in the house that leads from a module to torch."""
    todo, seen = [(name, name)], set()
    while todo:
        here, way = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for target, line in imports[here]:
            if is_within(target, ("torch", "pytorch_lightning", "torchmetrics")):
                yield f"{way}:{line}"
            elif target in imports:
                todo.append((target, f"{way} -> {target}"))


def read_house() -> dict[str, str]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path, ROOT): path.read_text() for path in paths}


def test_imports_go_one_way() -> None:
    assert list(find_violations(read_house())) == []


def test_every_module_of_babble_has_its_place_in_the_order() -> None:
    modules = {name.partition(".")[2] for name in read_house() if name.startswith("babble.")}
    assert modules <= set(BABBLE_ORDER)


@pytest.mark.parametrize(
    ("name", "source", "what"),
    [
        ("babble.codec.codec2", "import babble.model.babbler", "does not come before it"),
        ("babble.model.cells", "from babble import model", "does not come before it"),
        ("babble.model.babbler", "from .train import train", "does not come before it"),
        ("babble.model.babbler", "def f():\n    import wandb.plot", "imports wandb"),
        ("babble.train", "import wandb", "imports wandb"),
        ("babble.train", "import wandb_workspaces.workspaces", "imports wandb_workspaces"),
        ("babble.train", "from ray.tune import Tuner", "imports ray"),
        ("babble.model.babbler", "import pytorch_lightning as pl", "imports pytorch_lightning"),
        ("babble.train", "from lightning.pytorch import Trainer", "imports lightning"),
        ("babble.train", "import jsonargparse", "imports jsonargparse"),
        ("babble.train", "import jobs.preprocess", "outside its reach"),
        ("babble.train", "from preprocessing import audio", "outside its reach"),
        ("jobs.benchmark", "from jobs.preprocess import run", "outside its reach"),
        ("preprocessing.audio", "from babble.data.shards import write_shards", "outside its reach"),
        ("babble.codec.frames", "import torch", "babble.codec.frames:1"),
        ("jobs.preprocess", "import torch.nn", "jobs.preprocess:1"),
        ("jobs.preprocess", "import babble.model.babbler", "jobs.preprocess -> babble.model.babbler:1"),
    ],
)
def test_a_planted_violation_is_found(name: str, source: str, what: str) -> None:
    others = ("babble.data.shards", "babble.train", "preprocessing.audio", "jobs.preprocess")
    sources = dict.fromkeys(others, "") | {"babble.model.babbler": "import torch", name: source}
    assert [found for found in find_violations(sources) if what in found]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("babble.train", "import pytorch_lightning\nfrom babble import model"),
        ("babble.training.wandb_run", "import wandb"),
        ("babble.generate", "import torch\nfrom preprocessing.audio import read_audio"),
        ("jobs.preprocess", "import ray\nfrom babble.data.shards import write_shards\nfrom preprocessing import audio"),
    ],
)
def test_what_the_design_allows_passes(name: str, source: str) -> None:
    others = ("babble", "babble.data.shards", "preprocessing.audio")
    sources = dict.fromkeys(others, "") | {"babble.model.babbler": "import torch", name: source}
    assert list(find_violations(sources)) == []


# What the source says is not enough: webdataset, for one, imports torch where it is installed.
@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("jobs.preprocess", "torch"),
        ("jobs.preprocess", "webdataset"),
        ("babble.reporting.plots.speech", "torch"),
        ("babble.train", "ray"),
        ("babble.training.wandb_run", "wandb"),
    ],
)
def test_importing_it_does_not_import(module: str, library: str) -> None:
    code = f"import {module}, sys; assert {library!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def find_undocumented(source: str, name: str) -> Iterator[str]:
    """Yield what is public in a source and has no docstring: the module, its functions and its classes."""
    module = ast.parse(source)
    if not ast.get_docstring(module):
        yield name
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{name}.{node.name}"


def test_everything_public_has_a_docstring() -> None:
    assert [what for name, source in read_house().items() for what in find_undocumented(source, name)] == []


def test_a_missing_docstring_is_found() -> None:
    source = "def _own(): pass\ndef shown(): pass\nclass Shown: pass\nclass Told:\n    '''Told.'''\n"
    assert list(find_undocumented(source, "m")) == ["m", "m.shown", "m.Shown"]
