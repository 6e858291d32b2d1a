"""The report: what it takes from run folders, and what a real browser makes of it."""

import base64
import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile
import yaml
from paths import SPEECH
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from babble import report as report_module
from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES, energy_db, lsp_hz, pitch_hz
from babble.data.loaders import DataConfig
from babble.evaluate import EvaluateConfig, evaluate
from babble.files import read_json_lines
from babble.model.babbler import ModelConfig
from babble.report import ReportConfig, gather_report, pick_evenly, write_report
from babble.run_folder import RunFolder
from babble.sweeps.folder import SweepFolder, write_answer
from babble.train import StopConfig, TrainConfig, WandbConfig, train
from babble.training.samples import SamplesConfig
from babble.training.unfreezing import Stage

RUNS = {"first": 8, "second": 12, "third": 16}
PROMPTS, PROMPT_FRAMES, FRAMES = 3, 200, 300
EVIL = '</script><img src="http://127.0.0.1:9/x"><b>evil'


def _config(shards: Path, runs: Path, name: str, units: int) -> TrainConfig:
    """A tiny network of two stages, heard at the end of each, in clips about as long as real runs have."""
    return TrainConfig(
        name=name,
        runs=runs,
        data=DataConfig(shards=shards, window_frames=40, batch_size=4, windows_per_epoch=16),
        model=ModelConfig(num_layers=2, units=units, head="categorical"),
        unfreezing=(Stage((1,), 2), Stage((1, 2))),
        stop=StopConfig(epochs=3),
        samples=SamplesConfig(every_epochs=0, prompts=PROMPTS, prompt_frames=PROMPT_FRAMES, frames=FRAMES),
        log_every_steps=2,
        wandb=WandbConfig(mode="off"),
    )


