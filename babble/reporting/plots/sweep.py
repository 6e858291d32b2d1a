"""A sweep's trials in one figure: held-out metric against model size and against training time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from babble.reporting.plots.figures import DPI, WIDTH_INCHES


def plot_sweep(trials: Sequence[Mapping[str, Any]], metric: str, colour_by: str) -> Figure:
    """Return a scatter plot of each trial's best held-out metric against its weights and its minutes of training.

    Args:
        trials: rows of trials.csv that have a "best"; also "weights", "seconds" and "state".
        metric: name of the held-out metric, as "bits_per_frame".
        colour_by: the column whose values get colours.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 6.0), dpi=DPI)
    panels = figure.subplots(1, 2, sharey=True)
    values = list(dict.fromkeys(str(trial[colour_by]) for trial in trials))
    colours = dict(zip(values, colormaps["viridis"](np.linspace(0.0, 0.85, len(values))), strict=True))
    columns = (("weights", 1.0, "weights"), ("seconds", 60.0, "minutes of training"))
    for panel, (column, unit, label) in zip(panels, columns, strict=True):
        for value in values:
            for is_finished, marker in ((True, "o"), (False, "x")):
                chosen = [
                    trial
                    for trial in trials
                    if str(trial[colour_by]) == value and (trial["state"] == "finished") == is_finished
                ]
                if not chosen:
                    continue
                panel.scatter(
                    [float(trial[column]) / unit for trial in chosen],
                    [float(trial["best"]) for trial in chosen],
                    color=colours[value],
                    marker=marker,
                    label=f"{colour_by} {value}" + ("" if is_finished else ", stopped early"),
                )
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{metric}, held out, best of each trial")
    panels[1].legend(fontsize="small")
    figure.tight_layout()
    return figure
