"""A sweep's trials in one figure: held-out metric against model size and against training time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from babble.reporting.plots.figures import DPI, GREY, WIDTH_INCHES
from babble.sweeps.space import Axis, format_value

# The last colours of viridis are too light for a white background.
COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.85, 256)))
MARKERS = {"finished": "o", "not finished": "x"}
# A choice can be a list of unfreezing stages, and a long label would leave no room for the panels.
MAX_LABEL = 60


def plot_sweep(trials: Sequence[Mapping[str, Any]], metric: str, axis: Axis) -> Figure:
    """Return a scatter plot of each trial's best held-out metric against its weights and its minutes of training.

    Args:
        trials: rows of trials.csv that have a "best"; also "weights", "seconds" and "state".
        metric: name of the held-out metric, as "bits_per_frame".
        axis: what the colours show: choices in a legend, the values of a range in a colour bar.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 6.0), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    texts = [str(trial[axis.key]) for trial in trials]
    if axis.kind == "choice":
        choices = [str(value) for value in axis.values]
        places = np.array([choices.index(text) for text in texts], float)
        norm = Normalize(0, max(1, len(choices) - 1))
        labels = [f"{axis.key} {format_value(value)}"[:MAX_LABEL] for value in axis.values]
        handles = [_make_handle(COLOURS(norm(n)), "o", labels[n]) for n in sorted(set(places.astype(int)))]
    else:
        places = np.array(texts, float)
        norm = (LogNorm if axis.kind.startswith("log") else Normalize)(*axis.values)
        figure.colorbar(ScalarMappable(norm, COLOURS), ax=panels, label=axis.key)
        handles = []
    is_finished = np.array([trial["state"] == "finished" for trial in trials])
    best = np.array([float(trial["best"]) for trial in trials])
    for panel, column, unit, label in (
        (panels[0], "weights", 1.0, "weights"),
        (panels[1], "seconds", 60.0, "minutes of training"),
    ):
        x = np.array([float(trial[column]) for trial in trials]) / unit
        for marker, chosen in zip(MARKERS.values(), (is_finished, ~is_finished), strict=True):
            panel.scatter(x[chosen], best[chosen], c=places[chosen], cmap=COLOURS, norm=norm, marker=marker)
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{metric}, held out, best of each trial")
    if not is_finished.all():
        handles += [_make_handle(GREY, marker, state) for state, marker in MARKERS.items()]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    return figure


def _make_handle(colour: Any, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