@pytest.fixture(scope="module")
def runs(speech_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three trained runs, the first evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    # Pictures for the run folder take most of the time, and are no part of the report.
    with mock.patch("babble.training.samples.save_figure", lambda figure, path: path.touch()):
        paths = [train(_config(speech_shards, folder, name, units)).run for name, units in RUNS.items()]
    evaluate(EvaluateConfig(run=paths[0], split="test", babble_seconds=0, json=paths[0] / "evaluation.json"))
    return paths


@pytest.fixture
def run(runs: list[Path], tmp_path: Path) -> Path:
    """A copy of the first run, to change."""
    return Path(shutil.copytree(runs[0], tmp_path / "first", ignore=shutil.ignore_patterns("checkpoints")))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two trials that has its answer."""
    folder = SweepFolder(tmp_path_factory.mktemp("sweeps") / "sweep")
    folder.path.mkdir()
    space = {"model.units": {"choice": [8, 16]}}
    folder.settings.write_text(yaml.safe_dump({"space": space, "figure": "val/bits_per_frame"}))
    folder.base.write_text(yaml.safe_dump({"model": {"units": 8}}))
    row = {"state": "finished", "seed": 0, "stage": 1, "epoch": 2, "frames": 1000, "weights": 500, "seconds": 60}
    folder.write_rows([row | {"trial": f"units-{n}", "model.units": n, "best": 40 - n} for n in (8, 16)])
    folder.write_config("units-16", {"model.units": 16}, 0)
    write_answer(folder)
    return folder.path


# ---- what is taken from the folders


def test_runs_that_continue_the_same_prompts_share_rows_and_real_speech(runs: list[Path]):
    rows = gather_report(runs, epochs=1)["rows"]
    assert len(rows) == PROMPTS
    for row in rows:
        assert [clip["run"] for clip in row["clips"]] == [None, *RUNS]
        assert row["recording"] == "allison-07"
        assert row["prompt_seconds"] == PROMPT_FRAMES / 25


def test_a_clip_is_the_listening_without_loss_and_its_frames(runs: list[Path]):
    clip = gather_report(runs[:1], epochs=1)["rows"][1]["clips"][1]
    folder = runs[0] / "samples/epoch-0003"
    frames, mode = read_c2(folder / "2.c2")
    assert clip["frames"]["levels"] == frames.tolist()
    assert clip["seconds"] == (PROMPT_FRAMES + FRAMES) / 25
    pcm, _ = soundfile.read(io.BytesIO(base64.b64decode(clip["audio"])), dtype="int16")
    assert np.array_equal(pcm, soundfile.read(folder / "2.wav", dtype="int16")[0])
    pitch = pitch_hz(frames, mode)
    assert pitch is not None
    assert [hz is None for hz in clip["frames"]["pitch_hz"]] == np.isnan(pitch).tolist()
    assert clip["frames"]["energy_db"] == pytest.approx(energy_db(frames, mode), abs=0.051)
    assert np.array_equal(clip["frames"]["lsp_hz"], lsp_hz(frames, mode))


def test_recordings_stand_before_their_coded_speech(runs: list[Path]):
    rows = gather_report(runs[:1], 1, [SPEECH / "allison-07.ogg"])["rows"]
    for row in rows:
        recording, coded = row["clips"][:2]
        assert (recording["is_recording"], recording["run"], coded["is_recording"]) == (True, None, False)
        assert recording["seconds"] == coded["seconds"]
        pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(recording["audio"])), dtype="int16")
        first = round(row["second"] * rate)
        whole, _ = soundfile.read(SPEECH / "allison-07.ogg", dtype="int16")
        # Vorbis is decoded to fractions, which libsndfile rounds in its own way.
        np.testing.assert_allclose(pcm, whole[first : first + len(pcm)], atol=1)
        # The same speech at the same time: its loudness goes with that of the frames.
        energy = energy_db(np.array(coded["frames"]["levels"]), MODES["1300"])
        assert energy is not None
        loudness = np.log(np.abs(pcm.reshape(len(energy), -1).astype(float)).mean(axis=1) + 1)
        assert np.corrcoef(loudness, energy)[0, 1] > 0.7


@pytest.mark.parametrize(
    ("source", "said"), [("allison-01.ogg", "no recording there is named allison-07"), ("nobody.ogg", "does not exist")]
)
def test_recordings_that_are_not_there_are_named(source: str, said: str, runs: list[Path]):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        gather_report(runs[:1], 1, [SPEECH / source])


def test_frames_are_no_recordings(runs: list[Path], tmp_path: Path):
    shutil.copy(runs[0] / "samples/real/1.c2", tmp_path / "allison-07.c2")
    with pytest.raises(ValueError, match="holds codec frames and no sound"):
        gather_report(runs[:1], 1, [tmp_path / "allison-07.c2"])


def test_what_was_run_is_said(runs: list[Path]):
    about = gather_report(runs, epochs=3)["runs"][1]
    finished = json.loads((runs[1] / "finished.json").read_text())
    assert {key: about[key] for key in ("best", "weights", "frames", "steps")} == {
        key: finished[key] for key in ("best", "weights", "frames", "steps")
    }
    assert about["settings"]["model.units"] == "12"
    assert about["baselines"].keys() >= {"unigram baseline", "copy baseline"}
    rows = [row for row in read_json_lines(runs[1] / "metrics.jsonl") if "val/bits_per_frame" in row]
    assert about["curves"]["val/bits_per_frame"] == {
        "steps": [row["step"] for row in rows],
        "values": [row["val/bits_per_frame"] for row in rows],
    }
    assert {1, 2} <= set(about["curves"]["train/stage"]["values"])


def test_a_long_curve_is_thinned_and_what_is_not_finite_is_left_out(tmp_path: Path):
    rows = [{"step": step, "train/loss": math.nan if step == 0 else step} for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    curve = report_module.read_curves(tmp_path / "metrics.jsonl")["train/loss"]
    assert len(curve["steps"]) == report_module.MAX_POINTS
    assert (curve["steps"][0], curve["steps"][-1]) == (0, 4999)
    assert (curve["values"][0], curve["values"][-1]) == (None, 4999)


def test_epochs_are_picked_evenly_with_the_last():
    names = [f"epoch-{n:04d}" for n in range(1, 11)]
    assert pick_evenly(names, 1) == ["epoch-0010"]
    assert pick_evenly(names, 3) == ["epoch-0001", "epoch-0005", "epoch-0010"]
    assert pick_evenly(names, 20) == names


def test_evaluations_of_one_split_stand_in_one_table(runs: list[Path], run: Path):
    second = run.rename(run.with_name("copy"))
    (table,) = gather_report([runs[0], second], epochs=1)["evaluations"]
    found = json.loads((runs[0] / "evaluation.json").read_text())
    assert [row["name"] for row in table["rows"]] == [*found["baselines"], "first", "copy"]
    assert table["rows"][-1]["figures"]["bits_per_frame"] == found["held_out"]["bits_per_frame"]


def test_a_sweep_is_shown_best_first_with_its_pictures(sweep: Path):
    (found,) = gather_report([sweep], epochs=1)["sweeps"]
    assert [configuration["values"] for configuration in found["configurations"]] == [["16"], ["8"]]
    assert [configuration["mean"] for configuration in found["configurations"]] == [24, 32]
    assert [picture["name"] for picture in found["pictures"]] == ["answer.png"]


def test_a_run_that_has_only_begun_is_reported_with_what_is_there(run: Path):
    for name in ("metrics.jsonl", "finished.json", "baselines.json", "environment.json", "evaluation.json"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    found = write_report([run], run / "page.html")
    assert (found["runs"][0]["best"], found["rows"]) == (None, [])
    assert (run / "page.html").stat().st_size < 500_000


def test_two_runs_of_one_name_are_told_apart_by_their_folders(runs: list[Path], run: Path):
    names = [about["name"] for about in gather_report([runs[0], run], epochs=1)["runs"]]
    assert names == [str(runs[0]), str(run)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("baselines.json", "{", r"baselines\.json is damaged, no JSON"),
        ("samples/prompts/prompts.json", "nothing", r"prompts\.json is damaged, no JSON"),
        ("config.yaml", "a: [", r"config\.yaml is damaged, no settings in YAML"),
        ("config.yaml", "words", r"config\.yaml is damaged, no settings in YAML"),
        (
            "metrics.jsonl",
            '{"step": 1, "train/loss": 2}\n{"step": 2, "train/loss": "much"}\n',
            r"metrics\.jsonl: line 2 is damaged",
        ),
        ("samples/real/1.wav", "RIFF", r"real/1\.wav can't be read"),
        ("samples/real/1.c2", "C2", r"real/1\.c2: does not open with"),
    ],
)
def test_a_damaged_file_is_named_and_an_older_page_stays(name: str, content: str, said: str, run: Path):
    page = run / "page.html"
    page.write_text("older")
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        write_report([run], page)
    assert page.read_text() == "older"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(ValueError, match="name what to report"):
        ReportConfig()
    with pytest.raises(ValueError, match="--epochs 0"):
        ReportConfig(runs=(tmp_path,), epochs=0)


def test_the_command_takes_runs_as_bare_words(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "pages" / "page.html"
    with mock.patch("sys.argv", ["report", str(runs[0]), str(runs[1]), "--out", str(page), "--epochs", "1"]):
        report_module.main()
    assert f"{page}: first, second; clips: 9; " in capsys.readouterr().out
    assert page.stat().st_size > 1_000_000


def test_every_training_leaves_its_report_and_survives_one_that_fails(
    runs: list[Path], speech_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert all((path / "report.html").stat().st_size > 1_000_000 for path in runs)
    samples = SamplesConfig(every_epochs=0, prompts=1, prompt_frames=20, frames=20)
    config = dataclasses.replace(_config(speech_shards, tmp_path, "unlucky", 8), samples=samples)
    with (
        mock.patch("babble.training.samples.save_figure", lambda figure, path: path.touch()),
        mock.patch("babble.report.build_page", side_effect=KeyError("bug")),
    ):
        result = train(config)
    assert RunFolder(result.run).finished.is_file()
    assert not RunFolder(result.run).report.exists()
    assert f"Try: python -m babble.report {result.run}" in capsys.readouterr().err


def test_three_runs_with_twelve_clips_take_less_than_15_mb(page: Path, runs: list[Path]):
    rows = gather_report(runs, epochs=1)["rows"]
    assert sum(len(row["clips"]) for row in rows) == 12
    assert page.stat().st_size < 15e6


# ---- in a browser


@pytest.fixture(scope="module")
def page(runs: list[Path], sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the three runs and the sweep."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([*runs, sweep], path, epochs=1)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A Chromium without a screen, which notes errors and every request."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"),
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The browser with the page just opened."""
    with _opened(chromium, page):
        yield chromium


@contextlib.contextmanager
def _opened(chromium: webdriver.Chrome, page: Path) -> Iterator[None]:
    """Show a page on a desk, and see in the end that no error was noted and nothing was asked of a network."""
    _emulate(chromium, 1280, "light")
    # What the browser itself did as it started.
    chromium.get_log("performance")
    chromium.get(page.as_uri())
    yield
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "blob", "data"}


