"""What all figures share: size, colours, title, grid, note, and how a PNG is written."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from PIL import Image

from babble.files import replacing

DPI = 100
WIDTH_INCHES = 14.0
LEFT_INCHES, RIGHT_INCHES, TOP_INCHES, BOTTOM_INCHES = 0.95, 0.25, 0.7, 0.7

# Okabe and Ito's palette, safe for colour-blind readers.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY, SHADE = "#666666", "#EDEDED"


def open_figure(height_inches: float, title: str) -> Figure:
    """Return an empty figure with a title, shown as it is: a dollar sign does not start math text."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left, top = LEFT_INCHES / WIDTH_INCHES, 1 - 0.12 / height_inches
    figure.text(left, top, title, fontsize=13, va="top", parse_math=False)
    return figure


def make_grid(figure: Figure, num_rows: int, num_columns: int, **spacing: Any) -> GridSpec:
    """Return a grid of panels within the margins; `spacing` is matplotlib's."""
    return GridSpec(
        num_rows,
        num_columns,
        figure,
        left=LEFT_INCHES / WIDTH_INCHES,
        right=1 - RIGHT_INCHES / WIDTH_INCHES,
        top=1 - TOP_INCHES / figure.get_figheight(),
        bottom=BOTTOM_INCHES / figure.get_figheight(),
        **spacing,
    )


def write_note(figure: Figure, note: str) -> None:
    """Write a line of small text below the panels."""
    x, y = LEFT_INCHES / WIDTH_INCHES, 0.1 / figure.get_figheight()
    figure.text(x, y, note, fontsize=8, color=GREY, va="bottom", parse_math=False)


def write_png(figure: Figure, file: Path | BinaryIO) -> None:
    """Write a figure as a PNG of 256 colours.

    The same figure gives the same bytes with the same versions of matplotlib and Pillow.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Figure.savefig stores four bytes per pixel, and a spectrogram hardly compresses: three times the size.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256, dither=Image.Dither.NONE)
    image.save(file, format="png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours, whole or not at all.

    Raises:
        ValueError: the name does not end in .png.
    """
    if path.suffix != ".png":
        raise ValueError(f"{path}: figures are saved as PNG; the name must end in .png.")
    with replacing(path) as temporary:
        write_png(figure, temporary)
