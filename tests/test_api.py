"""babble from Python: what a notebook does with a voice, recordings and frames."""

import base64
import io
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT, SPEECH
from PIL import Image

import babble
from babble.codec.codec2 import read_c2
from babble.codec.frames import get_mode
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.run_folder import RunFolder

MODE = get_mode("1300")


@pytest.fixture(scope="module")
def voice() -> babble.Voice:
    return babble.load()


@pytest.fixture(scope="module")
def speech(voice: babble.Voice) -> babble.Speech:
    return voice.generate(seconds=3, seed=1)


def test_generated_speech_has_the_length_that_was_asked_for(speech: babble.Speech) -> None:
    assert (speech.frames.shape, speech.pcm.shape, speech.pcm.dtype) == ((75, 16), (24_000,), np.int16)
    assert (speech.rate_hz, speech.seconds) == (8000, 3.0)
    assert np.abs(speech.pcm).max() > 1000, "silence"


def test_the_same_seed_gives_the_same_speech(voice: babble.Voice, speech: babble.Speech) -> None:
    # Two decodes of the same frames differ: Codec 2 draws the phase of unvoiced sound.
    assert (voice.generate(seconds=3, seed=1).frames == speech.frames).all()
    assert (voice.generate(seconds=3, seed=2).frames != speech.frames).any()
    assert (voice.generate(seconds=3, seed=1, temperature=0.5).frames != speech.frames).any()


def test_a_stream_gives_the_same_frames_block_by_block(voice: babble.Voice, speech: babble.Speech) -> None:
    stream = voice.stream(seed=1)
    blocks = [next(stream), next(stream)]
    assert (np.concatenate([block.frames for block in blocks])[:75] == speech.frames).all()
    assert all(len(block.pcm) == 320 * len(block.frames) for block in blocks)


def test_a_prompt_may_be_a_recording_frames_or_speech(voice: babble.Voice) -> None:
    path = SPEECH / "allison-01.ogg"
    frames = babble.encode(path)
    after_path = voice.generate(seconds=0.4, prompt=path)
    assert str(path) in after_path.title
    assert (voice.generate(seconds=0.4, prompt=frames).frames == after_path.frames).all()
    assert (voice.generate(seconds=0.4, prompt=str(path)).frames == after_path.frames).all()
    assert len(voice.generate(seconds=0.4, prompt=after_path).frames) == 10


def test_saved_speech_is_read_back(speech: babble.Speech, tmp_path: Path) -> None:
    speech.save(tmp_path / "a" / "out.wav")
    speech.save(str(tmp_path / "out.c2"))
    with wave.open(str(tmp_path / "a" / "out.wav")) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.readframes(24_000)) == (8000, 1, speech.pcm.tobytes())
    assert (read_c2(tmp_path / "out.c2")[0] == speech.frames).all()
    assert (babble.encode(tmp_path / "out.c2") == speech.frames).all()
    with pytest.raises(ValueError, match=r"out\.mp3: the name must end in \.wav or \.c2"):
        speech.save(tmp_path / "out.mp3")


def test_a_notebook_shows_a_player_and_a_picture(speech: babble.Speech) -> None:
    sound, image = re.findall(r'src="data:[a-z/]+;base64,([^"]+)"', speech._repr_html_())
    with wave.open(io.BytesIO(base64.b64decode(sound))) as wav:
        assert wav.getnframes() == 24_000
    assert Image.open(io.BytesIO(base64.b64decode(image))).width == 1400
    assert repr(speech) == "Speech(title='bundled voice, after silence')"


def test_decoded_frames_of_a_recording_have_its_length() -> None:
    frames = babble.encode(SPEECH / "allison-01.ogg")
    pcm = babble.decode(frames)
    assert (frames.shape[1], frames.dtype, pcm.shape) == (16, np.uint8, (320 * len(frames),))
    assert babble.encode(pcm).shape == frames.shape
    assert babble.encode(pcm, mode="700C").shape[1] == get_mode("700C").num_fields


def test_real_speech_is_likelier_than_noise(voice: babble.Voice) -> None:
    frames = babble.encode(SPEECH / "allison-01.ogg")[:500]
    noise = np.random.default_rng(0).integers(0, MODE.levels, (500, 16))
    assert voice.bits_per_frame(frames) < 40 < 52 < voice.bits_per_frame(noise)


def test_what_cannot_be_done_is_an_error(voice: babble.Voice, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seconds=0: must be at least 0\.04"):
        voice.generate(seconds=0)
    for endless in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"seconds={endless}: must be at least 0.04, one frame, and finite"):
            voice.generate(seconds=endless)
    with pytest.raises(ValueError, match="prompt: no frames to continue"):
        voice.generate(prompt=np.empty((0, 16), np.uint8))
    with pytest.raises(ValueError, match="prompt: frames have shape"):
        voice.generate(prompt=np.zeros((5, 15), np.uint8))
    with pytest.raises(ValueError, match="1 frames: at least two"):
        voice.bits_per_frame(np.zeros((1, 16), np.uint8))
    with pytest.raises(FileNotFoundError, match="nothing"):
        babble.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        babble.encode(tmp_path / "nothing.mp3")
    regression = babble.Voice(Babbler(ModelConfig(1, 8, head="regression"), MODE).eval(), RunFolder(tmp_path))
    with pytest.raises(ValueError, match="regression head has no likelihood"):
        regression.bits_per_frame(np.zeros((2, 16), np.uint8))


def test_importing_babble_imports_no_torch() -> None:
    code = "import sys, babble; babble.__version__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False False\n"
    with pytest.raises(AttributeError, match="'babble' has no attribute 'nothing'"):
        babble.nothing  # noqa: B018