def _emulate(chromium: webdriver.Chrome, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    # The driver clicks where things are, not where they glide to.
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": n, "value": v} for n, v in features.items()]}
    )


def _wait(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


def _all(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def _click(browser: webdriver.Chrome, target: WebElement) -> None:
    # In the middle, as who clicks does: at the edge the explorer lies over it.
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
    target.click()


def _now(browser: webdriver.Chrome) -> float:
    return browser.execute_script("return document.querySelector('audio').currentTime")


def _cursor(browser: webdriver.Chrome, clip: int) -> float:
    left = browser.execute_script("return document.querySelectorAll('.cursor')[arguments[0]].style.left", clip)
    return float(left.removesuffix("%"))


def test_the_page_can_be_used_within_a_second(browser: webdriver.Chrome, page: Path):
    times = []
    for _ in range(3):
        browser.get(page.as_uri())
        times.append(browser.execute_script("return performance.getEntriesByName('interactive')[0].startTime"))
    # The quickest: other work may share the cores.
    assert min(times) < 1000, times


def test_all_parts_are_there(browser: webdriver.Chrome):
    titles = [title.text for title in _all(browser, "h2")]
    assert titles == ["What was run", "Listen", "Curves", "Evaluation", "Sweep"]
    first = browser.find_element(By.CSS_SELECTOR, "#runs table").text
    assert first.index("model.units 8 12 16") < first.index("weights")
    assert "unigram baseline" in browser.find_element(By.CSS_SELECTOR, "#evaluation table").text
    assert browser.execute_script("return document.querySelector('#sweep img').naturalWidth") > 1000
    assert "first was heard at epochs 2, 3; here are 3." in browser.find_element(By.ID, "listen").text


def test_what_would_leave_the_page_is_forbidden(chromium: webdriver.Chrome, page: Path):
    chromium.get(page.as_uri())
    broken = chromium.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
    )
    assert broken == "connect-src"
    chromium.get_log("browser")
    chromium.get_log("performance")


def test_a_clip_plays_while_its_cursor_moves_and_another_stops_it(browser: webdriver.Chrome):
    first, second = _all(browser, ".play")[:2]
    _click(browser, first)
    _wait(lambda: _now(browser) > 0.3)
    before = _cursor(browser, 0)
    _wait(lambda: _cursor(browser, 0) > before > 0)
    assert first.accessible_name == "Pause Real speech, as coded, prompt 1"
    _click(browser, second)
    _wait(lambda: _cursor(browser, 1) > 1)
    assert [play.accessible_name.split()[0] for play in _all(browser, ".play")[:3]] == ["Play", "Pause", "Play"]
    stopped = _cursor(browser, 0)
    assert not browser.execute_script("return document.querySelector('audio').paused")
    _click(browser, second)
    assert browser.execute_script("return document.querySelector('audio').paused")
    assert _cursor(browser, 0) == stopped


def test_hasty_clicks_end_with_the_last_clip_playing(browser: webdriver.Chrome):
    # The first as a hand does it: without one a browser plays nothing.
    _click(browser, _all(browser, ".play")[0])
    browser.execute_script("for (const n of [1, 1, 2, 0, 2]) document.querySelectorAll('.play')[n].click()")
    _wait(lambda: _cursor(browser, 2) > 0.5)
    assert len(_all(browser, ".is-playing")) == 1


def test_a_click_in_the_picture_seeks_and_play_goes_on_from_there(browser: webdriver.Chrome):
    picture = _all(browser, ".picture")[1]
    _click(browser, picture)
    assert float(picture.get_attribute("aria-valuenow") or 0) == pytest.approx(10.0, abs=0.1)
    _click(browser, _all(browser, ".play")[1])
    _wait(lambda: _now(browser) > 10.2)
    assert _cursor(browser, 1) > 50


def test_the_picture_shows_the_frames(browser: webdriver.Chrome):
    picture = _all(browser, ".picture")[0]
    browser.execute_script("arguments[0].scrollIntoView()", picture)
    dark = (
        "const shown = document.querySelector('.picture canvas'); if (shown.width < 200) return 0;"
        "const c = shown.cloneNode(); const context = c.getContext('2d', {willReadFrequently: true});"
        "context.drawImage(shown, 0, 0);"
        "const d = context.getImageData(0, arguments[0] * c.height, c.width, c.height * 0.3).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i + 3] > 128 && d[i + 2] < 100;"
        "return n / d.length;"
    )
    assert _wait(lambda: browser.execute_script(dark, 0.01)) > 0.001  # Pitch.
    assert browser.execute_script(dark, 0.6) > 0.01  # Spectrum.


def test_the_keyboard_plays_and_goes_frame_by_frame_through_the_fields(browser: webdriver.Chrome, runs: list[Path]):
    first = _all(browser, ".play")[0]
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.TAB)
    picture = browser.switch_to.active_element
    assert picture.accessible_name == "Topology in Real speech, as coded, prompt 1"
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    frames, mode = read_c2(runs[0] / "samples/real/1.c2")
    pitch, energy, lsp = pitch_hz(frames, mode), energy_db(frames, mode), lsp_hz(frames, mode)
    assert pitch is not None
    assert energy is not None
    assert lsp is not None
    voiced = int(np.flatnonzero(~np.isnan(pitch))[0])
    picture.send_keys(Keys.ARROW_RIGHT * (voiced + 2) + Keys.ARROW_LEFT * 2)
    said = browser.find_element(By.CSS_SELECTOR, ".explorer").text.split("\n")[1:]
    assert said[0].endswith(f"frame {voiced}")
    assert said[said.index("Wo") + 1 :][:2] == [f"{pitch[voiced]:.0f} Hz", f"{frames[voiced, 4]} of 127"]
    assert float(said[said.index("E") + 1].removesuffix(" dB")) == pytest.approx(energy[voiced], abs=0.06)
    assert said[said.index("lsp9") + 1] == f"{lsp[voiced, 9]:.0f} Hz"
    picture.send_keys(Keys.END)
    assert float(picture.get_attribute("aria-valuenow") or 0) == len(frames) / 25
    picture.send_keys(Keys.HOME + " ")
    _wait(lambda: _now(browser) > 0.1)
    picture.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('audio').paused")


