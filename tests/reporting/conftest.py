"""Runs and a sweep for the report: one short training, and copies of it that differ in a setting."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
import yaml
from PIL import Image

RUNS = {"first": 8, "second": 12, "third": 16}
PROMPTS, PROMPT_FRAMES, FRAMES = 2, 100, 150


def _write_png(figure: object, path: Path) -> None:
    Image.new("L", (1400, 400), 255).save(path)


@pytest.fixture(scope="session")
def runs(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of two unfreezing stages; the first is evaluated."""
    # Imported here: the plots' tests, which share this file, need none of it.
    from babble.data.config import DataConfig
    from babble.evaluate import EvaluateConfig, evaluate
    from babble.model.config import ModelConfig
    from babble.train import train
    from babble.training.config import SamplesConfig, Stage, StopConfig, TrainConfig
    from babble.training.wandb_run import WandbConfig

    folder = tmp_path_factory.mktemp("runs")
    config = TrainConfig(
        name="first",
        runs=folder,
        data=DataConfig(shards=speech_shards, window_frames=40, batch_size=4, windows_per_epoch=16),
        model=ModelConfig(num_layers=2, units=RUNS["first"], head="categorical"),
        unfreezing=(Stage((1,), 1), Stage((1, 2))),
        stop=StopConfig(epochs=2),
        samples=SamplesConfig(every_epochs=0, prompts=PROMPTS, prompt_frames=PROMPT_FRAMES, frames=FRAMES),
        log_every_steps=2,
        wandb=WandbConfig(mode="off"),
    )
    # Plotting would take most of the time.
    with mock.patch.multiple(
        "babble.training.samples", plot_speech=mock.Mock(), plot_progression=mock.Mock(), save_figure=_write_png
    ):
        first = train(config).run
    evaluate(EvaluateConfig(run=first, split="test", babble_seconds=0, json=first / "evaluation.json"))
    paths = [first]
    for name, units in list(RUNS.items())[1:]:
        copy = shutil.copytree(first, folder / name, ignore=shutil.ignore_patterns("checkpoints", "evaluation.json"))
        settings = yaml.safe_load((copy / "config.yaml").read_text())
        settings["model"]["units"] = units
        (copy / "config.yaml").write_text(yaml.safe_dump(settings))
        paths.append(Path(copy))
    return paths


@pytest.fixture
def run(runs: list[Path], tmp_path: Path) -> Path:
    """A copy of the first run that a test may change."""
    return Path(shutil.copytree(runs[0], tmp_path / "first", ignore=shutil.ignore_patterns("checkpoints")))


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two trials with its answer."""
    from babble.sweeps.folder import SweepFolder
    from babble.sweeps.ranking import TrialRow
    from babble.tune import report

    folder = SweepFolder(tmp_path_factory.mktemp("sweeps") / "sweep")
    space = {"model.units": {"choice": [8, 16]}}
    folder.claim({"space": space, "monitor": "val/bits_per_frame"}, {"model": {"units": 8}})
    folder.write_rows(
        [
            TrialRow(f"units-{n}", "finished", {"model.units": n}, 0, 40.0 - n, frames=1000, weights=500, seconds=60)
            for n in (8, 16)
        ]
    )
    folder.write_config("units-16", {"model.units": 16}, 0)
    report(folder)
    return folder.path
