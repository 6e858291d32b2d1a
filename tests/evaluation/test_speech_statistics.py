"""Each measure against a value by hand or a slow loop; the statistics as a whole in every mode."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from paths import SPEECH, TALE

from babble.codec.codec2 import encode_pcm, read_c2cb
from babble.codec.frames import MODES, Mode, energy_db, pitch_hz, unpack_packets
from babble.evaluation.speech_statistics import (
    CLIP_SECONDS,
    REAL,
    ROWS,
    PhoneCounter,
    babble_markov,
    copied_shares,
    count_alarms,
    cut_clips,
    find_pause_db,
    format_statistics,
    frechet_distance,
    measure_clip,
    measure_drift,
    measure_speech,
    shuffle_frames,
)

MODE = MODES["1300"]
RATE = MODE.frames_per_second
V, WO, E, LSP = 0, 4, 5, 6


def make_speech(frames: int, mode: Mode, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.minimum(mode.levels, 6), (frames, mode.num_fields)).astype(mode.dtype)


def speak(seconds: int) -> np.ndarray:
    """Return pcm of real speech."""
    import soundfile

    pcm, _ = soundfile.read(SPEECH / "allison-01.ogg", frames=seconds * 8000, dtype="int16")
    return pcm


def read_tale(part: int) -> np.ndarray:
    if not TALE.is_dir():
        pytest.skip("the Tale corpus is not at hand")
    return read_c2cb(TALE / f"part-{part:02}.c2cb", MODE)


def test_change_and_repetition_equal_a_slow_loop():
    frames = make_speech(50, MODE, 1)
    frames[10:13] = frames[9]
    steps = list(itertools.pairwise(frames.astype(int).tolist()))
    measures = measure_clip(frames, MODE, 0.0)
    fields = [(a, b) for before, after in steps for a, b in zip(before, after, strict=True)]
    assert measures["change_levels"] == pytest.approx(sum(abs(a - b) for a, b in fields) / len(fields))
    assert measures["changed_fields"] == pytest.approx(sum(a != b for a, b in fields) / len(fields))
    assert measures["repeated_frames"] == pytest.approx(3 / 49)


def test_pauses_are_counted_by_hand():
    frames = np.zeros((100, MODE.num_fields), np.uint8)
    frames[:, E] = 20
    # 0.4 s, 1.2 s, and a dip of 0.16 s that is none.
    frames[10:20, E] = frames[30:60, E] = frames[70:74, E] = 0
    measures = measure_clip(frames, MODE, pause_db=5.0)
    assert measures["pauses"] == pytest.approx(0.4)
    assert measures["pause_median_s"] == pytest.approx(0.8)
    assert measures["pause_longest_s"] == pytest.approx(1.2)
    energy = np.where(np.isin(np.arange(100), [*range(10, 20), *range(30, 60), *range(70, 74)]), -10, 21.25)
    assert measures["energy_db"] == pytest.approx(energy.mean())
    assert measures["energy_spread_db"] == pytest.approx(energy.std())


def test_voiced_runs_are_counted_in_sub_frames():
    frames = np.zeros((10, MODE.num_fields), np.uint8)
    frames[1, 2:4] = frames[2, 0:4] = frames[3, 0] = 1
    frames[6, 1] = 1
    measures = measure_clip(frames, MODE, 0.0)
    assert measures["voiced"] == pytest.approx(8 / 40)
    assert measures["voiced_run_median_s"] == pytest.approx((0.07 + 0.01) / 2)
    assert measures["voiced_run_longest_s"] == pytest.approx(0.07)


def test_pitch_is_measured_where_it_is_voiced():
    frames = make_speech(60, MODE, 2)
    frames[:, WO] = np.random.default_rng(3).integers(10, 120, 60)
    semitones = [12 * math.log2(hz) if hz == hz else None for hz in pitch_hz(frames, MODE)]
    steps = [abs(a - b) for a, b in itertools.pairwise(semitones) if a is not None and b is not None]
    known = sorted(pitch for pitch in semitones if pitch is not None)
    measures = measure_clip(frames, MODE, 0.0)
    assert measures["pitch_step_semitones"] == pytest.approx(sum(steps) / len(steps))
    assert measures["pitch_range_semitones"] == pytest.approx(np.percentile(known, 95) - np.percentile(known, 5))
    assert 12 * math.log2(measures["pitch_hz"]) == pytest.approx(np.median(known))


def test_disordered_lsps_are_counted():
    frames = np.zeros((8, MODE.num_fields), np.uint8)
    # The first LSP above the second: 225 + 15 * 25 Hz and 325 Hz.
    frames[[2, 5], LSP] = 15
    assert measure_clip(frames, MODE, 0.0)["lsp_disorder"] == pytest.approx(2 / 8)


def test_a_voiceless_clip_has_no_pitch():
    measures = measure_clip(np.zeros((50, MODE.num_fields), np.uint8), MODE, 0.0)
    assert math.isnan(measures["pitch_hz"])
    assert measures["voiced_run_longest_s"] == 0


def test_pauses_are_told_from_speech_halfway():
    frames = np.zeros((100, MODE.num_fields), np.uint8)
    frames[50:, E] = 16
    assert find_pause_db([frames[:30], frames[30:]], MODE) == pytest.approx((-10 + 15) / 2)
    assert find_pause_db([np.zeros((5, MODES["1200"].num_fields), np.uint16)], MODES["1200"]) is None


def test_shuffled_frames_are_the_same_frames():
    frames = make_speech(200, MODE, 4)
    shuffled = shuffle_frames(frames, np.random.default_rng(0))
    assert not np.array_equal(shuffled, frames)
    assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, frames.tolist()))


@pytest.mark.parametrize("mode", [MODES["1300"], MODES["1200"]], ids=lambda mode: mode.name)
def test_a_markov_chain_repeats_the_frequencies_of_transitions(mode: Mode):
    rng = np.random.default_rng(5)
    train = [np.minimum(make_speech(400, mode, seed), 2) for seed in (6, 7)]
    # A field that repeats itself, and a level that nothing follows.
    train[0][:, -1] = train[1][:, -1] = np.repeat(rng.integers(0, 3, 100), 4)
    train[1][-1, -2] = 3
    frames = babble_markov(train, 40_000, mode, rng)
    assert frames.shape == (40_000, mode.num_fields)
    assert frames.dtype == mode.dtype

    def chances(recordings: list[np.ndarray], f: int) -> np.ndarray:
        counts = np.zeros((4, 4))
        for recording in recordings:
            for now, after in itertools.pairwise(recording[:, f].tolist()):
                counts[now, after] += 1
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    for f in range(mode.num_fields):
        # Four standard errors of a chance of a half over a fifth of the frames.
        np.testing.assert_allclose(chances([frames], f)[:3, :3], chances(train, f)[:3, :3], atol=4 * 0.5 / 8000**0.5)


def test_the_distance_of_gaussians_is_the_known_one():
    mode = MODES["700C"]
    rng = np.random.default_rng(8)

    def draw(mean: float, deviation: float) -> list[np.ndarray]:
        frames = np.zeros((200_000, mode.num_fields))
        frames[:, 2] = frames[:, 3] = 30 + rng.normal(0, 1, 200_000)
        frames[:, 2] = mean + deviation * rng.normal(0, 1, 200_000)
        return [frames]

    # Energy alone differs. In units of the reference's deviation (its differences have root 2 times that) the mean is
    # moved by 1.5, and the deviations of level and of differences are twice those of the reference. Source: the
    # Frechet distance of Gaussians that commute is the sum of the squared differences of means and deviations along
    # their axes; white noise and its differences have a correlation matrix of trace 3.
    distance = frechet_distance(draw(45, 20), draw(30, 10), mode)
    assert distance == pytest.approx(1.5**2 + 3 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(draw(30, 10), draw(30, 10), mode) == pytest.approx(0, abs=1e-3)


def test_copies_are_found_and_speech_is_none():
    train = [make_speech(400, MODE, seed) for seed in (9, 10)]
    train = [
        frames | (np.arange(16) >= LSP) * 8 * (np.random.default_rng(1).integers(0, 2, frames.shape))
        for frames in train
    ]
    train = [np.minimum(frames, MODE.levels - 1).astype(np.uint8) for frames in train]
    rng = np.random.default_rng(11)
    fresh = rng.integers(0, MODE.levels, (100, MODE.num_fields)).astype(np.uint8)
    half = np.concatenate([fresh[:50], train[1][100:150]])
    # The same quarters, other levels; and another pitch and energy.
    close = train[0][50:150] ^ np.array([0] * 4 + [1, 1] + [1] * 8 + [0, 0], np.uint8)
    shares = copied_shares({"copy": [train[0][20:90]], "fresh": [fresh], "half": [half], "close": [close]}, train, MODE)
    # Of 93 passages of 8 frames the last 43 lie within the copy.
    assert shares == {"copy": 1.0, "fresh": 0.0, "half": pytest.approx(43 / 93), "close": pytest.approx(1.0)}


def test_alarms_and_the_time_they_last_are_counted():
    tone = np.tile(unpack_packets(encode_pcm(speak(2), MODE), MODE)[20:21], (20 * RATE, 1))
    tone[:, E] = 20
    babble = make_speech(20 * RATE, MODE, 12)
    babble[:, E] += 15
    alarms, failing = count_alarms([tone, babble], MODE)
    assert alarms == {"silence": 0, "tone": 1, "pulse": 0, "loop": 0}
    # From the fifth second on it is noticed, in one of two recordings.
    assert failing == pytest.approx(16 / 40)


def test_drift_is_the_slope_over_minutes():
    frames = make_speech(4 * 60 * RATE + 100, MODE, 13)
    for minute in range(5):
        frames[minute * 60 * RATE : (minute + 1) * 60 * RATE, E] = 4 + 2 * minute
    drift = measure_drift(frames, MODE, 0.0)
    assert drift["energy_db"]["per_minute"] == pytest.approx(2 * 50 / 32)
    assert drift["energy_db"]["last_minus_first"] == pytest.approx(3 * 2 * 50 / 32)
    assert abs(drift["change_levels"]["per_minute"]) < 0.02


def test_clips_are_whole():
    clips = cut_clips([np.arange(25)[:, None], np.arange(9)[:, None]], 10)
    assert [clip[0, 0] for clip in clips] == [0, 10]
    assert [len(clip) for clip in clips] == [10, 10]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_battery_runs_in_every_mode_and_names_what_it_leaves_out(mode: Mode):
    rate = mode.frames_per_second
    frames = unpack_packets(encode_pcm(np.tile(speak(30), 5), mode), mode)
    held = np.resize(frames[rate : rate + 1], (130 * rate, mode.num_fields))
    rng = np.random.default_rng(0)
    speech = {
        REAL: [frames],
        "babble": [held],
        "shuffled frames": [shuffle_frames(frames[: 40 * rate], rng)],
        "Markov chain": [babble_markov([frames], 40 * rate, mode, rng)],
    }
    result = measure_speech(speech, [frames], mode, phone_seconds=0, seed=0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    table = format_statistics(result)
    assert max(map(len, table.splitlines())) <= 120
    shown = {*result["measures"], *result["sets"]}
    assert shown | {*result["left_out"], *result["missing"]} == {*ROWS}
    assert not shown & {*result["left_out"], *result["missing"]}
    assert ("energy_db" in shown) == (energy_db(frames, mode) is not None)
    assert all(name in table for name in result["left_out"])
    assert not result["within"]["changed_fields"]["babble"]
    assert result["within"]["repeated_frames"] == {"babble": False, "shuffled frames": True, "Markov chain": True}
    assert result["sets"]["failing"]["babble"] > 0.9
    assert result["sets"]["alarms_per_ten_minutes"][REAL] == 0
    assert result["sets"]["copied"][REAL] == 1
    assert result["clip_seconds"] == CLIP_SECONDS
    assert {*result["drift"]} == {REAL, "babble"}


def test_what_the_battery_judges_by_has_to_be_there():
    with pytest.raises(ValueError, match=REAL):
        measure_speech({"babble": [make_speech(100, MODE, 0)]}, [make_speech(100, MODE, 0)], MODE, 0, 0)
    with pytest.raises(ValueError, match="10 frames is too short"):
        measure_speech({REAL: [make_speech(10, MODE, 0)]}, [make_speech(100, MODE, 0)], MODE, 0, 0)


def test_phones_that_nobody_can_count_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    frames = make_speech(50, MODE, 0)
    result = measure_speech({REAL: [frames]}, [frames], MODE, phone_seconds=1, seed=0)
    assert "pocketsphinx" in result["missing"]["phones_per_second"]
    assert "pocketsphinx" in format_statistics(result)


def test_phones_are_counted_at_the_rate_of_speech():
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed (the extra `listen`)")
    pcm, counter = speak(20), PhoneCounter()
    first = counter.count_phones(pcm)
    assert 5 < first / 20 < 10
    assert counter.count_phones(np.zeros(8000 * 4, np.int16)) == 0
    # The decoder carries nothing from clip to clip.
    assert counter.count_phones(pcm) == pytest.approx(first, abs=2)


def test_the_tale_has_its_known_change():
    frames = read_tale(13)
    clips = [measure_clip(clip, MODE, 0.0) for clip in cut_clips([frames], CLIP_SECONDS * RATE)]
    assert np.mean([clip["change_levels"] for clip in clips]) == pytest.approx(2.40, abs=0.01)
    assert np.mean([clip["lsp_disorder"] for clip in clips]) == pytest.approx(0.0003, abs=0.0002)
    assert copied_shares({"13": [frames]}, [read_tale(12)], MODE) == {"13": 0.0}
