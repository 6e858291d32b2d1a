"""Predictors without a network against slow loops and the known figures of the Tale; intervals against the truth."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from paths import TALE

from babble.codec.codec2 import read_c2cb
from babble.codec.frames import MODES, Mode
from babble.evaluation.baselines import (
    PSEUDO_COUNT,
    bootstrap_interval,
    find_unvoiced_pitch,
    measure_baselines,
    name_bits,
    name_errors,
)

M1300 = MODES["1300"]


def _speech(frames: int, seed: int, mode: Mode = M1300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.minimum(mode.levels, 5), (frames, mode.num_fields)).astype(mode.dtype)


def test_baselines_equal_a_slow_loop():
    train, held_out = [_speech(300, 1), _speech(50, 2)], [_speech(40, 3), _speech(30, 4)]
    steps = [(now, after) for r in held_out for now, after in itertools.pairwise(r)]
    copied = np.mean([np.abs(after.astype(int) - now).mean() for now, after in steps])
    bits_F, errors, unvoiced = np.zeros(16), 0.0, 0.0
    for f, levels in enumerate(M1300.levels.tolist()):
        seen = Counter((int(a), int(b)) for r in train for a, b in zip(r[:-1, f], r[1:, f], strict=True))
        for now, after in steps:
            row = np.array([seen[int(now[f]), level] + PSEUDO_COUNT for level in range(levels)])
            p = row / row.sum()
            bits_F[f] -= math.log2(p[after[f]])
            if f == 4 and after[3] == 0:
                unvoiced -= math.log2(p[after[f]])
            median = next(level for level in range(levels) if p[: level + 1].sum() >= 0.5)
            errors += abs(int(after[f]) - median) / M1300.num_fields
    found = measure_baselines(train, held_out, M1300)
    assert found["copy baseline"]["error_levels"] == pytest.approx(copied)
    assert found["median baseline"]["error_levels"] == pytest.approx(errors / len(steps))
    given_last = found["bigram baseline"]
    assert given_last["bits_per_frame"] == pytest.approx(bits_F.sum() / len(steps))
    assert list(given_last["bits_by_field"].values()) == pytest.approx((bits_F / len(steps)).tolist())
    assert given_last["bits_per_frame_without_unvoiced_pitch"] == pytest.approx((bits_F.sum() - unvoiced) / len(steps))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_fields_and_groups_sum_to_the_total_in_every_mode(mode: Mode):
    for name, values in measure_baselines([_speech(90, 1, mode)], [_speech(60, 2, mode)], mode).items():
        assert ("bits_per_frame" in values) == ("unigram" in name)
        if "bits_per_frame" in values:
            assert sum(values["bits_by_field"].values()) == pytest.approx(values["bits_per_frame"])
            assert sum(values[f"bits/{group}"] for group in mode.groups) == pytest.approx(values["bits_per_frame"])
            has_noise = mode.name in ("3200", "1600", "1300")
            assert ("bits_per_frame_without_unvoiced_pitch" in values) == has_noise
        else:
            assert not mode.has_labels
            assert np.mean(list(values["error_by_field"].values())) == pytest.approx(values["error_levels"])


def test_the_pitch_of_a_sub_frame_is_unvoiced_where_that_sub_frame_is():
    mode = MODES["1600"]  # v0 v1 Wo_a E_a v2 v3 Wo_b E_b and LSPs
    frames = np.zeros((4, mode.num_fields), np.uint8)
    frames[:, 0] = frames[:, 4] = [1, 0, 1, 0]
    frames[:, 1], frames[:, 5] = [1, 1, 0, 0], [1, 0, 1, 0]
    found = find_unvoiced_pitch(frames, mode)
    assert found is not None
    assert found[:, 2].tolist() == [False, False, True, True]
    assert found[:, 6].tolist() == [False, True, False, True]
    assert not np.delete(found, [2, 6], axis=1).any()


def test_figures_are_named_by_field_and_group():
    costs_F = np.arange(1.0, 17)
    bits = name_bits(costs_F, 2.0, M1300)
    assert (bits["bits_per_frame"], bits["bits_per_frame_without_unvoiced_pitch"]) == (136, 134)
    assert (bits["bits/voicing"], bits["bits/pitch"], bits["bits_by_field"]["E"]) == (10, 5, 6)
    errors = name_errors(costs_F, M1300)
    assert (errors["error_levels"], errors["error/voicing"], errors["error_by_field"]["lsp9"]) == (8.5, 2.5, 16)
    assert name_errors(costs_F[:4], MODES["700C"]) == {}


def test_the_known_baselines_of_the_tale():
    if not TALE.is_dir():
        pytest.skip("the Tale corpus is not at hand")
    parts = {number: read_c2cb(TALE / f"part-{number:02d}.c2cb", M1300) for number in (*range(1, 13), 14)}
    found = measure_baselines([parts[number] for number in range(1, 13)], [parts[14]], M1300)
    assert round(found["copy baseline"]["error_levels"], 3) == 2.355
    assert round(found["median baseline"]["error_levels"], 3) == 2.154
    assert round(found["unigram baseline"]["bits_per_frame"], 2) == 43.99
    given_last = found["bigram baseline"]
    assert round(given_last["bits_per_frame"], 2) == 38.53
    assert 1.3 < given_last["bits_per_frame"] - given_last["bits_per_frame_without_unvoiced_pitch"] < 1.6


def _slow_costs(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Return costs around 5 that wander, correlated over some 20 frames, so that neighbours say little new."""
    kernel = np.exp(-np.arange(100) / 20)
    return 5 + np.convolve(rng.normal(size=num_frames + 99), kernel, mode="valid")


def test_the_interval_holds_the_truth_as_often_as_it_says_and_narrows_with_more_speech():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval([_slow_costs(rng, 8000), _slow_costs(rng, 4000)], 300) for _ in range(200)]
    held = sum(low <= 5 <= high for low, high in filter(None, intervals))
    assert 0.90 * 200 <= held <= 0.99 * 200
    # Single frames, as if each were news, would promise far too much.
    blind = [bootstrap_interval([_slow_costs(rng, 1000)], 1) for _ in range(40)]
    assert sum(low <= 5 <= high for low, high in filter(None, blind)) < 0.6 * 40
    widths = [
        np.subtract(*reversed(bootstrap_interval([_slow_costs(rng, num_frames)], 300) or (0, 0)))
        for num_frames in (12_000, 192_000)
    ]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_too_little_speech_has_no_interval():
    costs = np.random.default_rng(0).normal(size=700)
    assert bootstrap_interval([costs], 100) is None
    assert bootstrap_interval([costs, costs[:50]], 100) is not None
