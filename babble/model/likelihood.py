"""How well a network predicts recordings: absolute error in levels and bits, by frame, in total and by group.

State is carried from a recording's first frame on; every frame but that first one counts.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from babble.codec.frames import Mode
from babble.model.babbler import Babbler

# Recordings are walked through in chunks of this many frames, state carried, so that memory stays flat.
CHUNK_FRAMES = 1000


@torch.no_grad()
def _iterate_losses(model: Babbler, frames_BTF: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield absolute errors in levels and bits (B, T, F) chunk by chunk, state carried through all of them."""
    head, state = model.typed_head, None
    for start in range(0, frames_BTF.shape[1] - 1, CHUNK_FRAMES):
        chunk = frames_BTF[:, start : start + CHUNK_FRAMES + 1]
        hidden_BTH, state = model(chunk[:, :-1], state)
        targets = chunk[:, 1:]
        error_BTF = (head.predict(hidden_BTH) - targets).abs()
        yield error_BTF, head.loss(hidden_BTH, targets) if head.has_likelihood else torch.zeros_like(error_BTF)


def measure_losses(model: Babbler, frames_BTF: Tensor) -> tuple[Tensor, Tensor]:
    """Return what predicting every frame of recordings but the first costs, state carried from it on.

    Returns:
        error_BTF, the absolute error in levels of the head's best guess, and bits_BTF, zeros without a likelihood;
        float32 on the CPU, T one less than that of the recordings.
    """
    chunks = [(error.float().cpu(), bits.float().cpu()) for error, bits in _iterate_losses(model, frames_BTF)]
    if not chunks:
        nothing = torch.zeros(len(frames_BTF), 0, frames_BTF.shape[-1])
        return nothing, nothing
    error, bits = zip(*chunks, strict=True)
    return torch.cat(error, dim=1), torch.cat(bits, dim=1)


def sum_losses(model: Babbler, frames_BTF: Tensor) -> Tensor:
    """Return the costs of `measure_losses` summed over all frames, float64 (3, F): error, bits, how many values."""
    sums = torch.zeros(3, frames_BTF.shape[-1], dtype=torch.float64, device=frames_BTF.device)
    for error_BTF, bits_BTF in _iterate_losses(model, frames_BTF):
        sums[0] += error_BTF.double().sum(dim=(0, 1))
        sums[1] += bits_BTF.double().sum(dim=(0, 1))
        sums[2] += error_BTF.shape[0] * error_BTF.shape[1]
    return sums


def name_losses(sums: Tensor, model: Babbler, mode: Mode) -> dict[str, float]:
    """Return the named figures of `sum_losses`: mean absolute error a field, bits a frame, and both by group."""
    error_F, bits_F = (sums[:2] / sums[2]).tolist()
    figures = {}
    if not mode.has_labels:
        figures["error_levels"] = sum(error_F) / len(error_F)
        for group in mode.groups:
            columns = mode.group_indices(group)
            figures[f"error/{group}"] = sum(error_F[f] for f in columns) / len(columns)
    if model.typed_head.has_likelihood:
        figures["bits_per_frame"] = sum(bits_F)
        for group in mode.groups:
            figures[f"bits/{group}"] = sum(bits_F[f] for f in mode.group_indices(group))
    return figures
