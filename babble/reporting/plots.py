"""Figures from arrays: how speech looks, and how its fields move.

In: frames (T, F) of a mode, and the pcm they decode to. Out: matplotlib figures, and PNG files of them.

1. `plot_speech`: waveform, pitch, energy and LSP tracks over the spectrogram, on one time axis.
2. `plot_progression`: each field's value now against its value next, one row of panels for each source of frames (the
   progression plots of 2017).
3. `plot_evaluation`: what evaluate found: costs by field beside baselines, and babble beside real speech.
4. `plot_sweep`: a sweep's trials, held-out figure against weights and against time.
5. `save_figure`: a PNG, whole or not at all, the same bytes for the same figure.

A time axis never has more columns than the picture has pixels, so ten minutes cost little more than ten seconds. Only
matplotlib's object interface is used, never pyplot, and no formulas: no state is shared, so callbacks may draw, and
threads, each its own figures.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator, PercentFormatter
from PIL import Image

from babble.codec.frames import (
    MAX_PITCH_HZ,
    MIN_PITCH_HZ,
    SAMPLE_RATE_HZ,
    Field,
    Mode,
    check_levels,
    energy_db,
    get_mode,
    lsp_hz,
    pitch_hz,
)

DPI = 100
WIDTH_INCHES = 14.0
LEFT_INCHES, RIGHT_INCHES, TOP_INCHES, BOTTOM_INCHES = 0.95, 0.25, 0.7, 0.7
SPEECH_HEIGHT_INCHES = 9.0
# From an axis to its name: all names stand in one column.
LABEL_INCHES = 0.55
# Two pixels each: lines and spectra finer than that can't be told apart.
MAX_COLUMNS = 600
# A column that stands for more than this many frames or spectra shows that many of them, evenly spread.
MAX_FRAMES_PER_COLUMN = 16
MAX_SPECTRA_PER_COLUMN = 8

WINDOW_PCM = SAMPLE_RATE_HZ * 32 // 1000
FULL_SCALE = 32768
SPECTRUM_RANGE_DB = 50
# Lifts the high formants, which are far weaker than the low ones, by about 6 dB an octave.
PRE_EMPHASIS = 0.95
NUM_GREYS = 24
# A sine of full scale has about 0 dB. The darkest grey is never below this, or silence would look as dark as speech.
MIN_DARKEST_DB = -50

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, PROMPT_SHADE = "#666666", "#EDEDED"

# Kinds of speech in an evaluation: colour and mark.
KIND_STYLES = {
    "babble": (BLUE, "o"),
    "other real speech": (GREEN, "s"),
    "shuffled frames": (VERMILLION, "v"),
    "Markov chain": ("#CC79A7", "^"),
}
BATTERY_INCHES = 6.5
# Further off than so many spreads of real clips is far off.
FARTHEST = 4.0

PANELS_PER_ROW = 8
# Half as many as a panel has pixels, so that a single step is seen; fields of more levels have neighbours summed.
MAX_CELLS = 64
# Of the commonest step, on the colour scale of progression plots; what is rarer still looks the same.
RAREST_STEP = 1e-4


def plot_speech(frames: np.ndarray, mode: Mode, pcm: np.ndarray, title: str, prompt_frames: int = 0) -> Figure:
    """Return a figure of speech over time: waveform, pitch, energy, and LSP tracks over the spectrogram.

    A panel that the mode has no physical values for is left out, and a line below says so; without LSPs the spectrogram
    stands alone. Where a column stands for several frames, lines are medians and bands hold the middle half. Values are
    those of a frame's last sub-frame, drawn at its end, where the decoder's windows peak. LSPs of mode 3200 may lie
    above 4 kHz and are then out of the picture.

    Args:
        frames: integers (T, F), at least one frame.
        mode: their mode.
        pcm: what they decode to, int16 (T * pcm_per_frame,) at 8 kHz.
        title: one line, shown as it is.
        prompt_frames: how many of the frames are the prompt; where they end a line is drawn. 0: no prompt.

    Raises:
        ValueError: no frames, illegal levels, pcm of another length, shape or type, or a prompt longer than the frames.
    """
    check_levels(frames, mode, "frames to plot")
    if len(frames) == 0:
        raise ValueError("frames to plot: there are none, at least one is needed.")
    if pcm.shape != (len(frames) * mode.pcm_per_frame,) or pcm.dtype != np.int16:
        raise ValueError(
            f"pcm to plot has shape {pcm.shape} and type {pcm.dtype}, but {len(frames)} frames of mode {mode.name} "
            f"decode to int16 of shape ({len(frames) * mode.pcm_per_frame},)."
        )
    if not 0 <= prompt_frames <= len(frames):
        raise ValueError(f"prompt_frames is {prompt_frames}, but there are {len(frames)} frames to plot.")

    frame_seconds = mode.frame_ms / 1000
    drawn_CGF, seconds_C = _pick_frames(frames, frame_seconds)
    picked = drawn_CGF.reshape(-1, mode.num_fields)
    pitch, energy, lsp = pitch_hz(picked, mode), energy_db(picked, mode), lsp_hz(picked, mode)

    missing = [name for name, values in (("pitch", pitch), ("energy", energy), ("LSPs", lsp)) if values is None]
    heights = [1.0, *([1.2] if pitch is not None else []), *([1.0] if energy is not None else []), 2.8]
    figure = _open_figure(SPEECH_HEIGHT_INCHES, title)
    grid = _grid(figure, len(heights), 1, height_ratios=heights, hspace=0.09)
    panels = [figure.add_subplot(grid[0])]
    panels += [figure.add_subplot(grid[row], sharex=panels[0]) for row in range(1, len(heights))]

    rest = iter(panels)
    _draw_waveform(next(rest), pcm)
    if pitch is not None:
        _draw_pitch(next(rest), seconds_C, pitch.reshape(drawn_CGF.shape[:2]))
    if energy is not None:
        # What the mode's lowest and highest levels stand for, so that figures of one mode can be compared.
        limits_db = energy_db(np.stack([0 * mode.levels, mode.levels - 1]), mode)
        assert limits_db is not None
        _draw_energy(next(rest), seconds_C, energy.reshape(drawn_CGF.shape[:2]), limits_db)
    spectrogram = next(rest)
    _draw_spectrogram(spectrogram, pcm)
    if lsp is not None:
        _, middle, _ = _summarise(lsp.reshape(*drawn_CGF.shape[:2], -1))
        for i in range(middle.shape[1]):
            spectrogram.plot(seconds_C, middle[:, i], color=(VERMILLION, BLUE)[i % 2], linewidth=0.8)
        spectrogram.set_ylabel("LSPs over\nspectrogram, Hz")

    _mark_prompt(panels, prompt_frames * frame_seconds, len(frames) * frame_seconds)
    for panel in panels:
        panel.yaxis.set_label_coords(-LABEL_INCHES / (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES), 0.5)
    panels[0].set_xlim(0, len(frames) * frame_seconds)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    spectrogram.set_xlabel("time, s")
    note = f"Mode {mode.name}, {len(frames) * frame_seconds:.1f} s."
    if len(seconds_C) < len(frames) and len(missing) < 3:
        note += f" Of every {seconds_C[1] - seconds_C[0]:.2f} s, lines show the median and bands the middle half."
    if missing:
        note += f" Without {' and '.join(missing)}: this mode codes them as labels of a codebook, which have no unit."
    _write_note(figure, note)
    return figure


def count_progression(levels_T: np.ndarray, num_levels: int) -> np.ndarray:
    """Return how often each level is followed by each, int64 (V, V): counts[now, next], T - 1 steps in all.

    Args:
        levels_T: one field of consecutive frames, integers from 0 to `num_levels` - 1.
        num_levels: V.
    """
    levels_T = levels_T.astype(np.int64)
    return np.bincount(levels_T[:-1] * num_levels + levels_T[1:], minlength=num_levels**2).reshape(
        num_levels, num_levels
    )


def plot_progression(frames_by_name: dict[str, np.ndarray], mode: Mode, title: str) -> Figure:
    """Return the progression plots of 2017: for each field its value now (x) against its value next (y).

    Panels are 2-D histograms over the field's levels, coloured by a logarithmic scale relative to the panel's commonest
    step, so that a short babble and a long corpus can be compared. Sources stand below each other, field by field. Over
    each panel is the share of steps that copy the value; they lie on the faint diagonal.

    Args:
        frames_by_name: what to call each source of frames ("corpus", "babble") -> integers (T, F), at least two frames.
        mode: the mode of all of them.
        title: one line, shown as it is.

    Raises:
        ValueError: no source, fewer than two frames, or illegal levels; says which source.
    """
    if not frames_by_name:
        raise ValueError("frames_by_name is empty: nothing to plot.")
    for name, frames in frames_by_name.items():
        check_levels(frames, mode, name)
        if len(frames) < 2:
            raise ValueError(f"{name}: {len(frames)} frames make no step from now to next; at least two are needed.")

    # Fields fill the bands evenly; a band has a row of panels for every source.
    num_bands = -(-mode.num_fields // PANELS_PER_ROW)
    num_columns = -(-mode.num_fields // num_bands)
    num_rows = num_bands * len(frames_by_name)
    panel_inches = (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES) / num_columns
    figure = _open_figure(TOP_INCHES + BOTTOM_INCHES + num_rows * panel_inches, title)
    grid = _grid(figure, num_rows, num_columns, hspace=0.28, wspace=0.28)
    for row, (name, frames) in enumerate(frames_by_name.items()):
        for f, field in enumerate(mode.fields):
            band, column = divmod(f, num_columns)
            panel = figure.add_subplot(grid[band * len(frames_by_name) + row, column])
            image = _draw_progression(panel, count_progression(frames[:, f], field.levels), field)
            if column == 0:
                panel.set_ylabel(f"{name}\nnext", fontsize=9, parse_math=False)
            if f + num_columns >= mode.num_fields and row == len(frames_by_name) - 1:
                panel.set_xlabel("now", fontsize=9)
    _draw_color_scale(figure, image)
    lengths = ", ".join(f"{name}: {len(frames):,} frames" for name, frames in frames_by_name.items())
    _write_note(figure, f"Mode {mode.name}. {lengths}. %: the share of steps that copy the value (the diagonal).")
    return figure


def plot_evaluation(figures: dict[str, Any]) -> Figure:
    """Return a figure of an evaluation: costs by field beside the baselines and, where there is babble, its statistics.

    Above, for each field, what the network pays (bars) beside the baselines (lines) and the field's width (shade), what
    knowing nothing costs. Below, left, how far each measure of the statistics lies from real speech, in spreads of real
    clips; right, how often a classifier puts a clip on the right side, by length of clip.

    Args:
        figures: what `evaluate` returned.
    """
    has_speech = "speech" in figures
    height = 5.0 + (BATTERY_INCHES if has_speech else 0)
    figure = _open_figure(height, f"{figures['checkpoint']} on the {figures['split']} split of {figures['shards']}")
    grid = _grid(
        figure, 2 if has_speech else 1, 2, height_ratios=[1, 1.25][: 2 if has_speech else 1], hspace=0.34, wspace=0.36
    )
    _draw_field_costs(figure.add_subplot(grid[0, :]), figures)
    if has_speech:
        # The left part is for the measures' names, which are long.
        _draw_battery(
            figure.add_subplot(grid[1, 0].subgridspec(1, 2, width_ratios=[1, 7], wspace=0)[1]),
            figures["speech"]["statistics"],
        )
        _draw_accuracies(figure.add_subplot(grid[1, 1]), figures["speech"]["classifier"])
    _write_note(figure, f"Mode {figures['mode']}, {figures['hours']:.2f} hours of held-out speech.")
    return figure


def plot_sweep(trials: Sequence[Mapping[str, Any]], figure: str, colour_by: str) -> Figure:
    """Draw the best held-out figure of a sweep's trials against their weights, and against what they took.

    Args:
        trials: rows of trials.csv that have a "best"; "weights", "seconds" and "state" too.
        figure: the held-out figure's name.
        colour_by: the column whose values get colours.
    """
    sampling = Figure(figsize=(WIDTH_INCHES, 6.0), dpi=DPI)
    FigureCanvasAgg(sampling)
    values = list(dict.fromkeys(str(trial[colour_by]) for trial in trials))
    colours = dict(zip(values, colormaps["viridis"](np.linspace(0.0, 0.85, len(values))), strict=True))
    panels = sampling.subplots(1, 2, sharey=True)
    for axes, column, per, name in zip(
        panels, ("weights", "seconds"), (1.0, 60.0), ("weights", "minutes of training"), strict=True
    ):
        for value in values:
            mine = [trial for trial in trials if str(trial[colour_by]) == value]
            for is_whole, mark in ((True, "o"), (False, "x")):
                chosen = [trial for trial in mine if (trial["state"] == "finished") == is_whole]
                x = [float(trial[column]) / per for trial in chosen]
                y = [float(trial["best"]) for trial in chosen]
                label = f"{colour_by} {value}" + ("" if is_whole else ", not to its end")
                axes.scatter(x, y, color=colours[value], marker=mark, label=label if chosen else None)
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{figure}, held out, best of each trial")
    panels[1].legend(fontsize="small")
    sampling.tight_layout()
    return sampling


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of 256 colours, whole or not at all.

    The same figure gives the same bytes with the same versions of matplotlib and Pillow.

    Raises:
        ValueError: the name does not end in .png.
    """
    if path.suffix != ".png":
        raise ValueError(f"{path}: figures are saved as PNG, so the name has to end in .png.")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Figure.savefig stores four bytes a pixel, and a spectrogram hardly compresses: three times the size.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256, dither=Image.Dither.NONE)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(temporary, format="png", optimize=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_figure(height_inches: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    # A title may hold a recording's name: a dollar sign in it opens no formula.
    left, top = LEFT_INCHES / WIDTH_INCHES, 1 - 0.12 / height_inches
    figure.text(left, top, title, fontsize=13, va="top", parse_math=False)
    return figure


def _grid(figure: Figure, num_rows: int, num_columns: int, **spacing: Any) -> GridSpec:
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


def _write_note(figure: Figure, note: str) -> None:
    x, y = LEFT_INCHES / WIDTH_INCHES, 0.1 / figure.get_figheight()
    figure.text(x, y, note, fontsize=8, color=GREY, va="bottom", parse_math=False)


def _pick_frames(frames: np.ndarray, frame_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames to draw, (C, G, F) for C columns of G frames, and where each column is, in seconds (C,)."""
    width = -(-len(frames) // MAX_COLUMNS)
    starts = np.arange(0, len(frames), width)
    offsets = np.linspace(0, width, min(width, MAX_FRAMES_PER_COLUMN), endpoint=False).astype(np.int64)
    # The last column may be short: it repeats its last frame.
    rows = np.minimum(starts[:, None] + offsets, len(frames) - 1)
    return frames[rows], (starts + (width + 1) / 2) * frame_seconds


def _summarise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the quartiles (low, median, high) of each column, (C, ...) of (C, G, ...); NaN where most values are."""
    values = np.sort(values, axis=1)  # NaNs go last
    count = np.sum(~np.isnan(values), axis=1, keepdims=True)
    last = np.maximum(count - 1, 0)
    quartiles = [np.take_along_axis(values, n, axis=1) for n in (last // 4, last // 2, -(-3 * last // 4))]
    low, middle, high = (np.where(2 * count < values.shape[1], np.nan, quartile)[:, 0] for quartile in quartiles)
    return low, middle, high


def _draw_waveform(panel: Axes, pcm: np.ndarray) -> None:
    starts = np.linspace(0, len(pcm), min(len(pcm), 2 * MAX_COLUMNS), endpoint=False).astype(np.int64)
    low, high = np.minimum.reduceat(pcm, starts) / FULL_SCALE, np.maximum.reduceat(pcm, starts) / FULL_SCALE
    panel.fill_between(starts / SAMPLE_RATE_HZ, low, high, color=BLUE, linewidth=0.6)
    peak = max(high.max(), -low.min(), 0.01)
    panel.set_ylim(-1.05 * peak, 1.05 * peak)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_ylabel("waveform")


def _draw_track(panel: Axes, seconds_C: np.ndarray, values_CG: np.ndarray, color: str) -> None:
    low, middle, high = _summarise(values_CG)
    if values_CG.shape[1] > 1:
        panel.fill_between(seconds_C, low, high, color=color, alpha=0.25, linewidth=0)
    # Dots, or a voiced frame between two unvoiced ones would not be seen.
    panel.plot(seconds_C, middle, color=color, linewidth=0.7, marker=".", markersize=3)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _draw_pitch(panel: Axes, seconds_C: np.ndarray, pitch_CG: np.ndarray) -> None:
    _draw_track(panel, seconds_C, pitch_CG, VERMILLION)
    panel.set_yscale("log")
    panel.set_ylim(MIN_PITCH_HZ, MAX_PITCH_HZ)
    panel.set_yticks([50, 100, 200, 400], labels=["50", "100", "200", "400"])
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel("pitch where\nvoiced, Hz")


def _draw_energy(panel: Axes, seconds_C: np.ndarray, energy_CG: np.ndarray, limits_db: np.ndarray) -> None:
    _draw_track(panel, seconds_C, energy_CG, GREEN)
    panel.set_ylim(limits_db[0] - 2, limits_db[1] + 2)
    panel.set_ylabel("energy, dB")


def _spectrogram_db(pcm: np.ndarray) -> np.ndarray:
    """Return the mean power of each column after pre-emphasis, (WINDOW_PCM // 2 + 1, C) in dB.

    A sine of full scale has about 0 dB.
    """
    num_columns = min(MAX_COLUMNS, -(-len(pcm) // (WINDOW_PCM // 8)))
    column_pcm = len(pcm) / num_columns
    num_spectra = min(MAX_SPECTRA_PER_COLUMN, max(1, round(column_pcm / (WINDOW_PCM // 2))))
    middles_S = (np.arange(num_columns * num_spectra) + 0.5) / num_spectra * column_pcm
    padded = np.pad(pcm, WINDOW_PCM // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_PCM)[middles_S.astype(np.int64)]
    hann = np.hanning(WINDOW_PCM)
    spectra = np.fft.rfft(windows * (hann / (hann.sum() / 2 * FULL_SCALE)))
    spectra *= 1 - PRE_EMPHASIS * np.exp(-2j * np.pi * np.arange(spectra.shape[1]) / WINDOW_PCM)
    power = (spectra.real**2 + spectra.imag**2).reshape(num_columns, num_spectra, -1).mean(axis=1)
    return 10 * np.log10(power + 1e-12).T


def _draw_spectrogram(panel: Axes, pcm: np.ndarray) -> None:
    level_db = _spectrogram_db(pcm)
    darkest = max(level_db.max(), MIN_DARKEST_DB)
    panel.imshow(
        level_db,
        cmap=colormaps["gray_r"].resampled(NUM_GREYS),
        vmin=darkest - SPECTRUM_RANGE_DB,
        vmax=darkest,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, len(pcm) / SAMPLE_RATE_HZ, 0, SAMPLE_RATE_HZ / 2),
    )
    panel.set_ylim(0, SAMPLE_RATE_HZ / 2)
    panel.set_ylabel("spectrogram, Hz")


def _mark_prompt(panels: list[Axes], prompt_seconds: float, seconds: float) -> None:
    if prompt_seconds == 0:
        return
    for panel in panels:
        # The spectrogram needs its own greys.
        if not panel.images:
            panel.axvspan(0, prompt_seconds, color=PROMPT_SHADE, zorder=0)
        panel.axvline(prompt_seconds, color="black", linewidth=1.5, linestyle="--")
    is_left = prompt_seconds < 0.75 * seconds
    panels[0].annotate(
        f"babble starts at {prompt_seconds:.2f} s" if is_left else f"the prompt ends at {prompt_seconds:.2f} s",
        (prompt_seconds, 1),
        (4 if is_left else -4, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if is_left else "right",
        fontsize=9,
    )


def _draw_progression(panel: Axes, counts_VV: np.ndarray, field: Field) -> AxesImage:
    levels = field.levels
    cell = -(-levels // MAX_CELLS)
    cells = counts_VV.reshape(levels // cell, cell, levels // cell, cell).sum(axis=(1, 3))
    image = panel.imshow(
        np.ma.masked_equal(cells.T / cells.max(), 0),
        cmap="viridis_r",
        norm=LogNorm(RAREST_STEP, 1, clip=True),
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


def _draw_color_scale(figure: Figure, image: AxesImage) -> None:
    height = figure.get_figheight()
    panel = figure.add_axes((1 - (RIGHT_INCHES + 3) / WIDTH_INCHES, 1 - 0.22 / height, 3 / WIDTH_INCHES, 0.12 / height))
    scale = figure.colorbar(image, cax=panel, orientation="horizontal")
    # Matplotlib's own labels here are formulas, whose parser is shared between threads.
    scale.set_ticks([1e-4, 1e-3, 1e-2, 1e-1, 1], labels=["0.01%", "0.1%", "1%", "10%", "100%"])
    panel.tick_params(labelsize=7, length=2, pad=2)
    panel.text(
        -0.02,
        0.5,
        "of the panel's commonest step",
        transform=panel.transAxes,
        fontsize=8,
        ha="right",
        va="center",
    )


def _draw_field_costs(panel: Axes, figures: dict[str, Any]) -> None:
    network, mode = figures["held_out"], get_mode(figures["mode"])
    key, total, unit = (
        ("bits_by_field", "bits_per_frame", "bits")
        if "bits_per_frame" in network
        else ("error_by_field", "error_levels", "mean absolute error, levels")
    )
    places = np.arange(mode.num_fields)
    if key == "bits_by_field":
        widths = [field.bits for field in mode.fields]
        panel.bar(places, widths, 0.8, color=PROMPT_SHADE, label=f"{sum(widths)} knowing nothing")
    rows = {name: values for name, values in figures["baselines"].items() if key in values}
    for (name, values), color in zip(rows.items(), (VERMILLION, GREEN), strict=False):
        panel.hlines(
            list(values[key].values()),
            places - 0.4,
            places + 0.4,
            color=color,
            linewidth=2,
            label=f"{values[total]:.2f} {name}",
        )
    panel.bar(places, list(network[key].values()), 0.5, color=BLUE, label=f"{network[total]:.2f} this network")
    panel.set_xticks(places, labels=[f"{name}\n{value:.2f}" for name, value in network[key].items()])
    panel.set_xlim(-0.6, mode.num_fields - 0.4)
    panel.set_ylabel(f"{unit}, by field")
    panel.legend(fontsize=9, frameon=False, title=f"{unit} a frame" if total == "bits_per_frame" else unit)


def _draw_battery(panel: Axes, statistics: dict[str, Any]) -> None:
    """Draw each measure's means: -1 to 1 is the spread of real clips, and what lies far outside stands at the edge."""
    rows = {name: of_sets for name, of_sets in statistics["measures"].items() if of_sets["real speech"]}
    panel.axvspan(-1, 1, color=PROMPT_SHADE, zorder=0)
    panel.axvline(0, color=GREY, linewidth=0.8)
    for name, (color, marker) in KIND_STYLES.items():
        places = [
            (_place(of_sets[name]["mean"], of_sets["real speech"]), row)
            for row, of_sets in enumerate(rows.values())
            if of_sets.get(name)
        ]
        order = 4 if name == "babble" else 3
        xs, ys = [x for x, _ in places], [y for _, y in places]
        panel.plot(xs, ys, color=color, marker=marker, markersize=6, linewidth=0, label=name, zorder=order)
    for row, of_sets in enumerate(rows.values()):
        told = [f"{of_sets[name]['mean']:.3g}" if of_sets.get(name) else "-" for name in ("babble", "real speech")]
        panel.annotate(
            " | ".join(told),
            (FARTHEST, row),
            (6, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
    panel.set_yticks(range(len(rows)), labels=[name.replace("_", " ") for name in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(-FARTHEST, FARTHEST)
    panel.set_xlabel("from real speech; shade: 8 of 10 real clips; right: babble | real")
    _draw_legend_above(panel)


def _place(value: float, real: dict[str, float]) -> float:
    reach = real["high"] - real["mean"] if value > real["mean"] else real["mean"] - real["low"]
    distance = (value - real["mean"]) / max(abs(reach), 1e-9)
    return float(np.clip(distance, 0.1 - FARTHEST, FARTHEST - 0.1))


def _draw_accuracies(panel: Axes, accuracies: dict[str, dict[str, Any]]) -> None:
    for n, (name, found) in enumerate(accuracies.items()):
        shown = [(place, values) for place, values in enumerate(found.values()) if values]
        places = [place + 0.08 * (n - 1) for place, _ in shown]
        middle = np.array([values["accuracy"] for _, values in shown])
        reach = [
            [values["accuracy"] - values["low"] for _, values in shown],
            [values["high"] - values["accuracy"] for _, values in shown],
        ]
        color, marker = KIND_STYLES.get(name, (GREY, "x"))
        panel.errorbar(
            places, middle, reach, color=color, marker=marker, markersize=6, linewidth=1, capsize=3, label=name
        )
    seconds = list(next(iter(accuracies.values())))
    panel.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    panel.set_xticks(range(len(seconds)), labels=[f"{text} s" for text in seconds])
    panel.set_xlim(-0.4, len(seconds) - 0.6)
    panel.set_ylim(0.3, 1.03)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("length of clip")
    panel.set_ylabel("clips told from held-out speech")
    _draw_legend_above(panel)


def _draw_legend_above(panel: Axes) -> None:
    panel.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, handletextpad=0.2)
