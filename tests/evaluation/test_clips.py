"""Clips: how they are cut, and each statistic against a value by hand or a slow loop."""

import itertools
import math

import numpy as np
import pytest
from speech_samples import LSP, MODE, RATE, WO, E, random_frames, read_tale

from babble.codec.frames import MODES, pitch_hz
from babble.evaluation.clips import cut_clips, find_pause_db, measure_clip, pick_segments
from babble.evaluation.speech_statistics import CLIP_SECONDS


def test_clips_have_equal_length():
    clips = cut_clips([np.arange(25)[:, None], np.arange(9)[:, None]], 10)
    assert [clip[0, 0] for clip in clips] == [0, 10]
    assert [len(clip) for clip in clips] == [10, 10]


def test_segments_come_from_all_recordings_and_never_cross_two():
    recordings = [np.arange(100 * r, 100 * r + length)[:, None] for r, length in enumerate((35, 9, 40))]
    assert [len(s) for s in pick_segments(recordings, 10, 1000, 3, 0)] == [10, 10, 10, 5, 9, 10, 10, 10, 10]
    assert [len(s) for s in pick_segments(recordings, 10, 1000, 7, 0)] == [10, 10, 10, 9, 10, 10, 10, 10]
    # If most segments are shorter than min_frames, the shorter half is dropped instead.
    assert [len(s) for s in pick_segments(recordings, 40, 1000, 38, 0)] == [35, 40]
    few = pick_segments(recordings, 10, 40, 3, 0)
    assert 4 <= len(few) <= 5
    assert [s[0, 0] for s in few] == sorted(s[0, 0] for s in few)
    assert all(np.all(np.diff(s[:, 0]) == 1) for s in few)


def test_change_and_repetition_equal_a_slow_loop():
    frames = random_frames(50, 1)
    frames[10:13] = frames[9]
    steps = list(itertools.pairwise(frames.astype(int).tolist()))
    statistics = measure_clip(frames, MODE, 0.0)
    fields = [(a, b) for before, after in steps for a, b in zip(before, after, strict=True)]
    assert statistics["change_levels"] == pytest.approx(sum(abs(a - b) for a, b in fields) / len(fields))
    assert statistics["changed_fields"] == pytest.approx(sum(a != b for a, b in fields) / len(fields))
    assert statistics["repeated_frames"] == pytest.approx(3 / 49)


def test_pauses_are_counted_by_hand():
    frames = np.zeros((100, MODE.num_fields), np.uint8)
    frames[:, E] = 20
    # Pauses of 0.4 s and 1.2 s, and a dip of 0.16 s that does not count.
    frames[10:20, E] = frames[30:60, E] = frames[70:74, E] = 0
    statistics = measure_clip(frames, MODE, pause_db=5.0)
    assert statistics["pauses"] == pytest.approx(0.4)
    assert statistics["pause_median_s"] == pytest.approx(0.8)
    assert statistics["pause_longest_s"] == pytest.approx(1.2)
    energy = np.where(np.isin(np.arange(100), [*range(10, 20), *range(30, 60), *range(70, 74)]), -10, 21.25)
    assert statistics["energy_db"] == pytest.approx(energy.mean())
    assert statistics["energy_spread_db"] == pytest.approx(energy.std())


def test_voiced_runs_are_counted_in_sub_frames():
    frames = np.zeros((10, MODE.num_fields), np.uint8)
    frames[1, 2:4] = frames[2, 0:4] = frames[3, 0] = 1
    frames[6, 1] = 1
    statistics = measure_clip(frames, MODE, 0.0)
    assert statistics["voiced"] == pytest.approx(8 / 40)
    assert statistics["voiced_run_median_s"] == pytest.approx((0.07 + 0.01) / 2)
    assert statistics["voiced_run_longest_s"] == pytest.approx(0.07)


def test_pitch_is_measured_in_voiced_frames_only():
    frames = random_frames(60, 2)
    frames[:, WO] = np.random.default_rng(3).integers(10, 120, 60)
    semitones = [12 * math.log2(hz) if hz == hz else None for hz in pitch_hz(frames, MODE)]
    steps = [abs(a - b) for a, b in itertools.pairwise(semitones) if a is not None and b is not None]
    known = sorted(pitch for pitch in semitones if pitch is not None)
    statistics = measure_clip(frames, MODE, 0.0)
    assert statistics["pitch_step_semitones"] == pytest.approx(sum(steps) / len(steps))
    assert statistics["pitch_range_semitones"] == pytest.approx(np.percentile(known, 95) - np.percentile(known, 5))
    assert 12 * math.log2(statistics["pitch_hz"]) == pytest.approx(np.median(known))


def test_disordered_lsps_are_counted():
    frames = np.zeros((8, MODE.num_fields), np.uint8)
    # The first LSP above the second: 225 + 15 * 25 Hz and 325 Hz.
    frames[[2, 5], LSP] = 15
    assert measure_clip(frames, MODE, 0.0)["lsp_disorder"] == pytest.approx(2 / 8)


def test_an_unvoiced_clip_has_no_pitch():
    statistics = measure_clip(np.zeros((50, MODE.num_fields), np.uint8), MODE, 0.0)
    assert math.isnan(statistics["pitch_hz"])
    assert statistics["voiced_run_longest_s"] == 0


def test_the_energy_of_pauses_is_midway_between_quiet_and_loud():
    frames = np.zeros((100, MODE.num_fields), np.uint8)
    frames[50:, E] = 16
    assert find_pause_db([frames[:30], frames[30:]], MODE) == pytest.approx((-10 + 15) / 2)
    assert find_pause_db([np.zeros((5, MODES["1200"].num_fields), np.uint16)], MODES["1200"]) is None


def test_the_tale_has_its_known_change():
    clips = [measure_clip(clip, MODE, 0.0) for clip in cut_clips([read_tale(13)], CLIP_SECONDS * RATE)]
    assert np.mean([clip["change_levels"] for clip in clips]) == pytest.approx(2.40, abs=0.01)
    assert np.mean([clip["lsp_disorder"] for clip in clips]) == pytest.approx(0.0003, abs=0.0002)
