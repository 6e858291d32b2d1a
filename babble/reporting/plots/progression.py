"""Progression plots, as in the text of 2017: each field's level in one frame against its level in the next.

    figure = plot_progression({"corpus": frames_TF}, MODES["1300"], "held-out speech")

A field that keeps its level lies on the diagonal; jumps lie far from it.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from babble.codec.frames import Field, Mode, check_levels
from babble.reporting.plots.figures import (
    BOTTOM_INCHES,
    LEFT_INCHES,
    RIGHT_INCHES,
    TOP_INCHES,
    VERMILLION,
    WIDTH_INCHES,
    make_grid,
    open_figure,
    write_note,
)

PANELS_PER_ROW = 8
# Half as many cells as a panel has pixels, so that a single transition is visible; neighbouring levels are summed.
MAX_CELLS = 64
# Lower end of the colour scale, as a share of the panel's most frequent transition.
RAREST_SHARE = 1e-4


def count_transitions(levels_T: np.ndarray, num_levels: int) -> np.ndarray:
    """Return how often each level is followed by each, int64 (V, V): counts[now, next], T - 1 transitions in all.

    Args:
        levels_T: one field of consecutive frames, integers from 0 to `num_levels` - 1.
        num_levels: V.
    """
    levels_T = levels_T.astype(np.int64)
    counts = np.bincount(levels_T[:-1] * num_levels + levels_T[1:], minlength=num_levels**2)
    return counts.reshape(num_levels, num_levels)


def plot_progression(frames_by_name: dict[str, np.ndarray], mode: Mode, title: str) -> Figure:
    """Return the progression plots of one or more sources of frames.

    Each panel is a 2-D histogram of one field: level now (x) against level next (y). The logarithmic colour scale is
    relative to the panel's most frequent transition, so a short babble and a long corpus can be compared. Sources are
    stacked field by field. Above each panel: the share of transitions that keep the level; they lie on the diagonal.

    Args:
        frames_by_name: label of each source ("corpus", "babble") -> integers (T, F), at least two frames.
        mode: the mode of all of them.
        title: one line, shown as it is.

    Raises:
        ValueError: no source, fewer than two frames, or illegal levels; the message names the source.
    """
    if not frames_by_name:
        raise ValueError("frames_by_name is empty: there is nothing to plot.")
    for name, frames in frames_by_name.items():
        check_levels(frames, mode, name)
        if len(frames) < 2:
            raise ValueError(f"{name}: progression plots need at least two frames, found {len(frames)}.")

    # Fields fill the bands evenly; a band has a row of panels for every source.
    num_bands = -(-mode.num_fields // PANELS_PER_ROW)
    num_columns = -(-mode.num_fields // num_bands)
    num_rows = num_bands * len(frames_by_name)
    panel_inches = (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES) / num_columns
    figure = open_figure(TOP_INCHES + BOTTOM_INCHES + num_rows * panel_inches, title)
    grid = make_grid(figure, num_rows, num_columns, hspace=0.28, wspace=0.28)
    for row, (name, frames) in enumerate(frames_by_name.items()):
        for f, field in enumerate(mode.fields):
            band, column = divmod(f, num_columns)
            panel = figure.add_subplot(grid[band * len(frames_by_name) + row, column])
            image = _plot_field(panel, count_transitions(frames[:, f], field.levels), field)
            if column == 0:
                panel.set_ylabel(f"{name}\nnext", fontsize=9, parse_math=False)
            if f + num_columns >= mode.num_fields and row == len(frames_by_name) - 1:
                panel.set_xlabel("now", fontsize=9)
    _add_color_scale(figure, image)
    lengths = ", ".join(f"{name}: {len(frames):,} frames" for name, frames in frames_by_name.items())
    write_note(figure, f"Mode {mode.name}. {lengths}. %: share of transitions that keep the level (the diagonal).")
    return figure


def _plot_field(panel: Axes, counts_VV: np.ndarray, field: Field) -> AxesImage:
    levels = field.levels
    cell = -(-levels // MAX_CELLS)
    cells = counts_VV.reshape(levels // cell, cell, levels // cell, cell).sum(axis=(1, 3))
    image = panel.imshow(
        np.ma.masked_equal(cells.T / cells.max(), 0),
        cmap="viridis_r",
        norm=LogNorm(RAREST_SHARE, 1, clip=True),
        origin="lower",
        interpolation="nearest",
        extent=(-0.5, levels - 0.5, -0.5, levels - 0.5),
    )
    panel.plot([0, levels - 1], [0, levels - 1], color=VERMILLION, linewidth=0.8, alpha=0.7)
    panel.set_xticks([0, levels - 1])
    panel.set_yticks([0, levels - 1])
    panel.tick_params(labelsize=7, length=2, pad=2)
    if field.kind == "binary":
        for now, following in np.ndindex(2, 2):
            share = counts_VV[now, following] / counts_VV.sum()
            color = "white" if counts_VV[now, following] > 0.01 * counts_VV.max() else "black"
            panel.text(now, following, f"{share:.0%}", color=color, fontsize=8, ha="center", va="center")
    panel.set_title(f"{field.name}  {np.trace(counts_VV) / counts_VV.sum():.0%}", fontsize=9, pad=3)
    return image


def _add_color_scale(figure: Figure, image: AxesImage) -> None:
    height = figure.get_figheight()
    panel = figure.add_axes((1 - (RIGHT_INCHES + 3) / WIDTH_INCHES, 1 - 0.22 / height, 3 / WIDTH_INCHES, 0.12 / height))
    scale = figure.colorbar(image, cax=panel, orientation="horizontal")
    # Matplotlib's own labels here are math text, whose parser is shared between threads.
    scale.set_ticks([1e-4, 1e-3, 1e-2, 1e-1, 1], labels=["0.01%", "0.1%", "1%", "10%", "100%"])
    panel.tick_params(labelsize=7, length=2, pad=2)
    label = "relative to the panel's most frequent transition"
    panel.text(-0.02, 0.5, label, transform=panel.transAxes, fontsize=8, ha="right", va="center")
