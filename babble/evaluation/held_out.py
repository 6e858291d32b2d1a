"""Metrics of a network on recordings: held-out speech with confidence intervals, and the training error of 2017.

metrics = measure_held_out(model, recordings)
metrics["bits_per_frame"], metrics["intervals"]["bits_per_frame"]
"""

from typing import Any

import numpy as np
import torch

from babble.data.plans import window_starts
from babble.evaluation.bootstrap import BLOCK_SECONDS, bootstrap_interval
from babble.evaluation.field_metrics import find_unvoiced_pitch, name_bits, name_errors
from babble.model.babbler import Babbler
from babble.model.likelihood import measure_losses

WINDOWS_PER_BATCH = 64


def measure_held_out(model: Babbler, recordings: list[np.ndarray]) -> dict[str, Any]:
    """Return the metrics of a network that predicts every frame but the first of recordings (T, F).

    Of a network with tokens, the recordings also have the context of each frame, as `Babbler.split` takes it. State is
    carried through each recording from its first frame on.

    Returns:
        the metrics of `name_errors` and, if the head has a likelihood, `name_bits`; "intervals" has those of the
        totals, (low, high), or None if the speech is too short for one.
    """
    mode, has_likelihood = model.mode, model.head.has_likelihood
    errors, bits, unvoiced_bits = [], [], []
    for frames in recordings:
        error_BTF, bits_BTF = measure_losses(model, torch.from_numpy(frames.astype(np.int64))[None].to(model.device))
        errors.append(error_BTF[0].numpy().astype(np.float64))
        bits.append(bits_BTF[0].numpy().astype(np.float64))
        is_unvoiced_pitch = find_unvoiced_pitch(frames[1:, : mode.num_fields], mode)
        if is_unvoiced_pitch is not None:
            unvoiced_bits.append(np.where(is_unvoiced_pitch, bits[-1], 0).sum(axis=1))
    metrics = name_errors(np.concatenate(errors).mean(axis=0), mode)
    losses = {"error_levels": [error.mean(axis=1) for error in errors]}
    if has_likelihood:
        mean_unvoiced = float(np.concatenate(unvoiced_bits).mean()) if unvoiced_bits else None
        metrics |= name_bits(np.concatenate(bits).mean(axis=0), mean_unvoiced, mode)
        totals = [values.sum(axis=1) for values in bits]
        losses["bits_per_frame"] = totals
        if unvoiced_bits:
            losses["bits_per_frame_without_unvoiced_pitch"] = [
                total - unvoiced for total, unvoiced in zip(totals, unvoiced_bits, strict=True)
            ]
    block_frames = BLOCK_SECONDS * mode.frames_per_second
    metrics["intervals"] = {
        name: bootstrap_interval(values, block_frames) for name, values in losses.items() if name in metrics
    }
    return metrics


@torch.no_grad()
def measure_training_error_2017(
    model: Babbler, recordings: list[np.ndarray], num_windows: int, window_frames: int
) -> float:
    """Return the mean absolute error in levels of the frame after each window, state starting at zero, as in 2017.

    Args:
        model: a network of a mode without label fields.
        recordings: training recordings (T, F).
        num_windows: number of windows, spread evenly over all recordings.
        window_frames: number of frames of context before the predicted frame.

    Raises:
        ValueError: no recording is longer than a window.
    """
    frames = np.concatenate(recordings)
    starts = window_starts([len(recording) for recording in recordings], window_frames, hop_frames=1)
    if not len(starts):
        raise ValueError(f"no training recording is longer than a window of {window_frames} frames.")
    chosen = starts[np.linspace(0, len(starts) - 1, min(num_windows, len(starts))).astype(int)]
    total = 0.0
    for first in range(0, len(chosen), WINDOWS_PER_BATCH):
        indices_BT = chosen[first : first + WINDOWS_PER_BATCH, None] + np.arange(window_frames + 1)
        windows_BTF = torch.from_numpy(frames[indices_BT].astype(np.int64)).to(model.device)
        hidden_BTH, _ = model(windows_BTF[:, :-1])
        predicted_BTF = model.head.predict(hidden_BTH[:, -1:])
        total += (predicted_BTF - windows_BTF[:, -1:]).abs().mean(dim=(1, 2)).sum().item()
    return total / len(chosen)
