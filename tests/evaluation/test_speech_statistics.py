"""Statistics of sets of speech, in every mode, and their table."""

import json
import sys

import numpy as np
import pytest
from speech_samples import MODE, random_frames, real_pcm

from babble.codec.codec2 import encode_pcm
from babble.codec.frames import MODES, Mode, energy_db, unpack_packets
from babble.evaluation.references import sample_markov_chain, shuffle_frames
from babble.evaluation.speech_statistics import CLIP_SECONDS, REAL, measure_speech
from babble.evaluation.tables import STATISTICS, format_statistics


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_mode_has_its_statistics_and_names_those_omitted(mode: Mode):
    rate = mode.frames_per_second
    frames = np.tile(unpack_packets(encode_pcm(real_pcm(30), mode), mode), (5, 1))
    held = np.resize(frames[rate : rate + 1], (130 * rate, mode.num_fields))
    rng = np.random.default_rng(0)
    speech = {
        REAL: [frames],
        "babble": [held],
        "shuffled frames": [shuffle_frames(frames[: 40 * rate], rng)],
        "Markov chain": [sample_markov_chain([frames], 40 * rate, mode, rng)],
    }
    result = measure_speech(speech, [frames], mode, phone_seconds=0, seed=0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    table = format_statistics(result)
    assert max(map(len, table.splitlines())) <= 120
    shown = {*result["measures"], *result["sets"]}
    assert shown | {*result["omitted"], *result["missing"]} == {*STATISTICS}
    assert not shown & {*result["omitted"], *result["missing"]}
    assert ("energy_db" in shown) == (energy_db(frames, mode) is not None)
    assert all(name in table for name in result["omitted"])
    assert not result["within"]["changed_fields"]["babble"]
    assert result["within"]["repeated_frames"] == {"babble": False, "shuffled frames": True, "Markov chain": True}
    assert result["sets"]["time_in_alarm"]["babble"] > 0.9
    assert result["sets"]["copied"][REAL] == 1
    assert result["clip_seconds"] == CLIP_SECONDS
    assert {*result["drift"]} == {REAL, "babble"}


def test_real_speech_and_recordings_of_a_second_are_required():
    with pytest.raises(ValueError, match=f"'{REAL}' is needed"):
        measure_speech({"babble": [random_frames(100, 0)]}, [random_frames(100, 0)], MODE, 0, 0)
    with pytest.raises(ValueError, match="10 frames is too short"):
        measure_speech({REAL: [random_frames(10, 0)]}, [random_frames(100, 0)], MODE, 0, 0)


def test_a_missing_phone_recogniser_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    frames = random_frames(50, 0)
    result = measure_speech({REAL: [frames]}, [frames], MODE, phone_seconds=1, seed=0)
    assert "pocketsphinx" in result["missing"]["phones_per_second"]
    assert "pocketsphinx" in format_statistics(result)
