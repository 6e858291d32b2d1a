"""The report page in a real browser: players, pictures, charts, and that it asks for nothing."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import open_chromium
from paths import SPEECH
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from babble.codec.codec2 import read_c2
from babble.codec.frames import energy_db, lsp_hz, pitch_hz
from babble.reporting.render import write_report

EVIL = '</script><img src="http://127.0.0.1:9/x"><b>evil'
PROMPT_SECONDS, CLIP_SECONDS = 4.0, 10.0


@pytest.fixture(scope="module")
def page(runs: list[Path], sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three runs and a sweep."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([*runs, sweep], path, epochs=1)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that records errors and every request."""
    with open_chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The browser with the page just opened."""
    with _opened(chromium, page):
        yield chromium


@contextlib.contextmanager
def _opened(chromium: webdriver.Chrome, page: Path) -> Iterator[None]:
    """Open a page at desktop size; afterwards check that it logged no error and requested nothing from a network."""
    _emulate(chromium, 1280, "light")
    chromium.get_log("performance")  # Requests of the browser's own start.
    chromium.get(page.as_uri())
    yield
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requested = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in requested
    assert {url.partition(":")[0] for url in requested} <= {"file", "blob", "data"}


def _emulate(chromium: webdriver.Chrome, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    # The driver clicks where an element is, so scrolling must not be smooth.
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": n, "value": v} for n, v in features.items()]}
    )


def _wait(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)
    return found


def _all(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def _click(browser: webdriver.Chrome, target: WebElement) -> None:
    # In the middle of the window: at its edge the explorer would cover the target.
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    target.click()


def _player_time(browser: webdriver.Chrome) -> float:
    return browser.execute_script("return document.querySelector('audio').currentTime")


def _cursor(browser: webdriver.Chrome, clip: int) -> float:
    left = browser.execute_script("return document.querySelectorAll('.cursor')[arguments[0]].style.left", clip)
    return float(left.removesuffix("%"))


def _open_chart(browser: webdriver.Chrome, title: str) -> tuple[WebElement, list[str]]:
    """Return the chart with that title, and the labels of its legend."""
    (figure,) = [f for f in _all(browser, "figure:has(.chart)") if f.text.split("\n")[0] == title]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    _wait(lambda: figure.find_elements(By.CSS_SELECTOR, ".u-over"))
    labels = figure.find_elements(By.CSS_SELECTOR, ".u-label")
    return figure, [label.get_attribute("textContent") or "" for label in labels]


# ---- sections


def test_listen_comes_first_and_every_section_is_there(browser: webdriver.Chrome):
    titles = [title.text for title in _all(browser, "h2")]
    assert titles == ["Listen", "Babble and real speech", "Runs", "Curves", "Evaluation", "Sweep"]
    first = browser.find_element(By.CSS_SELECTOR, "#runs table").text
    assert first.index("model.units 8 12 16") < first.index("weights")
    assert "unigram baseline" in browser.find_element(By.CSS_SELECTOR, "#evaluation table").text
    assert "first has samples from epochs 1, 2; shown: 2." in browser.find_element(By.ID, "listen").text
    assert browser.execute_script("return performance.getEntriesByName('interactive').length") == 1


def test_the_policy_forbids_requests(chromium: webdriver.Chrome, page: Path):
    chromium.get(page.as_uri())
    broken = chromium.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
    )
    assert broken == "connect-src"
    chromium.get_log("browser")
    chromium.get_log("performance")


def test_a_phone_stacks_the_players_and_nothing_is_wider(browser: webdriver.Chrome):
    _emulate(browser, 393, "light")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 393
    boxes = [clip.rect for clip in _all(browser, ".clip")[:4]]
    assert len({box["x"] for box in boxes}) == 1
    assert all(a["y"] + a["height"] <= b["y"] for a, b in pairwise(boxes))


def test_the_page_is_dark_if_the_reader_prefers_that(browser: webdriver.Chrome):
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    _emulate(browser, 1280, "dark")
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 700
    assert brightness[1] < 100


def test_text_of_a_run_is_shown_as_text(chromium: webdriver.Chrome, run: Path):
    path = run / "samples/prompts/prompts.json"
    path.write_text(json.dumps([origin | {"recording": EVIL} for origin in json.loads(path.read_text())]))
    evil = run.with_name("<i>{{data}}")
    run.rename(evil)
    write_report([evil], run.with_name("page.html"))
    with _opened(chromium, run.with_name("page.html")):
        assert chromium.title == "babble: <i>{{data}}"
        assert EVIL in chromium.find_element(By.CSS_SELECTOR, ".row h3").text
        assert _all(chromium, "main i, main .row img, main .row > b") == []


# ---- players


def test_a_clip_plays_while_its_cursor_moves_and_another_stops_it(browser: webdriver.Chrome):
    first, second = _all(browser, ".play")[:2]
    _click(browser, first)
    _wait(lambda: _player_time(browser) > 0.3)
    before = _cursor(browser, 0)
    _wait(lambda: _cursor(browser, 0) > before > 0)
    assert first.accessible_name == "Pause Real speech, decoded frames, prompt 1"
    _click(browser, second)
    _wait(lambda: _cursor(browser, 1) > 1)
    assert [play.accessible_name.split()[0] for play in _all(browser, ".play")[:3]] == ["Play", "Pause", "Play"]
    stopped = _cursor(browser, 0)
    assert not browser.execute_script("return document.querySelector('audio').paused")
    _click(browser, second)
    assert browser.execute_script("return document.querySelector('audio').paused")
    assert _cursor(browser, 0) == stopped
    # Quick clicks end with the last clip playing.
    browser.execute_script("for (const n of [1, 1, 2, 0, 2]) document.querySelectorAll('.play')[n].click()")
    _wait(lambda: _cursor(browser, 2) > 0.5)
    assert len(_all(browser, ".is-playing")) == 1


def test_a_click_in_the_picture_seeks_and_play_continues_there(browser: webdriver.Chrome):
    picture = _all(browser, ".frames")[1]
    _click(browser, picture)
    assert float(picture.get_attribute("aria-valuenow") or 0) == pytest.approx(CLIP_SECONDS / 2, abs=0.1)
    _click(browser, _all(browser, ".play")[1])
    _wait(lambda: _player_time(browser) > CLIP_SECONDS / 2 + 0.2)
    assert _cursor(browser, 1) > 50


def test_a_clip_can_be_saved_as_the_wav_of_the_run(browser: webdriver.Chrome, runs: list[Path], tmp_path: Path):
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    (button,) = [b for b in _all(browser, "button") if b.accessible_name == "Save WAV of first, epoch 2, prompt 1"]
    _click(browser, button)
    saved = tmp_path / "first-epoch-2-prompt-1.wav"
    _wait(saved.is_file)
    expected, rate = soundfile.read(runs[0] / "samples/epoch-0002/1.wav", dtype="int16")
    pcm, saved_rate = soundfile.read(saved, dtype="int16")
    assert saved_rate == rate
    np.testing.assert_array_equal(pcm, expected)


def test_the_picture_shows_the_frames_and_enlarges(browser: webdriver.Chrome):
    picture = _all(browser, ".frames")[0]
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    dark = (
        "const shown = document.querySelector('.frames canvas'); if (shown.width < 200) return 0;"
        "const c = shown.cloneNode(); const context = c.getContext('2d', {willReadFrequently: true});"
        "context.drawImage(shown, 0, 0);"
        "const d = context.getImageData(0, arguments[0] * c.height, c.width, c.height * 0.3).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i + 3] > 128 && d[i + 2] < 100;"
        "return n / d.length;"
    )
    assert _wait(lambda: browser.execute_script(dark, 0.01)) > 0.001  # Pitch.
    assert browser.execute_script(dark, 0.6) > 0.01  # Spectrum.
    before = picture.size
    enlarge = _all(browser, ".clip-actions button")[0]
    _click(browser, enlarge)
    assert picture.size["width"] > 2 * before["width"]
    assert picture.size["height"] > 2 * before["height"]
    width = "return document.querySelector('.frames canvas').width"
    _wait(lambda: browser.execute_script(width) == picture.size["width"] - 2)  # Its border is a pixel wide.
    _click(browser, enlarge)
    assert picture.size == before


def test_the_keyboard_plays_and_steps_through_frames_and_their_fields(browser: webdriver.Chrome, runs: list[Path]):
    first = _all(browser, ".play")[0]
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.TAB)
    picture = browser.switch_to.active_element
    assert picture.accessible_name == "Position in Real speech, decoded frames, prompt 1"
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    frames, mode = read_c2(runs[0] / "samples/real/1.c2")
    pitch, energy, lsp = pitch_hz(frames, mode), energy_db(frames, mode), lsp_hz(frames, mode)
    assert pitch is not None
    assert energy is not None
    assert lsp is not None
    voiced = int(np.flatnonzero(~np.isnan(pitch))[0])
    picture.send_keys(Keys.ARROW_RIGHT * (voiced + 2) + Keys.ARROW_LEFT * 2)
    fields = browser.find_element(By.CSS_SELECTOR, ".explorer").text.split("\n")[1:]
    assert fields[0].endswith(f"frame {voiced}")
    assert fields[fields.index("Wo") + 1 :][:2] == [f"{pitch[voiced]:.0f} Hz", f"{frames[voiced, 4]} of 127"]
    assert float(fields[fields.index("E") + 1].removesuffix(" dB")) == pytest.approx(energy[voiced], abs=0.06)
    assert fields[fields.index("lsp9") + 1] == f"{lsp[voiced, 9]:.0f} Hz"
    picture.send_keys(Keys.END)
    assert float(picture.get_attribute("aria-valuenow") or 0) == len(frames) / 25
    picture.send_keys(Keys.HOME + " ")
    _wait(lambda: _player_time(browser) > 0.1)
    picture.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('audio').paused")


def test_the_explorer_appears_when_a_frame_is_pointed_at(browser: webdriver.Chrome):
    picture, explorer = _all(browser, ".frames")[2], browser.find_element(By.CSS_SELECTOR, ".explorer")
    assert not explorer.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    ActionChains(browser).move_to_element(picture).perform()
    text = _wait(lambda: explorer.text.removeprefix("Hide\n"))
    assert text.startswith("second, epoch 2 · prompt 1 · ")
    assert 120 <= int(re.findall(r"frame (\d+)", text)[0]) <= 130
    explorer.find_element(By.CSS_SELECTOR, "button").click()
    assert not explorer.is_displayed()
    picture.click()
    assert explorer.is_displayed()


def test_a_run_without_kept_frames_plays_without_a_picture(chromium: webdriver.Chrome, run: Path):
    for path in run.glob("samples/[er]*/*.c2"):
        path.unlink()
    write_report([run], run / "page.html")
    with _opened(chromium, run / "page.html"):
        assert _all(chromium, ".frames canvas") == []
        assert "No picture: the frames were not kept." in _all(chromium, ".clip")[1].text
        _click(chromium, _all(chromium, ".play")[1])
        _wait(lambda: _cursor(chromium, 1) > 0.5)


# ---- blind listening


def test_blind_listening_hides_names_shuffles_and_reveals_the_answers(browser: webdriver.Chrome):
    listen = browser.find_element(By.ID, "listen")
    blind = listen.find_element(By.CSS_SELECTOR, ".tools button")
    shuffles = set()
    order = (
        "const find = (clips, shown) => clips.findIndex((clip) => clip.element === shown);"
        "return rows.map(({ players, clips }) => [...players.children].map((shown) => find(clips, shown)));"
    )
    for _ in range(4):
        _click(browser, blind)
        # Only what the section shows: the title of the page names its runs.
        shown = [clip.text for clip in _all(browser, ".clip")]
        names = [e.accessible_name for e in _all(browser, ".row:first-of-type :is(button, .frames, .clip)")]
        assert not re.search(r"Real speech|decoded|first|second|third|epoch", " ".join([*shown, *names]))
        assert not any(button.is_displayed() for button in _all(browser, ".clip-actions button"))
        assert [clip.accessible_name for clip in _all(browser, ".clip")[:4]] == [f"Clip {x}, prompt 1" for x in "ABCD"]
        shuffles.add(json.dumps(browser.execute_script(order)))
        _click(browser, blind)
    assert len(shuffles) > 1
    assert _all(browser, ".clip")[0].accessible_name == "Real speech, decoded frames, prompt 1"
    _click(browser, blind)
    assert {picture.get_attribute("aria-valuenow") for picture in _all(browser, ".frames")} == {f"{PROMPT_SECONDS:.2f}"}
    _click(browser, _all(browser, ".play")[0])
    assert _wait(lambda: _player_time(browser)) >= PROMPT_SECONDS
    orders = browser.execute_script(order)
    # Right in the first row, wrong in the second.
    for row, clip in ((0, orders[0].index(0)), (1, orders[1].index(1))):
        _click(browser, _all(browser, ".row")[row].find_elements(By.CSS_SELECTOR, ".guess")[clip])
    _click(browser, listen.find_element(By.CSS_SELECTOR, "button.strong"))
    assert listen.find_element(By.CSS_SELECTOR, "[role=status]").text == (
        "You found the real voice in 1 of 2 rows; chance is 0.5."
    )
    (right,), (wrong,) = _all(browser, ".is-right"), _all(browser, ".is-wrong")
    letter = "ABCD"[orders[0].index(0)]
    assert right.accessible_name == f"{letter}: Real speech, decoded frames, prompt 1"
    assert wrong.accessible_name.endswith("first, epoch 2, prompt 2")


def test_original_recordings_are_left_out_of_blind_listening(
    chromium: webdriver.Chrome, runs: list[Path], tmp_path: Path
):
    write_report(runs[:1], tmp_path / "report.html", 1, [SPEECH / "allison-07.ogg"])
    originals = ("Real speech, original recording", "Real speech, decoded frames", "first, epoch 2")
    with _opened(chromium, tmp_path / "report.html"):
        names = [clip.accessible_name for clip in _all(chromium, ".clip")[:3]]
        assert names == [f"{name}, prompt 1" for name in originals]
        _click(chromium, chromium.find_element(By.CSS_SELECTOR, ".tools button"))
        blind = [clip.accessible_name for clip in _all(chromium, ".clip")[:3]]
        assert blind == ["Clip A, prompt 1", "Clip B, prompt 1", "Clip A, prompt 2"]
        _click(chromium, chromium.find_element(By.CSS_SELECTOR, ".tools button"))
        assert _all(chromium, ".clip")[0].accessible_name == names[0]


# ---- charts and pictures


def test_babble_and_the_real_voice_share_a_chart_for_each_metric(browser: webdriver.Chrome, runs: list[Path]):
    _, labels = _open_chart(browser, "Pauses, share of time")
    assert labels == ["step", *(f"{run.name}, babble" for run in runs), "real speech"]
    speech = browser.find_element(By.ID, "speech")
    assert speech.find_elements(By.CSS_SELECTOR, "details") == []
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    real = {name for row in rows for name in row if name.startswith("samples/real/")}
    assert len(speech.find_elements(By.CSS_SELECTOR, ".chart")) == len(real) > 3
    assert browser.execute_script("return LOGGED.filter((n) => n.startsWith('samples/')).length") == 2 * len(real)


def test_training_validation_and_baselines_share_a_chart_whose_idle_legend_has_values(
    browser: webdriver.Chrome, runs: list[Path]
):
    figure, labels = _open_chart(browser, "Bits per frame")
    kinds = [f"{run.name}, {kind}" for kind in ("validation", "training") for run in runs]
    assert labels == ["step", *kinds, "unigram baseline", "bigram baseline"]
    values = [value.text for value in figure.find_elements(By.CSS_SELECTOR, ".u-value")]
    assert all(re.fullmatch(r"[\d.,]+( \((above|below)\))?", value) for value in values), values
    marker = "const s = getComputedStyle(arguments[0]); return [s.borderLeftWidth, s.borderTopStyle, s.height]"
    markers = [browser.execute_script(marker, m) for m in figure.find_elements(By.CSS_SELECTOR, ".u-series .u-marker")][
        -8:
    ]
    assert {left for left, _, _ in markers} == {"0px"}
    assert [top for _, top, _ in markers] == ["solid"] * 6 + ["dashed"] * 2


@pytest.mark.parametrize(
    ("values", "constants", "low", "high"),
    [
        ([30, 29, 28], [], 27, 31),
        # The first loss and a spike lie outside, so that the rest fills the chart.
        ([1000, *(30 - n / 100 for n in range(100)), 500], [], 27, 33),
        # Baselines are in range if they leave the curve half of it.
        ([30, 29, 28, 27], [{"value": 32}, {"value": 44}], 26, 33),
        # A single value has no shape to lose.
        ([30], [{"value": 44}], 29, 45),
        # The real voice is what babble should reach.
        ([100, 110], [{"value": 200, "isTarget": True}], 90, 210),
        ([5, 5, None], [], 4, 6),
        ([None], [{"value": 3}], -1, 2),
    ],
)
def test_outliers_and_far_baselines_do_not_flatten_a_curve(
    browser: webdriver.Chrome, values: list[float], constants: list[dict[str, Any]], low: float, high: float
):
    bottom, top = browser.execute_script("return chooseRange(arguments[0], arguments[1])", values, constants)
    inside = [value for value in values if value is not None and low <= value <= high]
    assert low <= bottom < top <= high
    assert all(bottom <= value <= top for value in inside)


def test_curves_zoom_by_drag_and_by_keyboard(browser: webdriver.Chrome):
    figure, _ = _open_chart(browser, "Bits per frame")
    chart, plot = figure.find_element(By.CSS_SELECTOR, ".chart"), figure.find_element(By.CSS_SELECTOR, ".u-over")
    reset = figure.find_element(By.CSS_SELECTOR, ".reset")
    assert not reset.is_displayed()
    scale = "return [charts.at(-1).scales.x.min, charts.at(-1).scales.x.max]"
    whole = browser.execute_script(scale)
    drag = ActionChains(browser).move_to_element_with_offset(plot, -100, 0).click_and_hold().move_by_offset(150, 0)
    drag.release().perform()
    low, high = browser.execute_script(scale)
    assert whole[0] < low < high < whole[1]
    assert reset.is_displayed()
    ActionChains(browser).double_click(plot).perform()
    assert browser.execute_script(scale) == whole
    chart.send_keys("+")
    assert browser.execute_script(scale) != whole
    chart.send_keys("0" + Keys.ARROW_RIGHT)
    assert browser.execute_script(scale) == whole


def test_progression_plots_and_the_pictures_of_a_sweep_enlarge(browser: webdriver.Chrome):
    dialog = browser.find_element(By.CSS_SELECTOR, "dialog")
    names = [button.accessible_name for button in _all(browser, ".picture")]
    assert names[:2] == ["Enlarge Real speech, held out", "Enlarge first, epoch 2"]
    assert names[-1] == "Enlarge sweep, answer.png"
    for button in (_all(browser, ".picture")[0], _all(browser, ".picture")[-1]):
        _click(browser, button)
        image = dialog.find_element(By.CSS_SELECTOR, "img")
        assert image.size["width"] > 2 * button.size["width"]
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 1000
        image.click()
        assert not dialog.is_displayed()
