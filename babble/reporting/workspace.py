"""What W&B shows about a project's runs: sections of panels, as a workspace and as a report.

    workspace = make_workspace("our-team", "babble")
    workspace.save()

1. `make_sections` returns headings and, for each, panels and a line on how to read them.
2. `make_workspace` and `make_report` turn them into objects of the library wandb-workspaces.
"""

from dataclasses import dataclass
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from babble.evaluation.baselines import LINES

NAME = "babble"
# Names under which a training logs its steps and its table of samples.
STEP, SAMPLES = "trainer/global_step", "samples/samples"
GROUPS = ("voicing", "pitch", "energy", "lsp")
# As many layers as most networks have; a line of a layer that a run lacks is empty.
LAYERS = ("layer_1", "layer_2", "layer_3")
# The settings that most sweeps vary.
SETTINGS = ("model.cell", "model.head", "model.num_layers", "model.units", "optim.lr", "seed")
SPEECH_METRICS = {
    "change_levels": "change, levels per frame",
    "lsp_disorder": "LSPs out of order",
    "pauses": "pauses",
    "voiced": "voiced",
    "pitch_hz": "pitch, Hz",
    "pitch_range_semitones": "pitch range, semitones",
}


@dataclass(frozen=True)
class Section:
    """A section of the workspace and of the report.

    Attributes:
        heading: what the panels show.
        note: how to read them.
        panels: W&B's panels.
    """

    heading: str
    note: str
    panels: list[Any]


def read_default_entity() -> str:
    """Return the W&B team or user that runs belong to if none is named: that of the key in use.

    Raises:
        ValueError: W&B does not name one.
    """
    entity: str | None = wandb.Api().default_entity
    if not entity:
        raise ValueError("W&B names no default entity for this key: name the team or user with --entity.")
    return entity


def _plot_lines(title: str, *names: str, **settings: Any) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=STEP, y=list(names), **settings)


def _compare(title: str, metric: str) -> reports.LinePlot:
    """Return a panel of a metric on validation speech, on training batches, and of its baselines."""
    baselines = ("unigram", "bigram") if metric.startswith("bits") else ("copy", "median")
    assert set(baselines) <= set(LINES.values())
    names = (f"val/{metric}", f"train/{metric}", *(f"baseline/{metric}/{name}" for name in baselines))
    return _plot_lines(title, *names)


def make_sections() -> list[Section]:
    """Return the sections in reading order."""
    return [
        Section(
            "Loss, with baselines",
            "Bits per frame on validation speech is the metric that counts. Training bits that fall while validation "
            "bits rise mean overfitting. Flat lines are baselines: unigram (field frequencies) and bigram (given the "
            "field's previous level); for the error, the last frame copied and the conditional median.",
            [
                _compare("bits per frame", "bits_per_frame"),
                _compare("mean absolute error, levels", "error_levels"),
                _plot_lines("training loss", "train/loss"),
                _plot_lines("learning rate", "train/lr"),
            ],
        ),
        Section(
            "By field group",
            "LSPs hold most of the bits, voicing the fewest. A group above its baselines has not been learned.",
            [
                *(_compare(f"bits per frame, {group}", f"bits/{group}") for group in GROUPS),
                *(_compare(f"mean absolute error, {group}", f"error/{group}") for group in GROUPS),
            ],
        ),
        Section(
            "Layers: frozen and unfrozen",
            "A frozen layer has no gradient and a constant weight norm. If a gradient norm jumps, set optim.clip_norm.",
            [
                _plot_lines("unfreezing stage", "train/stage"),
                _plot_lines("unfrozen layers", *(f"unfrozen/{layer}" for layer in LAYERS)),
                _plot_lines("gradient norm", *(f"gradient_norm/{part}" for part in (*LAYERS, "head")), log_y=True),
                _plot_lines("weight norm", *(f"weight_norm/{part}" for part in (*LAYERS, "head"))),
            ],
        ),
        Section(
            "Samples: babble and real speech",
            "Audio generated during training, with real speech at the same prompts. Too little change per frame sounds "
            "like a drone; LSPs out of order gurgle. Progression plots show each field's level in a frame against its "
            "level in the next, as in the text of 2017.",
            _make_sample_panels(),
        ),
        Section(
            "Speed",
            "Sums over all processes; GPU load is in W&B's own System section.",
            [
                _plot_lines("frames per second", "train/frames_per_second"),
                _plot_lines("times real time", "train/times_real_time"),
                _plot_lines("peak memory, GB", "train/peak_memory_gb"),
            ],
        ),
        Section(
            "Sweeps: the effect of settings",
            "Select the group of a sweep on the left. Where lines of good runs meet, their settings agree.",
            _make_sweep_panels(),
        ),
    ]


def _make_sample_panels() -> list[Any]:
    progressions = ["samples/progression", "samples/real/progression"]
    return [
        reports.WeavePanelSummaryTable(table_name=SAMPLES),
        reports.MediaBrowser(title="babble", media_keys=["samples/1", "samples/1_plot"]),
        reports.MediaBrowser(title="real speech", media_keys=["samples/real/1", "samples/real/1_plot"]),
        reports.MediaBrowser(title="progression plots: babble and real speech", media_keys=progressions),
        *(
            _plot_lines(title, f"samples/{metric}", f"samples/real/{metric}")
            for metric, title in SPEECH_METRICS.items()
        ),
    ]


def _make_sweep_panels() -> list[Any]:
    best = "best/bits_per_frame"
    settings = (reports.ParallelCoordinatesPlotColumn(reports.Config(key)) for key in SETTINGS)
    columns = [*settings, reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(best))]
    return [
        reports.ParallelCoordinatesPlot(title="settings and bits per frame", columns=columns),
        reports.ParameterImportancePlot(with_respect_to=best),
        reports.RunComparer(diff_only="split"),
    ]


def make_workspace(entity: str, project: str) -> workspaces.Workspace:
    """Return the workspace: every section with its panels, all open.

    Args:
        entity: the W&B team or user; "" if it is not known.
        project: the W&B project.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name=section.heading, panels=section.panels, is_open=True) for section in make_sections()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
    )


def make_report(entity: str, project: str) -> reports.Report:
    """Return the report: the same panels, with notes; arguments as for `make_workspace`."""
    blocks: list[Any] = [reports.TableOfContents()]
    for section in make_sections():
        blocks += [
            reports.H1(section.heading),
            reports.P(section.note),
            # A run set with a project's name would be looked up on the server; without, it is the report's project.
            reports.PanelGrid(runsets=[reports.Runset()], panels=section.panels),
        ]
    return reports.Report(
        entity=entity,
        project=project,
        title=f"{NAME}: {project}",
        description="Metrics and samples of this project's runs.",
        blocks=blocks,
        width="fluid",
    )


def save(entity: str, project: str) -> list[str]:
    """Send workspace and report to W&B and return their URLs."""
    made = (make_workspace(entity, project), make_report(entity, project))
    return [one.save().url for one in made]


def describe(entity: str, project: str) -> dict[str, Any]:
    """Return workspace and report as `save` would send them, ready for JSON."""
    made = {"workspace": make_workspace(entity, project), "report": make_report(entity, project)}
    # The library has no public method that returns what its own `save` sends.
    return {
        name: one._to_model().model_dump(mode="json", by_alias=True, exclude_none=True) for name, one in made.items()
    }
