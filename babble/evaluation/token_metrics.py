"""Metrics of the level above the frame: how well its tokens are predicted, and what both levels spend together.

metrics = measure_tokens(model, sequences, num_frames, bits_per_frame, mode.frames_per_second)
"""

from typing import Any

import numpy as np
import torch

from babble.evaluation.context import measure_context
from babble.model.babbler import Babbler
from babble.model.likelihood import sum_losses


def measure_tokens(
    model: Babbler, sequences: list[np.ndarray], num_frames: int, frame_bits: float, mode_rate: int, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of a network over tokens on held-out recordings.

    Args:
        model: the network.
        sequences: tokens of each recording, (N, 2).
        num_frames: frames of all recordings together.
        frame_bits: bits per frame of the network over frames, given the tokens.
        mode_rate: frames per second.
        seed: random seed of the continuation test.

    Returns:
        "bits_per_token", "tokens_per_second", "bits_per_frame" of the tokens alone, and "bits_per_frame_bound": with
        the bits of the frames given them. Tokens follow from the frames, so both together are an upper bound on what
        the frames alone would take. "context": see `measure_context`; its seconds are of 12 tokens each.
    """
    bits = 0.0
    for sequence in sequences:
        if len(sequence) > 1:
            bits += float(sum_losses(model, torch.from_numpy(sequence.astype(np.int64))[None])[1].sum())
    num_tokens = sum(map(len, sequences))
    # The first token of a recording is not predicted.
    per_token = bits / max(1, num_tokens - len(sequences))
    per_frame = per_token * num_tokens / num_frames
    metrics: dict[str, Any] = {
        "bits_per_token": per_token,
        "tokens_per_second": num_tokens / num_frames * mode_rate,
        "bits_per_frame": per_frame,
        "bits_per_frame_bound": per_frame + frame_bits,
    }
    if context := measure_context(model, sequences, seed):
        metrics["context"] = context
    return metrics
