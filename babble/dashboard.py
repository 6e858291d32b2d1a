"""Dashboards as code: what W&B shows of a project's runs, in the order in which one asks.

    python -m babble.dashboard --entity E --project P [--out dashboard.json]

1. `make_sections`: questions and, for each, the panels that answer it.
2. `make_workspace` and `make_report` turn them into a workspace (every chart of every run) and a report (the same with
   words between), as the library wandb-workspaces knows them.
3. Both are sent to W&B; where there is no key, or no answer, what would be sent is written to a file instead.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from babble.cli import CommandError, run_command
from babble.evaluation.baselines import LINES
from babble.training.wandb_run import SAMPLES, STEP, has_wandb_key

COMMAND = "python -m babble.dashboard"
NAME = "babble"
GROUPS = ("voicing", "pitch", "energy", "lsp")
# As many as most networks have; a panel of a layer that a run lacks is empty.
LAYERS = ("layer_1", "layer_2", "layer_3")
# Source: what most sweeps vary, by the words of babble.train.
SETTINGS = ("model.cell", "model.head", "model.num_layers", "model.units", "optim.lr", "seed")


@dataclass(frozen=True)
class DashboardConfig:
    """Build the W&B workspace and report of a project.

    Attributes:
        entity: The W&B team or user.
        project: The W&B project; runs are in `babble` if --wandb.project says nothing else.
        out: The file for what would be sent, where it can't be.
    """

    entity: str | None = None
    project: str = "babble"
    out: Path = Path("dashboard.json")

    def __post_init__(self) -> None:
        """Refuse a dashboard that is nobody's."""
        if not self.entity:
            raise ValueError("--entity is missing: name the W&B team or user whose project it is.")


@dataclass(frozen=True)
class Section:
    """A question, and the panels that answer it.

    Attributes:
        question: as one asks it.
        answer: how to read the panels.
        panels: W&B's own.
    """

    question: str
    answer: str
    panels: list[Any]


def _lines(title: str, *names: str, **settings: Any) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=STEP, y=list(names), **settings)


def _beside(title: str, figure: str) -> reports.LinePlot:
    """Return a panel of a held-out figure, the same of the training batches, and the baselines."""
    kinds = ("unigram", "bigram") if figure.startswith("bits") else ("copy", "median")
    assert set(kinds) <= set(LINES.values())
    return _lines(title, f"val/{figure}", f"train/{figure}", *(f"baseline/{figure}/{kind}" for kind in kinds))


