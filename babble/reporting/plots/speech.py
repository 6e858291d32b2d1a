"""Speech over time: waveform, pitch, energy, and LSP tracks over the spectrogram, on one time axis.

    figure = plot_speech(frames_TF, mode, decode_frames(frames_TF, mode), "babble", prompt_frames=200)
    save_figure(figure, Path("babble.png"))

Pitch, energy and LSPs come from the frames; waveform and spectrogram come from the decoded pcm.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from babble.codec.frames import (
    MAX_PITCH_HZ,
    MIN_PITCH_HZ,
    SAMPLE_RATE_HZ,
    Mode,
    check_levels,
    energy_db,
    lsp_hz,
    pitch_hz,
)
from babble.reporting.plots.figures import (
    BLUE,
    GREEN,
    LEFT_INCHES,
    RIGHT_INCHES,
    SHADE,
    VERMILLION,
    WIDTH_INCHES,
    make_grid,
    open_figure,
    write_note,
)

# Longer segments are too dense to read at this width.
PLOT_SECONDS = 10.0
# Share of the picture before the end of the prompt, where the clip is longer than the picture.
PROMPT_SHARE = 0.25
HEIGHT_INCHES = 9.0
# Distance from an axis to its name: all names stand in one column.
LABEL_INCHES = 0.55
# Two pixels each: finer lines and spectra are not visible.
MAX_COLUMNS = 600
MAX_SPECTRA_PER_COLUMN = 8

WINDOW_PCM = SAMPLE_RATE_HZ * 32 // 1000
FULL_SCALE = 32768
SPECTRUM_RANGE_DB = 50
# Lifts the high formants, which are far weaker than the low ones, by about 6 dB per octave.
PRE_EMPHASIS = 0.95
NUM_GREYS = 24
# A sine of full scale has about 0 dB. Black is never below this, or silence would look as dark as speech.
MIN_BLACK_DB = -50


def plot_speech(
    frames: np.ndarray,
    mode: Mode,
    pcm: np.ndarray,
    title: str,
    prompt_frames: int = 0,
    seconds: float = PLOT_SECONDS,
    clip_frames: int | None = None,
) -> Figure:
    """Return a figure of speech over time: waveform, pitch, energy, and LSP tracks over the spectrogram.

    A longer clip is cut to the `seconds` around the end of the prompt, or to its first `seconds` without one; the time
    axis counts from the start of the clip. Panels without physical values in this mode are omitted, and a note says so;
    without LSPs the spectrogram stands alone. Values are those of a frame's last sub-frame, plotted at its end, where
    the decoder's windows peak. LSPs of mode 3200 may lie above 4 kHz, outside the picture.

    Args:
        frames: integers (T, F), at least one frame.
        mode: their mode.
        pcm: the decoded frames, int16 (T * pcm_per_frame,) at 8 kHz.
        title: one line, shown as it is.
        prompt_frames: length of the prompt at the start of `frames`; a line marks its end. 0: no prompt.
        seconds: the longest segment to plot.
        clip_frames: length of the clip, if `frames` are only its beginning.

    Raises:
        ValueError: no frames, illegal levels, pcm of another length, shape or type, or a prompt longer than the frames.
    """
    _check_speech(frames, mode, pcm, prompt_frames)
    first, end = _choose_segment(len(frames), prompt_frames, max(1, round(seconds * mode.frames_per_second)))
    shown, pcm = frames[first:end], pcm[first * mode.pcm_per_frame : end * mode.pcm_per_frame]
    frame_seconds = mode.frame_ms / 1000
    start, stop = first * frame_seconds, end * frame_seconds
    seconds_T = np.arange(first + 1, end + 1) * frame_seconds
    pitch, energy, lsp = pitch_hz(shown, mode), energy_db(shown, mode), lsp_hz(shown, mode)

    heights = [1.0, *([1.2] if pitch is not None else []), *([1.0] if energy is not None else []), 2.8]
    figure = open_figure(HEIGHT_INCHES, title)
    grid = make_grid(figure, len(heights), 1, height_ratios=heights, hspace=0.09)
    panels = [figure.add_subplot(grid[0])]
    panels += [figure.add_subplot(grid[row], sharex=panels[0]) for row in range(1, len(heights))]

    remaining = iter(panels)
    _plot_waveform(next(remaining), pcm, start)
    if pitch is not None:
        _plot_pitch(next(remaining), seconds_T, pitch)
    if energy is not None:
        _plot_energy(next(remaining), seconds_T, energy, mode)
    _plot_spectrogram(next(remaining), pcm, start, stop)
    if lsp is not None:
        for i, track_T in enumerate(lsp.T):
            panels[-1].plot(seconds_T, track_T, color=(VERMILLION, BLUE)[i % 2], linewidth=0.8)
        panels[-1].set_ylabel("LSPs over\nspectrogram, Hz")

    _mark_prompt(panels, prompt_frames * frame_seconds, start, stop)
    _align_axes(panels, start, stop)
    missing = [name for name, values in (("pitch", pitch), ("energy", energy), ("LSPs", lsp)) if values is None]
    write_note(figure, _describe(mode, start, stop, (clip_frames or len(frames)) * frame_seconds, missing))
    return figure


def _check_speech(frames: np.ndarray, mode: Mode, pcm: np.ndarray, prompt_frames: int) -> None:
    check_levels(frames, mode, "frames to plot")
    if len(frames) == 0:
        raise ValueError("frames to plot: found none, at least one is needed.")
    if pcm.shape != (len(frames) * mode.pcm_per_frame,) or pcm.dtype != np.int16:
        raise ValueError(
            f"pcm to plot has shape {pcm.shape} and type {pcm.dtype}, but {len(frames)} frames of mode {mode.name} "
            f"decode to int16 of shape ({len(frames) * mode.pcm_per_frame},)."
        )
    if not 0 <= prompt_frames <= len(frames):
        raise ValueError(f"prompt_frames is {prompt_frames}, but the clip has {len(frames)} frames.")


def _choose_segment(num_frames: int, prompt_frames: int, max_frames: int) -> tuple[int, int]:
    """Return the first frame to plot and the one after the last: at most `max_frames`, around the prompt's end."""
    first = min(prompt_frames - round(PROMPT_SHARE * max_frames), num_frames - max_frames)
    return max(0, first), min(num_frames, max(0, first) + max_frames)


