"""Figures of real speech in every mode: what is plotted where, and PNGs that are reproducible."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paths import ROOT, SPEECH
from PIL import Image

from babble.codec.codec2 import decode_frames, encode_pcm
from babble.codec.frames import MODES, Mode, energy_db, lsp_hz, pitch_hz, unpack_packets
from babble.reporting.plots.evaluation import MAX_SPREADS, plot_evaluation
from babble.reporting.plots.figures import DPI, WIDTH_INCHES, save_figure
from babble.reporting.plots.progression import count_transitions, plot_progression
from babble.reporting.plots.speech import MAX_COLUMNS, PLOT_SECONDS, plot_speech
from babble.reporting.plots.sweep import plot_sweep
from babble.sweeps.space import read_space

ALL_MODES = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
M1300 = MODES["1300"]


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    """Six seconds of real speech, int16 at 8 kHz."""
    pcm, rate = soundfile.read(SPEECH / "allison-01.ogg", frames=48000, dtype="int16")
    assert rate == 8000
    return pcm


@pytest.fixture(scope="module")
def frames(pcm: np.ndarray) -> np.ndarray:
    """The same speech in mode 1300."""
    return unpack_packets(encode_pcm(pcm, M1300), M1300)


def _panel(figure: Figure, name: str) -> Axes:
    """Return the one panel whose name on the y axis holds `name`."""
    (panel,) = [panel for panel in figure.axes if name in panel.get_ylabel()]
    return panel


def _texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def plot_speech_of(frames: np.ndarray, mode: Mode) -> Figure:
    # Not decoded: two decodes of the same frames differ.
    pcm = np.arange(len(frames) * mode.pcm_per_frame).astype(np.int16)
    return plot_speech(frames, mode, pcm, "50 $ and 60 $", prompt_frames=50)


def plot_progression_of(frames: np.ndarray, mode: Mode) -> Figure:
    return plot_progression({"50 $ and 60 $": frames}, mode, "50 $ and 60 $")


@ALL_MODES
def test_every_mode_shows_its_physical_values_and_names_those_it_lacks(mode: Mode, pcm: np.ndarray):
    frames = unpack_packets(encode_pcm(pcm, mode), mode)
    figure = plot_speech(frames, mode, decode_frames(frames, mode), "six seconds", prompt_frames=20)
    names = [panel.get_ylabel() for panel in figure.axes]
    values = {"pitch": pitch_hz(frames, mode), "energy": energy_db(frames, mode), "LSPs": lsp_hz(frames, mode)}
    for name, value in values.items():
        assert any(name in label for label in names) == (value is not None)
        assert (name in _texts(figure)) == (value is None)
    tracks = [line for line in _panel(figure, "spectrogram").lines if len(line.get_xdata()) == len(frames)]
    assert len(tracks) == (0 if values["LSPs"] is None else 10)


@pytest.mark.parametrize(("draw", "mode"), [(plot_speech_of, M1300), (plot_progression_of, MODES["700C"])])
def test_pngs_are_small_and_not_empty(
    draw: Callable[[np.ndarray, Mode], Figure], mode: Mode, pcm: np.ndarray, tmp_path: Path
):
    save_figure(draw(unpack_packets(encode_pcm(pcm, mode), mode), mode), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert image.width == WIDTH_INCHES * DPI
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert (tmp_path / "figure.png").stat().st_size < 400_000


def test_tracks_hold_the_values_of_each_frame_at_its_end_with_gaps_where_unvoiced(frames: np.ndarray):
    figure = plot_speech(frames, M1300, decode_frames(frames, M1300), "speech")
    pitch, energy = _panel(figure, "pitch").lines[0], _panel(figure, "energy").lines[0]
    np.testing.assert_allclose(pitch.get_xdata(), (np.arange(len(frames)) + 1) * 0.04)
    np.testing.assert_array_equal(pitch.get_ydata(), pitch_hz(frames, M1300))
    unvoiced = frames[:, 3] == 0
    assert 0 < unvoiced.sum() < len(frames)
    np.testing.assert_array_equal(np.isnan(np.asarray(pitch.get_ydata(), float)), unvoiced)
    np.testing.assert_array_equal(energy.get_ydata(), energy_db(frames, M1300))


@pytest.mark.parametrize("prompt_frames", [0, 40, 150])
def test_the_prompt_ends_at_its_second_in_every_panel(frames: np.ndarray, prompt_frames: int):
    figure = plot_speech(frames, M1300, decode_frames(frames, M1300), "speech", prompt_frames)
    for panel in figure.axes:
        marks = [float(line.get_xdata()[0]) for line in panel.lines if line.get_linestyle() == "--"]
        assert marks == ([prompt_frames * 0.04] if prompt_frames else [])
    assert [text.get_text() for text in figure.axes[0].texts] == {
        0: [],
        40: ["babble starts at 1.60 s"],
        150: ["the prompt ends at 6.00 s"],
    }[prompt_frames]


def test_a_tone_is_dark_at_its_frequency_while_it_lasts(frames: np.ndarray):
    pcm = np.zeros(len(frames) * M1300.pcm_per_frame, np.int16)
    seconds = np.arange(len(pcm)) / 8000
    is_tone = (seconds >= 2) & (seconds < 3)
    pcm[is_tone] = np.rint(16384 * np.sin(2 * np.pi * 1000 * seconds[is_tone]))
    panel = _panel(plot_speech(frames, M1300, pcm, "tone"), "spectrogram")
    level_db = np.asarray(panel.images[0].get_array())
    left, right, bottom, top = panel.images[0].get_extent()
    assert (left, right, bottom, top) == (0, 6, 0, 4000)
    column_seconds = (np.arange(level_db.shape[1]) + 0.5) * 6 / level_db.shape[1]
    inside, outside = (
        (column_seconds > 2.05) & (column_seconds < 2.95),
        (column_seconds < 1.95) | (column_seconds > 3.05),
    )
    row = round(1000 / 4000 * (len(level_db) - 1))
    assert (level_db[:, inside].argmax(axis=0) == row).all()
    lightest, darkest = panel.images[0].get_clim()
    assert level_db[row, inside].min() > darkest - 3
    assert level_db[:, outside].max() < lightest
    # A window half in the tone has a quarter of its power.
    loud_seconds = column_seconds[level_db[row] > darkest - 6]
    np.testing.assert_allclose([loud_seconds[0], loud_seconds[-1]], [2, 3], atol=0.011)


@pytest.mark.parametrize(("prompt_frames", "first"), [(0, 0), (250, 188), (400, 338), (1500, 1250)])
def test_a_long_clip_shows_ten_seconds_around_the_end_of_its_prompt(
    prompt_frames: int, first: int, frames: np.ndarray, pcm: np.ndarray
):
    long, repeated = np.tile(frames, (10, 1)), np.tile(pcm, 10)
    figure = plot_speech(long, M1300, repeated, "one minute", prompt_frames)
    assert PLOT_SECONDS == 10
    for panel in figure.axes:
        assert panel.get_xlim() == pytest.approx((first / 25, first / 25 + 10))
    pitch = _panel(figure, "pitch").lines[0]
    np.testing.assert_array_equal(pitch.get_ydata(), pitch_hz(long[first : first + 250], M1300))
    part = repeated[first * 320 : (first + 250) * 320]
    wave = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (wave[:, 1].min(), wave[:, 1].max()) == (part.min() / 32768, part.max() / 32768)
    assert wave[:, 0].min() == pytest.approx(first / 25)
    assert _panel(figure, "spectrogram").images[0].get_array().shape[1] <= MAX_COLUMNS
    assert f"{first / 25:.1f} to {first / 25 + 10:.1f} s of 60.0 s" in _texts(figure)


def test_pitch_is_plotted_as_points(frames: np.ndarray, pcm: np.ndarray):
    pitch = _panel(plot_speech(frames, M1300, pcm, "speech"), "pitch").lines[0]
    assert (pitch.get_linestyle(), pitch.get_marker()) == ("None", ".")


def test_the_shortest_silent_clip_is_plotted_light(tmp_path: Path):
    figure = plot_speech(np.zeros((1, 16), np.uint8), M1300, np.zeros(320, np.int16), "silence")
    image = _panel(figure, "spectrogram").images[0]
    assert image.get_array().max() < image.get_clim()[0]
    save_figure(figure, tmp_path / "silence.png")


def test_progression_counts_equal_a_slow_loop(frames: np.ndarray):
    for f, field in enumerate(M1300.fields):
        expected = np.zeros((field.levels, field.levels), int)
        for now, following in pairwise(frames[:, f].tolist()):
            expected[now, following] += 1
        np.testing.assert_array_equal(count_transitions(frames[:, f], field.levels), expected)


def test_progression_has_a_panel_per_field_and_source_with_now_on_x_and_next_on_y():
    climb = np.zeros((2, 16), np.uint8)
    climb[:, 6:13] = [[0] * 7, [5] * 7]
    still = np.zeros((50, 16), np.uint8)
    figure = plot_progression({"climb": climb, "still": still}, M1300, "transitions")
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title().split()[0] for panel in panels] == 2 * [field.name for field in M1300.fields]
    copied = [panel.get_title().split()[1] for panel in panels]
    assert copied == 6 * ["100%"] + 7 * ["0%"] + 3 * ["100%"] + 16 * ["100%"]
    shares_YX = panels[6].images[0].get_array()
    assert np.argwhere(~np.ma.getmaskarray(shares_YX)).tolist() == [[5, 0]]
    assert sum("climb" in panel.get_ylabel() for panel in panels) == 2


def test_levels_of_large_fields_are_summed_to_visible_cells():
    mode = MODES["700C"]
    frames = np.tile(np.array([[0, 0, 0, 0], [511, 7, 15, 63]], np.uint16), (20, 1))
    panels = plot_progression({"steps": frames}, mode, "steps").axes
    drawn = np.argwhere(~np.ma.getmaskarray(panels[0].images[0].get_array()))
    assert drawn.tolist() == [[0, 63], [63, 0]]


@pytest.mark.parametrize("draw", [plot_speech_of, plot_progression_of])
def test_the_same_figure_gives_the_same_bytes_in_threads_too(
    draw: Callable[[np.ndarray, Mode], Figure], pcm: np.ndarray, tmp_path: Path
):
    mode = MODES["700C"]  # It has the fewest fields, so the fewest panels.
    frames = unpack_packets(encode_pcm(pcm, mode), mode)

    def save(name: str) -> bytes:
        save_figure(draw(frames, mode), tmp_path / name)
        return (tmp_path / name).read_bytes()

    alone = save("alone.png")
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(save, ["a.png", "b.png"])) == {alone}
    assert not [word for word in (b"Software", b"matplotlib", b"tEXt", b"tIME") if word in alone]


def test_a_failed_save_leaves_the_old_picture_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "speech.png"
    path.write_bytes(b"the old picture")

    def fill_the_disk(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_figure(Figure(), path)
    assert path.read_bytes() == b"the old picture"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda f, p: plot_speech(f[:, :15], M1300, p, ""), r"shape \(150, 15\)"),
        (lambda f, p: plot_speech(f + np.uint8(200), M1300, p, ""), "frame 0 has v0=20"),
        (lambda f, p: plot_speech(f[:0], M1300, p[:0], ""), "found none"),
        (lambda f, p: plot_speech(f, M1300, p[1:], ""), r"shape \(47999,\).*150 frames .* shape \(48000,\)"),
        (lambda f, p: plot_speech(f, M1300, p / 32768, ""), "type float64"),
        (lambda f, p: plot_speech(f, M1300, p, "", prompt_frames=151), "prompt_frames is 151.* 150 frames"),
        (lambda f, p: plot_speech(f, M1300, p, "", prompt_frames=-1), "prompt_frames is -1"),
        (lambda f, p: plot_progression({}, M1300, ""), "frames_by_name is empty"),
        (
            lambda f, p: plot_progression({"corpus": f, "babble": f[:1]}, M1300, ""),
            "babble: .* at least two frames, found 1",
        ),
        (lambda f, p: plot_progression({"corpus": f[:, :4]}, M1300, ""), "corpus: frames have shape"),
        (lambda f, p: save_figure(Figure(), Path("speech.jpg")), r"speech\.jpg: .*\.png"),
    ],
)
def test_invalid_input_raises_an_error_that_names_it(
    draw: Callable[[np.ndarray, np.ndarray], object], message: str, frames: np.ndarray, pcm: np.ndarray
):
    with pytest.raises(ValueError, match=message):
        draw(frames, pcm)


def test_pyplot_is_never_imported():
    # It keeps global state, which callbacks and threads would share.
    sources = [path.read_text() for path in (ROOT / "babble").rglob("*.py")]
    assert not [source for source in sources if re.search(r"^\s*(import|from) matplotlib.*pyplot", source, re.M)]


def _evaluation(mode: Mode, has_bits: bool) -> dict[str, Any]:
    """Return an evaluation as `evaluate` does: the network's metric is half of the baseline's."""
    total, by_field = ("bits_per_frame", "bits_by_field") if has_bits else ("error_levels", "error_by_field")
    costs = {field.name: field.bits / 2 for field in mode.fields}
    baseline = {total: 2.0, by_field: {name: 2 * cost for name, cost in costs.items()}}
    return {
        "checkpoint": "runs/x/checkpoints/best.ckpt",
        "split": "test",
        "shards": "shards/$x$",
        "mode": mode.name,
        "hours": 1.0,
        "held_out": {total: 1.0, by_field: costs},
        "baselines": {"unigram baseline": baseline, "copy baseline": {"other": 3.0}},
    }


@pytest.mark.parametrize(("mode", "has_bits"), [(M1300, True), (M1300, False), (MODES["700C"], True)])
def test_an_evaluation_without_babble_shows_the_metric_by_field(mode: Mode, has_bits: bool):
    figure = plot_evaluation(_evaluation(mode, has_bits))
    (panel,) = figure.axes
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels == [f"{field.name}\n{field.bits / 2:.2f}" for field in mode.fields]
    (bars,) = [bars for bars in panel.containers if "network" in bars.get_label()]
    assert [bar.get_height() for bar in bars] == [field.bits / 2 for field in mode.fields]
    assert ("bits" if has_bits else "error") in panel.get_ylabel()


def test_an_evaluation_with_babble_compares_it_with_real_speech(tmp_path: Path):
    real = {"mean": 2.0, "low": 1.0, "high": 4.0}
    means = {"babble": 3.0, "other real speech": 1.5, "shuffled frames": 200.0, "Markov chain": -200.0}
    measures = {
        "change_levels": {"real speech": real} | {name: {**real, "mean": mean} for name, mean in means.items()},
        "pitch_hz": {"real speech": real, "babble": None, "other real speech": real},
        "never": dict.fromkeys(["real speech", *means]),
    }
    accuracy = {"accuracy": 0.7, "low": 0.6, "high": 0.8, "auc": 0.8, "clips": 9}
    classifier = {name: {"1": accuracy, "60": None} for name in means}
    evaluation = _evaluation(M1300, True) | {"speech": {"statistics": {"measures": measures}, "classifier": classifier}}
    figure = plot_evaluation(evaluation)
    statistics, accuracies = figure.axes[1:]
    assert [label.get_text() for label in statistics.get_yticklabels()] == ["change levels", "pitch hz"]
    places = {line.get_label(): np.asarray(line.get_xdata(), float) for line in statistics.lines}
    # Halfway to the upper and the lower end of the spread, and far out on both sides.
    assert places["babble"].tolist() == [0.5]
    assert places["other real speech"].tolist() == [-0.5, 0]
    assert 0.9 * MAX_SPREADS < places["shuffled frames"][0] < MAX_SPREADS
    assert -MAX_SPREADS < places["Markov chain"][0] < -0.9 * MAX_SPREADS
    assert [label.get_text() for label in accuracies.get_xticklabels()] == ["1 s", "60 s"]
    assert [list(bars.lines[0].get_ydata()) for bars in accuracies.containers] == [[0.7]] * 4
    save_figure(figure, tmp_path / "evaluation.png")


@pytest.mark.parametrize(
    ("spec", "values", "legend", "bars"),
    [
        ({"choice": [0.1, 1 / 3]}, [1 / 3, 0.1, 0.1], ["optim.lr 0.1", "optim.lr 0.3333"], []),
        ({"loguniform": [1e-4, 1.0]}, [1e-3, 1 / 3, 0.1], [], ["optim.lr"]),
    ],
)
def test_a_sweep_has_a_short_legend_for_choices_and_a_colour_bar_for_a_range(
    spec: dict[str, Any], values: list[float], legend: list[str], bars: list[str], tmp_path: Path
):
    (axis,) = read_space({"optim.lr": spec}, ["optim.lr"])
    states = ("finished", "finished", "stopped")
    trials = [
        {"optim.lr": str(value), "best": 26.0 + n, "weights": 1000, "seconds": 60.0 * (n + 1), "state": state}
        for n, (value, state) in enumerate(zip(values, states, strict=True))
    ]
    figure = plot_sweep(trials, "bits_per_frame", axis)
    assert [panel.get_ylabel() for panel in figure.axes[2:]] == bars
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*legend, "finished", "not finished"]
    finished, others = figure.axes[1].collections
    assert finished.get_offsets().tolist() == [[1, 26], [2, 27]]
    assert others.get_offsets().tolist() == [[3, 28]]
    # Trials of one value have one colour in both panels, and others another one.
    assert len(
        {*map(tuple, finished.to_rgba(finished.get_array())), *map(tuple, others.to_rgba(others.get_array()))}
    ) == len(set(values))
    save_figure(figure, tmp_path / "answer.png")
