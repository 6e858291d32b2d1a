"""How much of its context a network uses: against a slow loop, and a network without memory."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from speech_samples import RATE, random_frames

from babble.codec.frames import MODES
from babble.evaluation import context as context_module
from babble.evaluation.context import measure_context
from babble.evaluation.summary import summarize_evaluation
from babble.evaluation.tables import format_evaluation
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig

SECONDS = 60


def _model(**settings: int) -> Babbler:
    """Return an untrained network whose distributions depend strongly on its input."""
    torch.manual_seed(0)
    model = (
        Babbler(ModelConfig(num_layers=1, units=8, embedding_size=8, head="categorical", **settings), MODES["1300"])
        .double()
        .eval()
    )
    for parameter in model.parameters():
        parameter.data *= 4
    return model


def _bits(model: Babbler, parts: list[np.ndarray], num_targets: int) -> float:
    """Return the bits of the last frames of joined parts, frame by frame."""
    frames = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    state, bits = None, []
    for now, following in pairwise(frames):
        hidden, state = model(now[None, None], state)
        bits.append(model.head.loss(hidden, following[None, None]).sum().item())
    return sum(bits[-num_targets:])


@torch.no_grad()
def test_reach_and_continuation_are_those_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context_module, "NUM_TRIALS", 3)
    frames, model = random_frames(SECONDS * RATE, 1), _model()
    measured = measure_context(model, [frames], seed=5)
    past, lead, target, longest = 8 * RATE, 25, 2 * RATE, 4 * RATE
    gains, is_right = [], []
    for true, other in context_module._choose_spans([frames], 16 * RATE, seed=5):
        now = 12 * RATE
        shared = true[now - lead : now + target]
        after_true = _bits(model, [true[now - lead - past : now - lead], shared], target)
        gains.append((_bits(model, [other[:past], shared], target) - after_true) / target)
        start = true[now - past : now]
        costs = [_bits(model, [start, span[now : now + longest]], longest) for span in (true, other)]
        is_right.append(costs[0] < costs[1])
    assert measured["reach"]["1"]["bits_per_frame"] == pytest.approx(np.mean(gains), rel=1e-6)
    assert measured["continuation"]["4"]["accuracy"] == np.mean(is_right)
    assert measured["reach"]["1"]["low"] < measured["reach"]["1"]["bits_per_frame"] < measured["reach"]["1"]["high"]
    assert measured["trials"] == 3


def test_a_network_without_memory_gains_nothing_and_the_spans_of_a_trial_do_not_overlap():
    model, frames = _model(), random_frames(SECONDS * RATE, 1)
    model.bypassed = frozenset({1})
    measured = measure_context(model, [frames])
    assert {row["bits_per_frame"] for row in measured["reach"].values()} == {0.0}
    numbered = np.repeat(np.arange(48 * RATE)[:, None], 16, axis=1)
    starts = context_module._choose_spans([numbered], 16 * RATE, seed=0)[:, :, 0, 0]
    assert (abs(starts[:, 0] - starts[:, 1]) >= 16 * RATE).all()
    assert starts.min() >= 0
    assert starts.max() <= 32 * RATE


def test_recordings_below_48_s_are_left_out():
    assert measure_context(_model(), [random_frames(48 * RATE - 1, 1)]) == {}


def test_table_and_summary_show_reach_and_continuation():
    row = {"low": 0.6, "high": 0.8}
    evaluation = {
        "checkpoint": "best.ckpt", "epoch": 1, "step": 2, "split": "test", "shards": "shards", "hours": 1.0,
        "recordings": ["a"], "train": {"hours": 1.0, "split_hours": 1.0, "is_sample": False}, "held_out": {},
        "baselines": {}, "mode": "1300",
        "context": {
            "reach": {"0.5": {"bits_per_frame": 0.25, **row}},
            "continuation": {"2": {"accuracy": 0.7, **row}},
            "trials": 400,
        },
    }  # fmt: skip
    table = format_evaluation(evaluation)
    assert "    0.5 s  0.250 (0.600 to 0.800)" in table
    assert "      2 s  0.700 (0.600 to 0.800)" in table
    assert summarize_evaluation(evaluation) == {
        "evaluation/test/context_reach/0.5_s": 0.25,
        "evaluation/test/continuation_accuracy/2_s": 0.7,
    }