def test_hovering_a_frame_shows_its_fields(browser: webdriver.Chrome):
    picture, explorer = _all(browser, ".picture")[2], browser.find_element(By.CSS_SELECTOR, ".explorer")
    assert explorer.text == "Point at a picture to read its frame in Hz, dB and levels."
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    ActionChains(browser).move_to_element(picture).perform()
    said = _wait(lambda: explorer.text.removeprefix("Hide\n"))
    assert said.startswith("second, epoch 3 · prompt 1 · ")
    assert 245 <= int(re.findall(r"frame (\d+)", said)[0]) <= 255
    explorer.find_element(By.CSS_SELECTOR, "button").click()
    assert not explorer.is_displayed()
    picture.click()
    assert explorer.is_displayed()


def test_blind_mode_hides_names_shuffles_and_tells_which_was_which(browser: webdriver.Chrome):
    listen = browser.find_element(By.ID, "listen")
    blind = listen.find_element(By.CSS_SELECTOR, ".tools button")
    shuffles = set()
    order = (
        "const place = (clips, shown) => clips.findIndex((clip) => clip.element === shown);"
        "return rows.map(({ players, clips }) => [...players.children].map((shown) => place(clips, shown)));"
    )
    for _ in range(4):
        _click(browser, blind)
        # Only what the page says of itself: the title of the page names its runs.
        shown = [clip.text for clip in _all(browser, ".clip")]
        names = " ".join(
            shown + [e.accessible_name for e in _all(browser, ".row:first-of-type :is(button, .picture, .clip)")]
        )
        assert not re.search(r"Real speech|coded|first|second|third|epoch", names)
        assert [clip.accessible_name for clip in _all(browser, ".clip")[:4]] == [f"Clip {x}, prompt 1" for x in "ABCD"]
        shuffles.add(json.dumps(browser.execute_script(order)))
        _click(browser, blind)
    assert len(shuffles) > 1
    assert _all(browser, ".clip")[0].accessible_name == "Real speech, as coded, prompt 1"
    _click(browser, blind)
    orders = browser.execute_script(order)
    # Right in the first row, wrong in the second.
    for row, clip in ((0, orders[0].index(0)), (1, orders[1].index(1))):
        _click(browser, _all(browser, ".row")[row].find_elements(By.CSS_SELECTOR, ".guess")[clip])
    _click(browser, listen.find_element(By.CSS_SELECTOR, "button.strong"))
    assert listen.find_element(By.CSS_SELECTOR, "[role=status]").text == (
        "You found the real voice in 1 of 2 rows; guessing finds 0.5."
    )
    (right,), (wrong,) = _all(browser, ".is-right"), _all(browser, ".is-wrong")
    letter = "ABCD"[orders[0].index(0)]
    assert right.accessible_name == f"{letter}: Real speech, as coded, prompt 1"
    assert wrong.accessible_name.endswith("first, epoch 3, prompt 2")


