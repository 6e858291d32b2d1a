"""`babble play` through a real PortAudio, whose sound goes to a file, and with the keys of a real terminal."""

import ctypes.util
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from babble.play import DOWN, UP, PlayConfig, play, press


def start(
    folder: Path, *words: str, stdin: int = subprocess.DEVNULL, device: str | None = "played.raw"
) -> subprocess.Popen[str]:
    """Start the command with an audio device that writes to a file in FOLDER, or without one."""
    (folder / "alsa.conf").write_text(
        f'pcm.!default {{ type file slave.pcm null file "{folder / device}" format raw }}\npcm.null {{ type null }}\n'
        "ctl.!default { type hw card 0 }\n"
        if device
        else "pcm.!default { type hw card 99 }\n"
    )
    command = [sys.executable, "-m", "babble", "play", *words]
    environment = {**os.environ, "ALSA_CONFIG_PATH": str(folder / "alsa.conf")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def portaudio() -> None:
    """Skip without the library, which the wheels for Linux do not bring."""
    if not ctypes.util.find_library("portaudio"):
        pytest.skip("no PortAudio here (libportaudio2)")


@pytest.mark.usefixtures("portaudio")
def test_keys_change_the_temperature_and_end_it(tmp_path: Path) -> None:
    terminal, stdin = pty.openpty()
    process = start(tmp_path, "--temperature", "0.9", stdin=stdin)
    assert process.stdout
    assert process.stdout.readline() == "Playing bundled voice. Up, down: temperature. Space: pause. q: end.\n"
    for keys, line in ((UP, "temperature 0.95\n"), (DOWN, "temperature 0.9\n"), (DOWN, "temperature 0.85\n")):
        os.write(terminal, keys.encode())
        assert process.stdout.readline() == line
    # A key that is held down.
    os.write(terminal, (2 * UP + "x" + UP).encode())
    assert [process.stdout.readline() for _ in range(3)] == [f"temperature {t}\n" for t in ("0.9", "0.95", "1")]
    while (tmp_path / "played.raw").stat().st_size < 2 * 8000 * 5:
        time.sleep(0.1)
    os.write(terminal, b" ")
    time.sleep(0.3)
    os.write(terminal, b"q")
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert np.abs(np.fromfile(tmp_path / "played.raw", "<i2")).max() > 1000, "silence"
    os.close(terminal)
    os.close(stdin)


@pytest.mark.usefixtures("portaudio")
def test_without_a_terminal_it_plays_until_it_is_stopped(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "Playing bundled voice.\n"
    time.sleep(0.5)
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "babble play: interrupted by Ctrl-C.\n")


@pytest.mark.usefixtures("portaudio")
def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    out, errors = start(tmp_path, device=None).communicate()
    assert out == ""
    assert errors.splitlines()[-1].startswith("babble play: no audio device: ")
    assert "babble live plays in a browser" in errors


@pytest.mark.usefixtures("portaudio")
def test_a_device_that_fails_is_told(tmp_path: Path) -> None:
    out, errors = start(tmp_path, device="/dev/full").communicate()
    assert out == "Playing bundled voice.\n"
    assert errors.splitlines()[-1].startswith("babble play: the audio device failed: Unanticipated host error")


def test_a_temperature_without_effect_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"--temperature 0\.5 has no effect: the regression head"):
        play(PlayConfig(runs / "drone", temperature=0.5))


def test_the_temperature_stays_in_its_range() -> None:
    assert [press(key, 1.0) for key in (UP, DOWN, "x", "")] == [1.05, 0.95, 1.0, 1.0]
    assert (press(UP, 2.0), press(DOWN, 0.1)) == (2.0, 0.1)
    with pytest.raises(ValueError, match="--temperature 3: must be from"):
        PlayConfig(temperature=3)
