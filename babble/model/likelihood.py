"""Loss and error of a network on whole recordings: by frame, in total, and by group of fields.

    metrics = name_losses(sum_losses(model, frames_BTF), model, mode)    # {"bits_per_frame": 25.98, ...}

The recurrent state is carried from the first frame of a recording on. Every frame but the first counts.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from babble.codec.frames import Mode
from babble.model.babbler import Babbler

# Recordings are processed in chunks of this many frames, to bound memory.
CHUNK_FRAMES = 1000


@torch.no_grad()
def _iterate_losses(model: Babbler, frames_BTF: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield absolute errors in levels and bits, each (B, T, F), chunk by chunk, with the state carried."""
    head, state = model.head, None
    for start in range(0, frames_BTF.shape[1] - 1, CHUNK_FRAMES):
        inputs, context, targets = model.split(frames_BTF[:, start : start + CHUNK_FRAMES + 1])
        hidden_BTH, state = model(inputs, state, context)
        error_BTF = (head.predict(hidden_BTH) - targets).abs()
        yield error_BTF, head.loss(hidden_BTH, targets) if head.has_likelihood else torch.zeros_like(error_BTF)


def measure_losses(model: Babbler, frames_BTF: Tensor) -> tuple[Tensor, Tensor]:
    """Return error and loss of every frame but the first.

    Args:
        model: the network.
        frames_BTF: recordings of equal length, int64, on the network's device; of a network with tokens also the
            context of each frame, as `Babbler.split` takes it.

    Returns:
        error_BTF, the absolute error of the best prediction in levels, and bits_BTF, zeros for heads without a
        likelihood. Both float32 on the CPU, with one frame less than the recordings.
    """
    chunks = [(error.float().cpu(), bits.float().cpu()) for error, bits in _iterate_losses(model, frames_BTF)]
    if not chunks:
        nothing = torch.zeros(len(frames_BTF), 0, model.mode.num_fields)
        return nothing, nothing
    error, bits = zip(*chunks, strict=True)
    return torch.cat(error, dim=1), torch.cat(bits, dim=1)


def sum_losses(model: Babbler, frames_BTF: Tensor) -> Tensor:
    """Return the values of `measure_losses` summed over frames, float64 (3, F): error, bits, number of frames."""
    sums = torch.zeros(3, model.mode.num_fields, dtype=torch.float64, device=frames_BTF.device)
    for error_BTF, bits_BTF in _iterate_losses(model, frames_BTF):
        sums[0] += error_BTF.double().sum(dim=(0, 1))
        sums[1] += bits_BTF.double().sum(dim=(0, 1))
        sums[2] += error_BTF.shape[0] * error_BTF.shape[1]
    return sums


def name_losses(sums: Tensor, model: Babbler, mode: Mode) -> dict[str, float]:
    """Return the metrics of `sum_losses` by name.

    Returns:
        `error_levels`, the mean absolute error in levels over all fields, and `error/GROUP`, not in modes with label
        fields; `bits_per_frame` and `bits/GROUP`, only for heads with a likelihood.
    """
    error_F, bits_F = (sums[:2] / sums[2]).tolist()
    metrics = {}
    if not mode.has_labels:
        metrics["error_levels"] = sum(error_F) / len(error_F)
        for group in mode.groups:
            columns = mode.group_indices(group)
            metrics[f"error/{group}"] = sum(error_F[f] for f in columns) / len(columns)
    if model.head.has_likelihood:
        metrics["bits_per_frame"] = sum(bits_F)
        for group in mode.groups:
            metrics[f"bits/{group}"] = sum(bits_F[f] for f in mode.group_indices(group))
    return metrics
