"""The measures and their baselines, against slow loops and the figures known of the Tale."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from babble.codec import read_c2cb
from babble.evaluate import PSEUDO_COUNT, EvaluateConfig, evaluate, format_table, measure_baselines, training_error_2017
from babble.frames import MODES
from babble.model import Babbler, ModelConfig
from babble.module import BabbleModule, OptimConfig
from babble.run import RunFolder

MODE = MODES["1300"]
TALE = Path(__file__).parent.parent.parent / "shared" / "corpora" / "tale-of-two-cities"


def _speech(frames: int, random_seed: int) -> np.ndarray:
    rng = np.random.default_rng(random_seed)
    return rng.integers(0, np.minimum(MODE.levels, 5), (frames, MODE.num_fields)).astype(np.uint8)


def test_baselines_equal_a_slow_loop():
    train, held_out = [_speech(300, 1), _speech(50, 2)], [_speech(40, 3), _speech(30, 4)]
    steps = [(now, after) for r in held_out for now, after in itertools.pairwise(r)]
    copied = np.mean([np.abs(after.astype(int) - now).mean() for now, after in steps])
    bits = errors = 0.0
    for f, levels in enumerate(MODE.levels.tolist()):
        seen = Counter((int(a), int(b)) for r in train for a, b in zip(r[:-1, f], r[1:, f], strict=True))
        for now, after in steps:
            row = np.array([seen[int(now[f]), level] + PSEUDO_COUNT for level in range(levels)])
            p = row / row.sum()
            bits -= math.log2(p[after[f]])
            median = next(level for level in range(levels) if p[: level + 1].sum() >= 0.5)
            errors += abs(int(after[f]) - median) / MODE.num_fields
    found = measure_baselines(train, held_out, MODE)
    assert found["the last frame copied"]["error_levels"] == pytest.approx(copied)
    assert found["frequencies given the last level"]["bits_per_frame"] == pytest.approx(bits / len(steps))
    assert found["the median given the last level"]["error_levels"] == pytest.approx(errors / len(steps))


def test_the_known_baselines_of_the_tale():
    if not TALE.is_dir():
        pytest.skip("the Tale corpus is not at hand")
    parts = {number: read_c2cb(TALE / f"part-{number:02d}.c2cb", MODE) for number in (*range(1, 13), 14)}
    found = measure_baselines([parts[number] for number in range(1, 13)], [parts[14]], MODE)
    assert round(found["the last frame copied"]["error_levels"], 3) == 2.355
    assert round(found["the median given the last level"]["error_levels"], 3) == 2.154
    assert round(found["each field's frequencies"]["bits_per_frame"], 2) == 43.99
    assert round(found["frequencies given the last level"]["bits_per_frame"], 2) == 38.53


@torch.no_grad()
def test_the_2017_training_error_is_that_of_the_last_frame_of_windows():
    torch.manual_seed(0)
    model = Babbler(ModelConfig(num_layers=1, units=4, head="regression"), MODE)
    recordings = [_speech(30, 1), _speech(8, 2), _speech(20, 3)]
    by_hand = []
    for frames in recordings:
        for first in range(len(frames) - 10):
            window = torch.from_numpy(frames[first : first + 11].astype(np.int64))[None]
            guess = model.typed_head.guess(model(window[:, :-1])[0][:, -1])
            by_hand.append((guess - window[:, -1]).abs().mean().item())
    assert training_error_2017(model, recordings, 1000, 10) == pytest.approx(np.mean(by_hand), rel=1e-5)


@pytest.mark.parametrize("head", ["regression", "categorical"])
def test_a_run_is_measured_on_the_split_that_is_named(head: str, speech_shards: Path, tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.claim({"data": {"shards": str(speech_shards)}})
    torch.manual_seed(0)
    module = BabbleModule(ModelConfig(num_layers=1, units=4, head=head), MODE, OptimConfig())
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "epoch": 1,
            "global_step": 2,
        },
        run.checkpoint("best"),
    )
    figures = evaluate(
        EvaluateConfig(run=run.path, split="test", training_windows=20, window_frames=30, json=tmp_path / "f.json")
    )
    assert figures["recordings"] == ["allison-08"]
    assert figures["hours"] == pytest.approx(20 / 3600)
    assert ("bits_per_frame" in figures["held_out"]) == (head == "categorical")
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    table = format_table(figures)
    assert f"{figures['held_out']['error_levels']:8.3f}  this network" in table
    assert "no result" in table


def test_the_training_split_is_no_result():
    with pytest.raises(ValueError, match="validation or test"):
        EvaluateConfig(run=Path("x"), split="train")