def test_a_blind_clip_starts_where_the_network_takes_over(browser: webdriver.Chrome):
    _click(browser, browser.find_element(By.CSS_SELECTOR, ".tools button"))
    assert [picture.get_attribute("aria-valuenow") for picture in _all(browser, ".picture")[:4]] == 4 * ["8.00"]
    _click(browser, _all(browser, ".play")[0])
    assert _wait(lambda: _now(browser)) >= PROMPT_FRAMES / 25


def test_recordings_are_left_out_where_one_listens_blind(chromium: webdriver.Chrome, runs: list[Path], tmp_path: Path):
    write_report(runs[:1], tmp_path / "report.html", 1, [SPEECH / "allison-07.ogg"])
    with _opened(chromium, tmp_path / "report.html"):
        names = [clip.accessible_name for clip in _all(chromium, ".clip")[:3]]
        assert names == [
            f"{name}, prompt 1" for name in ("Real speech, the recording", "Real speech, as coded", "first, epoch 3")
        ]
        _click(chromium, chromium.find_element(By.CSS_SELECTOR, ".tools button"))
        assert [clip.accessible_name for clip in _all(chromium, ".clip")[:3]] == [
            *("Clip A, prompt 1", "Clip B, prompt 1", "Clip A, prompt 2")
        ]
        _click(chromium, chromium.find_element(By.CSS_SELECTOR, ".tools button"))
        assert _all(chromium, ".clip")[0].accessible_name == names[0]