def _describe(mode: Mode, start: float, stop: float, clip_seconds: float, missing: list[str]) -> str:
    note = f"Mode {mode.name}, {clip_seconds:.1f} s."
    if stop - start < clip_seconds:
        note = f"Mode {mode.name}, {start:.1f} to {stop:.1f} s of {clip_seconds:.1f} s."
    if missing:
        note += f" Without {' and '.join(missing)}: this mode codes them as codebook labels, which have no unit."
    return note


def _align_axes(panels: list[Axes], start: float, stop: float) -> None:
    for panel in panels:
        panel.yaxis.set_label_coords(-LABEL_INCHES / (WIDTH_INCHES - LEFT_INCHES - RIGHT_INCHES), 0.5)
    panels[0].set_xlim(start, stop)
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    panels[-1].set_xlabel("time, s")


def _plot_waveform(panel: Axes, pcm: np.ndarray, start: float) -> None:
    firsts = np.linspace(0, len(pcm), min(len(pcm), 2 * MAX_COLUMNS), endpoint=False).astype(np.int64)
    low, high = np.minimum.reduceat(pcm, firsts) / FULL_SCALE, np.maximum.reduceat(pcm, firsts) / FULL_SCALE
    panel.fill_between(start + firsts / SAMPLE_RATE_HZ, low, high, color=BLUE, linewidth=0.6)
    peak = max(high.max(), -low.min(), 0.01)
    panel.set_ylim(-1.05 * peak, 1.05 * peak)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.set_ylabel("waveform")


def _plot_pitch(panel: Axes, seconds_T: np.ndarray, pitch_T: np.ndarray) -> None:
    # Points: a line between neighbouring frames would show a glide where the pitch jumps.
    panel.plot(seconds_T, pitch_T, color=VERMILLION, linestyle="none", marker=".", markersize=4)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_yscale("log")
    panel.set_ylim(MIN_PITCH_HZ, MAX_PITCH_HZ)
    panel.set_yticks([50, 100, 200, 400], labels=["50", "100", "200", "400"])
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel("pitch where\nvoiced, Hz")


def _plot_energy(panel: Axes, seconds_T: np.ndarray, energy_T: np.ndarray, mode: Mode) -> None:
    panel.plot(seconds_T, energy_T, color=GREEN, linewidth=0.7, marker=".", markersize=3)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    # The range of the mode's levels, so that figures of one mode can be compared.
    limits_db = energy_db(np.stack([0 * mode.levels, mode.levels - 1]), mode)
    assert limits_db is not None
    panel.set_ylim(limits_db[0] - 2, limits_db[1] + 2)
    panel.set_ylabel("energy, dB")


def _measure_spectrogram(pcm: np.ndarray) -> np.ndarray:
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


def _plot_spectrogram(panel: Axes, pcm: np.ndarray, start: float, stop: float) -> None:
    level_db = _measure_spectrogram(pcm)
    black_db = max(level_db.max(), MIN_BLACK_DB)
    panel.imshow(
        level_db,
        cmap=colormaps["gray_r"].resampled(NUM_GREYS),
        vmin=black_db - SPECTRUM_RANGE_DB,
        vmax=black_db,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(start, stop, 0, SAMPLE_RATE_HZ / 2),
    )
    panel.set_ylim(0, SAMPLE_RATE_HZ / 2)
    panel.set_ylabel("spectrogram, Hz")


def _mark_prompt(panels: list[Axes], prompt_end: float, start: float, stop: float) -> None:
    if prompt_end == 0:
        return
    for panel in panels:
        # The spectrogram needs its own greys.
        if not panel.images:
            panel.axvspan(start, prompt_end, color=SHADE, zorder=0)
        panel.axvline(prompt_end, color="black", linewidth=1.5, linestyle="--")
    is_left = prompt_end < start + 0.75 * (stop - start)
    panels[0].annotate(
        f"babble starts at {prompt_end:.2f} s" if is_left else f"the prompt ends at {prompt_end:.2f} s",
        (prompt_end, 1),
        (4 if is_left else -4, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if is_left else "right",
        fontsize=9,
    )
