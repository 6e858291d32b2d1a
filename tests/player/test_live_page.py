"""`babble live` in a real browser: sound without gaps, sliders that act, files and the microphone as prompts."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import open_chromium
from paths import ROOT, SPEECH
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FAKE_MICROPHONE = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")


@contextlib.contextmanager
def serving(*words: object, cwd: Path = ROOT) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of the page and the process that serves it."""
    command = [sys.executable, "-m", "babble", "live", "--no-browser", *map(str, words)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """The page of the bundled voice, and of three small ones."""
    with serving("--runs", runs) as (address, _):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", address)
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with a microphone that beeps; sound starts by a click, as for people."""
    with open_chromium(tmp_path_factory.mktemp("chromium"), *FAKE_MICROPHONE) as browser:
        yield browser


@pytest.fixture
def page(chromium: webdriver.Chrome, address: str) -> Iterator[webdriver.Chrome]:
    """The browser with the page just opened; afterwards it logged no error and asked nobody else for anything."""
    chromium.get_log("performance")
    chromium.get(address)
    until(lambda: chromium.find_element(By.ID, "play").is_enabled())
    yield chromium
    chromium.get("about:blank")
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((address, "data:", "about:", "blob:")) for url in requested), requested


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for a condition to hold; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def heard(page: webdriver.Chrome) -> dict[str, float]:
    return dict(page.execute_script("return babble.heard"))


def play_seconds(page: webdriver.Chrome, seconds: float) -> None:
    """Wait until so much more was played."""
    end = heard(page)["played"] + seconds * 8000
    until(lambda: heard(page)["played"] >= end, 60)


def click(page: webdriver.Chrome, element: str) -> None:
    page.find_element(By.ID, element).click()


def move(page: webdriver.Chrome, slider: str, value: float | str) -> None:
    """Move a slider, or choose an option, as a hand does: with its events."""
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}));",
        slider,
        str(value),
    )


def text(page: webdriver.Chrome, element: str) -> str:
    return page.find_element(By.ID, element).text


def test_sound_is_played_without_a_gap_and_pauses(page: webdriver.Chrome) -> None:
    assert heard(page)["played"] == 0
    click(page, "play")
    play_seconds(page, 5)
    now = heard(page)
    assert now["gaps"] == 0
    assert now["loudest"] > 0.05, "silence"
    assert text(page, "status") == "Playing."
    # As fast as time passes, and no faster.
    start, before = time.monotonic(), heard(page)["played"]
    play_seconds(page, 3)
    assert 2.5 < (heard(page)["played"] - before) / 8000 / (time.monotonic() - start) * 3 < 3.5
    click(page, "play")
    assert text(page, "status") == "Paused."
    time.sleep(0.3)
    paused = heard(page)["played"]
    time.sleep(0.5)
    assert heard(page)["played"] == paused
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.SPACE)
    play_seconds(page, 0.5)


def test_a_slider_is_heard_within_half_a_second(page: webdriver.Chrome) -> None:
    click(page, "play")
    play_seconds(page, 4)
    values = page.execute_script("return babble.values")
    assert any(value["pitch"] for value in values), "nothing voiced"
    changed = heard(page)["played"]
    move(page, "edit-voicing", "off")
    play_seconds(page, 4)
    values = page.execute_script("return babble.values")
    late = [value for value in values if value["at"] > changed + 0.5 * 8000]
    assert len(late) > 60
    assert {value["pitch"] for value in late} == {0}
    click(page, "reset")
    play_seconds(page, 4)
    last = page.execute_script("return babble.values")[-50:]
    assert any(value["pitch"] for value in last)


def test_sampling_is_sent_by_group(page: webdriver.Chrome) -> None:
    click(page, "play")
    for number, name in enumerate(("voicing", "pitch", "energy", "lsp")):
        move(page, f"temperature-{name}", 0.5 + 0.1 * number)
    move(page, "min_p-lsp", 0.1)
    play_seconds(page, 1)
    assert text(page, "status") == "Playing."
    link = page.find_element(By.ID, "save").get_attribute("href")
    settings = page.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then(r => r.blob()).then(b => b.text()).then(done);", link
    )
    assert "settings.json" in settings
    assert heard(page)["gaps"] == 0


def test_the_microphone_and_a_file_are_continued(page: webdriver.Chrome) -> None:
    # Twice, the second time before the browser has permitted it.
    page.execute_script(
        "const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices); globalThis.opened = 0;"
        "devices.getUserMedia = what => { opened += 1; return open(what); };"
        "for (let i = 0; i < 2; i++) document.getElementById('microphone').click();"
    )
    until(lambda: text(page, "status") == "Recording …")
    assert page.execute_script("return opened") == 1
    time.sleep(1.5)
    click(page, "microphone")
    until(lambda: "Continues: the microphone" in text(page, "prompt"))
    play_seconds(page, 1)
    page.find_element(By.ID, "file").send_keys(str(SPEECH / "allison-01.ogg"))
    until(lambda: "Continues: allison-01.ogg" in text(page, "prompt"))
    page.find_element(By.ID, "file").send_keys(str(ROOT / "README.md"))
    until(lambda: text(page, "status").startswith("README.md: "))
    assert "warn" in page.find_element(By.ID, "status").get_attribute("class")
    # The refusal is an answer with status 400, which the browser logs.
    assert len([entry for entry in page.get_log("browser") if "400" in entry["message"]]) == 1
    play_seconds(page, 1)


def test_another_voice_plays_on(page: webdriver.Chrome) -> None:
    click(page, "play")
    play_seconds(page, 1)
    assert not page.find_element(By.ID, "random").is_enabled(), "the bundled voice comes without recordings"
    move(page, "edit-voicing", "off")
    play_seconds(page, 1)
    move(page, "voice", "ann")
    until(lambda: text(page, "about") == "ann, Codec 2 mode 1300")
    assert "what was played before" in text(page, "prompt")
    play_seconds(page, 2)
    # Its controls are new, and so are its settings.
    assert page.find_element(By.ID, "edit-voicing").get_attribute("value") == ""
    assert any(value["pitch"] for value in page.execute_script("return babble.values")[-20:])
    move(page, "voice", "drone")
    until(lambda: text(page, "about") == "drone, Codec 2 mode 1300")
    assert not page.find_elements(By.CSS_SELECTOR, "#sampling h3"), "headings without sliders"
    move(page, "voice", "low-rate")
    until(lambda: text(page, "about") == "low-rate, Codec 2 mode 700C")
    assert not page.find_elements(By.ID, "edit-lsp")
    play_seconds(page, 1)


def test_two_pages_play_and_closing_one_stops_its_work(page: webdriver.Chrome, address: str) -> None:
    click(page, "play")
    first = page.current_window_handle
    page.switch_to.new_window("window")
    page.get(address)
    until(lambda: page.find_element(By.ID, "play").is_enabled())
    click(page, "play")
    play_seconds(page, 2)
    session = page.execute_script("return babble.about.session")
    page.close()
    page.switch_to.window(first)
    play_seconds(page, 2)
    check = "const done = arguments[1]; fetch(arguments[0]).then(r => done(r.status));"
    until(lambda: page.execute_async_script(check, f"{address}save/{session}") == 404)
    assert len([entry for entry in page.get_log("browser") if "404" not in entry["message"]]) == 0


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (1280, "dark")])
def test_a_phone_and_a_dark_screen(page: webdriver.Chrome, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    red = int(page.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
    assert (red < 60) == (scheme == "dark")


def test_every_control_has_a_name_and_is_reached_by_keyboard(page: webdriver.Chrome) -> None:
    names = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, a')].map(e =>"
        "(e.getAttribute('aria-label') || e.textContent || e.closest('label')?.textContent || '').trim())"
    )
    assert all(names), names
    assert len(set(names)) == len(names)
    page.execute_script("document.getElementById('temperature-pitch').focus()")
    before = page.find_element(By.ID, "temperature-pitch").get_attribute("value")
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert float(page.find_element(By.ID, "temperature-pitch").get_attribute("value")) == float(before) - 0.05


def test_the_server_ends_with_ctrl_c_and_a_port_in_use_is_told(runs: Path) -> None:
    with serving(runs / "ann") as (address, process):
        port = address.split(":")[2].split("/")[0]
        command = [sys.executable, "-m", "babble", "live", str(runs / "ann"), "--port", port, "--no-browser"]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (second.returncode, second.stdout) == (1, "")
        assert f"--port {port}: Address already in use. Choose another" in second.stderr
        process.send_signal(2)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert out.endswith("Ended.\n")
