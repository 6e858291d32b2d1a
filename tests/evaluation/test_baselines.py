"""Baselines against slow loops and against their known metrics on "A Tale of Two Cities"."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from speech_samples import MODE, random_frames, read_tale

from babble.codec.frames import MODES, Mode
from babble.evaluation.baselines import BIGRAM, PSEUDO_COUNT, UNIGRAM, baseline_lines, measure_baselines


def test_baselines_equal_a_slow_loop():
    train, held_out = [random_frames(300, 1), random_frames(50, 2)], [random_frames(40, 3), random_frames(30, 4)]
    steps = [(now, after) for r in held_out for now, after in itertools.pairwise(r)]
    copy = np.mean([np.abs(after.astype(int) - now).mean() for now, after in steps])
    bits_F, errors, unvoiced = np.zeros(16), 0.0, 0.0
    for f, levels in enumerate(MODE.levels.tolist()):
        seen = Counter((int(a), int(b)) for r in train for a, b in zip(r[:-1, f], r[1:, f], strict=True))
        for now, after in steps:
            row = np.array([seen[int(now[f]), level] + PSEUDO_COUNT for level in range(levels)])
            p = row / row.sum()
            bits_F[f] -= math.log2(p[after[f]])
            if f == 4 and after[3] == 0:
                unvoiced -= math.log2(p[after[f]])
            median = next(level for level in range(levels) if p[: level + 1].sum() >= 0.5)
            errors += abs(int(after[f]) - median) / MODE.num_fields
    found = measure_baselines(train, held_out, MODE)
    assert found["copy baseline"]["error_levels"] == pytest.approx(copy)
    assert found["median baseline"]["error_levels"] == pytest.approx(errors / len(steps))
    bigram = found["bigram baseline"]
    assert bigram["bits_per_frame"] == pytest.approx(bits_F.sum() / len(steps))
    assert list(bigram["bits_by_field"].values()) == pytest.approx((bits_F / len(steps)).tolist())
    assert bigram["bits_per_frame_without_unvoiced_pitch"] == pytest.approx((bits_F.sum() - unvoiced) / len(steps))


def test_lines_of_a_chart_are_named_by_metric_and_baseline():
    found = measure_baselines([random_frames(90, 1)], [random_frames(60, 2)], MODE)
    lines = baseline_lines(found)
    assert lines["baseline/bits_per_frame/bigram"] == found["bigram baseline"]["bits_per_frame"]
    assert lines["baseline/error/pitch/copy"] == found["copy baseline"]["error/pitch"]
    assert all(isinstance(value, float) for value in lines.values())


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_fields_and_groups_sum_to_the_total_in_every_mode(mode: Mode):
    for name, values in measure_baselines([random_frames(90, 1, mode)], [random_frames(60, 2, mode)], mode).items():
        assert ("bits_per_frame" in values) == (name in (UNIGRAM, BIGRAM))
        if "bits_per_frame" in values:
            assert sum(values["bits_by_field"].values()) == pytest.approx(values["bits_per_frame"])
            assert sum(values[f"bits/{group}"] for group in mode.groups) == pytest.approx(values["bits_per_frame"])
            has_noise = mode.name in ("3200", "1600", "1300")
            assert ("bits_per_frame_without_unvoiced_pitch" in values) == has_noise
        else:
            assert not mode.has_labels
            assert np.mean(list(values["error_by_field"].values())) == pytest.approx(values["error_levels"])


def test_the_known_baselines_of_the_tale():
    found = measure_baselines([read_tale(part) for part in range(1, 13)], [read_tale(14)], MODE)
    assert round(found["copy baseline"]["error_levels"], 3) == 2.355
    assert round(found["median baseline"]["error_levels"], 3) == 2.154
    assert round(found["unigram baseline"]["bits_per_frame"], 2) == 43.99
    bigram = found["bigram baseline"]
    assert round(bigram["bits_per_frame"], 2) == 38.53
    assert 1.3 < bigram["bits_per_frame"] - bigram["bits_per_frame_without_unvoiced_pitch"] < 1.6
