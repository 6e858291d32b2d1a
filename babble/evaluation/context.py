"""How much of its context a network uses: how far back, and whether it prefers the true continuation.

    context = measure_context(model, recordings)
    context["reach"]["1"]["bits_per_frame"], context["continuation"]["2"]["accuracy"]

Reach: two seconds of held-out speech are predicted twice, after the 8 s that precede them and after 8 s from elsewhere
in the same recording. Both contexts share their last LEAD seconds, so only what lies further back differs. The gain is
how many bits per frame the true context saves: the effect of words and sentences, not of the sound before.

Continuation: after 8 s of held-out speech, is the true continuation likelier than one from elsewhere in the recording?
The joint alone separates the two, so the accuracy of a frame model is far above chance; compare it between models.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from babble.codec.frames import Mode
from babble.model.babbler import Babbler

CONTEXT_SECONDS = 8.0
LEAD_SECONDS = (0.12, 0.5, 1.0, 4.0)
TARGET_SECONDS = 2.0
CONTINUATION_SECONDS = (1, 2, 4)
NUM_TRIALS = 400
TRIALS_PER_BATCH = 100


def measure_context(model: Babbler, recordings: Sequence[np.ndarray], seed: int = 0) -> dict[str, Any]:
    """Return the gain of the true context by lead, and the accuracy of choosing the true continuation by its length.

    Args:
        model: a network whose head has a likelihood.
        recordings: held-out frames (T, F), one array per recording; those of less than 48 s are left out.
        seed: random seed of the 400 trials, which are the same for every network.

    Returns:
        "reach": by lead in seconds "bits_per_frame", the mean gain, and its 95 % interval "low" and "high";
        "continuation": by length in seconds "accuracy" (0.5 = chance), "low" and "high"; "trials", their number.
        Empty if all recordings are too short.
    """
    mode = model.mode
    context, target = _count_frames(CONTEXT_SECONDS, mode), _count_frames(TARGET_SECONDS, mode)
    leads = [_count_frames(seconds, mode) for seconds in LEAD_SECONDS]
    lengths = [_count_frames(seconds, mode) for seconds in CONTINUATION_SECONDS]
    span = context + max(leads) + max(lengths)
    pairs = _choose_spans(recordings, span, seed)
    if not len(pairs):
        return {}
    true, other = torch.from_numpy(pairs[:, 0].astype(np.int64)), torch.from_numpy(pairs[:, 1].astype(np.int64))
    # Both kinds of trial predict what follows this frame.
    now = context + max(leads)
    reach = {}
    for seconds, lead in zip(LEAD_SECONDS, leads, strict=True):
        shared = true[:, now - lead : now + target]
        after_true = _sum_bits(model, torch.cat([true[:, now - lead - context : now - lead], shared], 1), [target])
        after_other = _sum_bits(model, torch.cat([other[:, :context], shared], 1), [target])
        gain = (after_other - after_true)[:, 0] / target
        reach[f"{seconds:g}"] = {"bits_per_frame": float(gain.mean()), **_interval(gain)}
    start = true[:, now - context : now]
    bits_true = _sum_bits(model, torch.cat([start, true[:, now : now + max(lengths)]], 1), lengths)
    bits_other = _sum_bits(model, torch.cat([start, other[:, now : now + max(lengths)]], 1), lengths)
    is_right = (bits_true < bits_other) + 0.5 * (bits_true == bits_other)
    continuation = {
        f"{seconds:g}": {"accuracy": float(right.mean()), **_interval(right)}
        for seconds, right in zip(CONTINUATION_SECONDS, is_right.T, strict=True)
    }
    return {"reach": reach, "continuation": continuation, "trials": len(pairs)}


def _count_frames(seconds: float, mode: Mode) -> int:
    return round(seconds * mode.frames_per_second)


def _choose_spans(recordings: Sequence[np.ndarray], span: int, seed: int) -> np.ndarray:
    """Return pairs of spans that do not overlap, both from one recording: (trials, 2, span, F)."""
    long = [frames for frames in recordings if len(frames) >= 3 * span]
    if not long:
        return np.empty((0, 2, span, 0), np.uint8)
    rng = np.random.default_rng(seed)
    shares = np.array([len(frames) for frames in long]) / sum(map(len, long))
    pairs = []
    for which in rng.choice(len(long), NUM_TRIALS, p=shares):
        frames = long[which]
        starts = np.arange(len(frames) - span + 1)
        first = rng.choice(starts)
        second = rng.choice(starts[abs(starts - first) >= span])
        pairs.append(np.stack([frames[first : first + span], frames[second : second + span]]))
    return np.stack(pairs)


@torch.inference_mode()
def _sum_bits(model: Babbler, frames_BTF: Tensor, lengths: Sequence[int]) -> np.ndarray:
    """Return the bits of the first frames after the context, for each of these lengths: (trials, lengths)."""
    num_targets = max(lengths)
    sums = []
    for batch_BTF in frames_BTF.to(model.device).split(TRIALS_PER_BATCH):
        hidden_BTH, _ = model(batch_BTF[:, :-1])
        bits_BT = model.head.loss(hidden_BTH[:, -num_targets:], batch_BTF[:, -num_targets:]).sum(dim=-1).double()
        sums.append(bits_BT.cumsum(dim=1)[:, [length - 1 for length in lengths]])
    return torch.cat(sums).cpu().numpy()


def _interval(values: np.ndarray) -> dict[str, float]:
    """Return the 95 % interval of a mean over independent trials."""
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    return {"low": float(values.mean()) - half, "high": float(values.mean()) + half}