def make_sections() -> list[Section]:
    """Return the questions in the order in which one asks them."""
    bits, error = "bits_per_frame", "error_levels"
    return [
        Section(
            "Does it learn?",
            "Bits per frame on speech it never heard are what counts. Training bits that fall while these rise: it "
            "learns by heart.",
            [
                _lines("bits per frame, held out", f"val/{bits}"),
                _lines("error in levels, held out", f"val/{error}"),
                _lines("loss of the batches", "train/loss"),
            ],
        ),
        Section(
            "Is it better than no network?",
            "Flat lines: each field's own frequencies, and those given its last level; for the error, the last frame "
            "copied, and median baseline.",
            [_beside("bits per frame", bits), _beside("error in levels", error)],
        ),
        Section(
            "Which field?",
            "Bits are shared out: LSPs hold most, voicing least. A field above its baseline is not learned at all.",
            [
                *(_beside(f"bits of {group}", f"bits/{group}") for group in GROUPS),
                *(_beside(f"error of {group}, levels", f"error/{group}") for group in GROUPS),
            ],
        ),
        Section(
            "Do the layers wake?",
            "A layer that waits has no gradient, and its weights stand still. A norm that leaps is a reason for "
            "optim.clip_norm.",
            [
                _lines("unfreezing stage", "train/stage"),
                _lines("layers that learn", *(f"unfrozen/{layer}" for layer in LAYERS)),
                _lines("gradient norm", *(f"gradient_norm/{part}" for part in (*LAYERS, "head")), log_y=True),
                _lines("weight norm", *(f"weight_norm/{part}" for part in (*LAYERS, "head"))),
            ],
        ),
        Section(
            "How does it sound?",
            "Listen, then look: what moves too little drones, what has its LSPs out of order gurgles. Progression "
            "plots show each field's value now against its value next, as in 2017.",
            [
                reports.WeavePanelSummaryTable(table_name=SAMPLES),
                reports.MediaBrowser(title="babble", media_keys=["samples/1", "samples/1_plot"]),
                reports.MediaBrowser(title="the real voice", media_keys=["samples/real/1", "samples/real/1_plot"]),
                reports.MediaBrowser(
                    title="progression: babble and corpus",
                    media_keys=["samples/progression", "samples/real/progression"],
                ),
                *(
                    _lines(title, f"samples/{measure}", f"samples/real/{measure}")
                    for title, measure in (
                        ("change, levels a frame", "change_levels"),
                        ("LSPs out of order", "lsp_disorder"),
                        ("pauses", "pauses"),
                        ("voiced", "voiced"),
                        ("pitch, Hz", "pitch_hz"),
                        ("pitch range, semitones", "pitch_range_semitones"),
                    )
                ),
            ],
        ),
        Section(
            "Is it fast?",
            "Of all processes together; what the GPU does stands in W&B's own System section.",
            [
                _lines("frames a second", "train/frames_per_second"),
                _lines("times real time", "train/times_real_time"),
                _lines("peak memory, GB", "train/peak_memory_gb"),
            ],
        ),
        Section(
            "Which setting mattered?",
            "Choose a sweep's group on the left. Lines that run together at the low end share what is good.",
            [
                reports.ParallelCoordinatesPlot(
                    title="settings and bits per frame",
                    columns=[
                        *(reports.ParallelCoordinatesPlotColumn(reports.Config(key)) for key in SETTINGS),
                        reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(f"best/{bits}")),
                    ],
                ),
                reports.ParameterImportancePlot(with_respect_to=f"best/{bits}"),
                reports.RunComparer(diff_only="split"),
            ],
        ),
    ]


def make_workspace(config: DashboardConfig) -> workspaces.Workspace:
    """Return the workspace: a section for each question, the first ones open."""
    return workspaces.Workspace(
        entity=config.entity or "",
        project=config.project,
        name=NAME,
        sections=[
            workspaces.Section(name=section.question, panels=section.panels, is_open=True)
            for section in make_sections()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
    )


def make_report(config: DashboardConfig) -> reports.Report:
    """Return the report: the same panels, with how to read them."""
    blocks: list[Any] = [reports.TableOfContents()]
    for section in make_sections():
        blocks += [
            reports.H1(section.question),
            reports.P(section.answer),
            # Named, a project would be looked up at the server; without, it is the report's own.
            reports.PanelGrid(runsets=[reports.Runset()], panels=section.panels),
        ]
    return reports.Report(
        entity=config.entity or "",
        project=config.project,
        title=f"{NAME}: {config.project}",
        description="What the runs of this project have learned, and how it sounds.",
        blocks=blocks,
        width="fluid",
    )


def describe(config: DashboardConfig) -> dict[str, Any]:
    """Return workspace and report as they would be sent, ready for JSON."""
    made = {"workspace": make_workspace(config), "report": make_report(config)}
    # What their own `save` sends; the library shows it in no other way.
    return {
        name: one._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for name, one in made.items()
    }


def build(config: DashboardConfig) -> None:
    """Send workspace and report to W&B, or write what would be sent.

    Raises:
        CommandError: there is a key, but W&B did not take them.
    """
    if has_wandb_key() and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            for made in (make_workspace(config), make_report(config)):
                print(made.save().url)
            return
        except Exception as error:  # W&B has no family of its own for what goes wrong here.
            _write(config)
            raise CommandError(f"W&B did not take them ({error}); what would be sent is in {config.out}.") from None
    _write(config)
    print(
        f"No key for W&B, so nothing was sent: {config.out} holds the workspace and the report. To send them: "
        f"wandb login, then {COMMAND} --entity {config.entity} --project {config.project}"
    )


def _write(config: DashboardConfig) -> None:
    config.out.write_text(json.dumps(describe(config), indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Run `python -m babble.dashboard`."""
    wandb.setup(wandb.Settings(silent=True))
    run_command(DashboardConfig, build, COMMAND)


if __name__ == "__main__":
    main()