def test_curves_zoom_by_drag_and_show_values_and_baselines(browser: webdriver.Chrome):
    chart = _all(browser, ".chart")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    plot = _wait(lambda: chart.find_elements(By.CSS_SELECTOR, ".u-over"))[0]
    labels = [label.get_attribute("textContent") for label in chart.find_elements(By.CSS_SELECTOR, ".u-label")]
    assert labels == ["step", *RUNS, "unigram baseline", "bigram baseline"]
    ActionChains(browser).move_to_element(plot).perform()
    values = [value.text for value in chart.find_elements(By.CSS_SELECTOR, ".u-value")]
    assert all(re.fullmatch(r"[\d.,]+", value) for value in values), values
    scale = "return [charts[0].scales.x.min, charts[0].scales.x.max]"
    whole = browser.execute_script(scale)
    drag = ActionChains(browser).move_to_element_with_offset(plot, -100, 0).click_and_hold().move_by_offset(150, 0)
    drag.release().perform()
    low, high = browser.execute_script(scale)
    assert whole[0] < low < high < whole[1]
    ActionChains(browser).double_click(plot).perform()
    assert browser.execute_script(scale) == whole
    chart.send_keys("+")
    assert browser.execute_script(scale) != whole
    chart.send_keys("0" + Keys.ARROW_RIGHT)
    assert browser.execute_script(scale) == whole


def test_a_phone_stacks_the_players_and_nothing_is_wider(browser: webdriver.Chrome):
    _emulate(browser, 393, "light")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 393
    places = [clip.rect for clip in _all(browser, ".clip")[:4]]
    assert len({place["x"] for place in places}) == 1
    assert all(a["y"] + a["height"] <= b["y"] for a, b in pairwise(places))


def test_dark_where_the_reader_likes_it_dark(browser: webdriver.Chrome):
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    _emulate(browser, 1280, "dark")
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 700
    assert brightness[1] < 100


def test_text_of_a_run_is_shown_as_text(chromium: webdriver.Chrome, run: Path):
    path = run / "samples/prompts/prompts.json"
    path.write_text(json.dumps([place | {"recording": EVIL} for place in json.loads(path.read_text())]))
    evil = run.with_name("<i>{{data}}")
    run.rename(evil)
    write_report([evil], run.with_name("page.html"))
    with _opened(chromium, run.with_name("page.html")):
        assert chromium.title == "babble: <i>{{data}}"
        assert EVIL in chromium.find_element(By.CSS_SELECTOR, ".row h3").text
        assert _all(chromium, "main i, main img, main .row > b") == []


def test_a_run_without_kept_frames_plays_without_a_picture_and_says_so(chromium: webdriver.Chrome, run: Path):
    for path in run.glob("samples/[er]*/*.c2"):
        path.unlink()
    write_report([run], run / "page.html")
    with _opened(chromium, run / "page.html"):
        assert _all(chromium, ".picture canvas") == []
        assert "No picture: its frames were not kept." in _all(chromium, ".clip")[1].text
        _click(chromium, _all(chromium, ".play")[1])
        _wait(lambda: _cursor(chromium, 1) > 0.5)
