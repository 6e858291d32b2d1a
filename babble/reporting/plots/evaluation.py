"""An evaluation in one figure: held-out metric by field with its baselines, and babble compared with real speech."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from babble.codec.frames import get_mode
from babble.codec.token_sequences import name_frame
from babble.reporting.plots.figures import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    SHADE,
    VERMILLION,
    make_grid,
    open_figure,
    write_note,
)

# Kinds of speech in an evaluation: colour and marker.
KIND_STYLES = {
    "babble": (BLUE, "o"),
    "other real speech": (GREEN, "s"),
    "shuffled frames": (VERMILLION, "v"),
    "Markov chain": (PURPLE, "^"),
}
FIELDS_INCHES, STATISTICS_INCHES = 5.0, 6.5
# Limit of the axis of speech statistics, in spreads of real clips; what lies further out is plotted at the edge.
MAX_SPREADS = 4.0


def plot_evaluation(evaluation: dict[str, Any]) -> Figure:
    """Return a figure of what `evaluate` returned.

    Top: the network's metric by field (bars) with the baselines (lines) and, for bits, the width of the field (shade),
    which is the cost of a uniform distribution. With babble also, bottom left: how far each speech statistic lies from
    real speech, in spreads of real clips; bottom right: a classifier's accuracy by clip length.
    """
    has_speech = "speech" in evaluation
    height = FIELDS_INCHES + (STATISTICS_INCHES if has_speech else 0)
    title = f"{evaluation['checkpoint']} on the {evaluation['split']} split of {evaluation['shards']}"
    figure = open_figure(height, title)
    heights = [1, 1.25] if has_speech else [1]
    grid = make_grid(figure, len(heights), 2, height_ratios=heights, hspace=0.34, wspace=0.36)
    _plot_fields(figure.add_subplot(grid[0, :]), evaluation)
    if has_speech:
        # The left part is for the names of the statistics, which are long.
        statistics = grid[1, 0].subgridspec(1, 2, width_ratios=[1, 7], wspace=0)[1]
        _plot_statistics(figure.add_subplot(statistics), evaluation["speech"]["statistics"])
        _plot_accuracies(figure.add_subplot(grid[1, 1]), evaluation["speech"]["classifier"])
    write_note(figure, f"Mode {evaluation['mode']}, {evaluation['hours']:.2f} hours of held-out speech.")
    return figure


def _plot_fields(panel: Axes, evaluation: dict[str, Any]) -> None:
    network, mode = evaluation["held_out"], get_mode(evaluation["mode"])
    has_bits = "bits_per_frame" in network
    key, total = ("bits_by_field", "bits_per_frame") if has_bits else ("error_by_field", "error_levels")
    unit = f"bits per {name_frame(mode.name)}" if has_bits else "mean absolute error, levels"
    x_F = np.arange(mode.num_fields)
    if has_bits:
        widths = [field.bits for field in mode.fields]
        panel.bar(x_F, widths, 0.8, color=SHADE, label=f"{sum(widths)} uniform distribution")
    baselines = {name: values for name, values in evaluation["baselines"].items() if key in values}
    for (name, values), color in zip(baselines.items(), (VERMILLION, GREEN), strict=False):
        label = f"{values[total]:.2f} {name}"
        panel.hlines(list(values[key].values()), x_F - 0.4, x_F + 0.4, color=color, linewidth=2, label=label)
    panel.bar(x_F, list(network[key].values()), 0.5, color=BLUE, label=f"{network[total]:.2f} network")
    panel.set_xticks(x_F, labels=[f"{name}\n{value:.2f}" for name, value in network[key].items()])
    panel.set_xlim(-0.6, mode.num_fields - 0.4)
    panel.set_ylabel("bits, by field" if has_bits else "mean absolute error in levels, by field")
    panel.legend(fontsize=9, frameon=False, title=unit)


def _plot_statistics(panel: Axes, statistics: dict[str, Any]) -> None:
    """Plot the mean of each speech statistic on an axis where -1 to 1 is the spread of real clips."""
    rows = {name: by_kind for name, by_kind in statistics["measures"].items() if by_kind["real speech"]}
    panel.axvspan(-1, 1, color=SHADE, zorder=0)
    panel.axvline(0, color=GREY, linewidth=0.8)
    for kind, (color, marker) in KIND_STYLES.items():
        points = [
            (_count_spreads(by_kind[kind]["mean"], by_kind["real speech"]), row)
            for row, by_kind in enumerate(rows.values())
            if by_kind.get(kind)
        ]
        order = 4 if kind == "babble" else 3
        x, y = [x for x, _ in points], [y for _, y in points]
        panel.plot(x, y, color=color, marker=marker, markersize=6, linewidth=0, label=kind, zorder=order)
    for row, by_kind in enumerate(rows.values()):
        means = [f"{by_kind[kind]['mean']:.3g}" if by_kind.get(kind) else "-" for kind in ("babble", "real speech")]
        panel.annotate(
            " | ".join(means),
            (MAX_SPREADS, row),
            (6, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
    panel.set_yticks(range(len(rows)), labels=[name.replace("_", " ") for name in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(-MAX_SPREADS, MAX_SPREADS)
    panel.set_xlabel("distance from real speech; shade: 8 of 10 real clips; right: babble | real")
    _add_legend_above(panel)


def _count_spreads(mean: float, real: dict[str, float]) -> float:
    """Return the distance from the real mean, in units of the real spread on that side, limited to the axis."""
    spread = real["high"] - real["mean"] if mean > real["mean"] else real["mean"] - real["low"]
    distance = (mean - real["mean"]) / max(abs(spread), 1e-9)
    return float(np.clip(distance, 0.1 - MAX_SPREADS, MAX_SPREADS - 0.1))


def _plot_accuracies(panel: Axes, accuracies: dict[str, dict[str, Any]]) -> None:
    for n, (kind, by_seconds) in enumerate(accuracies.items()):
        shown = [(column, values) for column, values in enumerate(by_seconds.values()) if values]
        # Kinds are shifted a little, so that their intervals do not overlap.
        x = [column + 0.08 * (n - 1) for column, _ in shown]
        accuracy = np.array([values["accuracy"] for _, values in shown])
        interval = [
            [values["accuracy"] - values["low"] for _, values in shown],
            [values["high"] - values["accuracy"] for _, values in shown],
        ]
        color, marker = KIND_STYLES.get(kind, (GREY, "x"))
        panel.errorbar(
            x, accuracy, interval, color=color, marker=marker, markersize=6, linewidth=1, capsize=3, label=kind
        )
    seconds = list(next(iter(accuracies.values())))
    panel.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    panel.set_xticks(range(len(seconds)), labels=[f"{text} s" for text in seconds])
    panel.set_xlim(-0.4, len(seconds) - 0.6)
    panel.set_ylim(0.3, 1.03)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("clip length")
    panel.set_ylabel("classifier accuracy against held-out speech")
    _add_legend_above(panel)


def _add_legend_above(panel: Axes) -> None:
    panel.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, handletextpad=0.2)
