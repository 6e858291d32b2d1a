"""The encoder: frames -> features in which the same sound lies close together, in any context.

    encoder = TokenEncoder(mode, units=192, num_targets=200)
    loss = encoder.loss(frames_BTF, targets_BT, generator)
    features_TH = encoder.features(frames_TF)

A bidirectional network receives frames with masked segments and predicts the cluster of each masked frame. The
neighbouring frames determine the sound of a frame, but not its noise, so the features represent the sound. No text,
letter or recogniser is involved.

Source: HuBERT, Hsu et al. 2021; here with clusters of the hidden states of a frame model instead of spectra.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.babbler import EmbeddedInput
from babble.model.typed_list import TypedModuleList

NUM_LAYERS = 2
KERNEL_FRAMES = 5
DROPOUT = 0.1
# Where a mask starts, and how long it is: a quarter of all frames, 160 ms each.
MASK_SHARE, MASK_FRAMES = 0.08, 4
# Long recordings are encoded in windows; the margins on both sides are context only.
WINDOW_FRAMES, MARGIN_FRAMES, WINDOWS_PER_BATCH = 1000, 100, 16


class TokenEncoder(nn.Module):
    """A convolution and bidirectional LSTM layers over embedded frames.

    Args:
        mode: the Codec 2 mode of the frames.
        units: hidden units H per layer and direction.
        num_targets: clusters that it learns to predict.
    """

    def __init__(self, mode: Mode, units: int, num_targets: int) -> None:
        super().__init__()
        self.input = EmbeddedInput(mode, units)
        self.mask = nn.Parameter(torch.randn(units) * 0.3)
        self.conv = nn.Conv1d(units, units, KERNEL_FRAMES, padding=KERNEL_FRAMES // 2)
        self.dense = nn.Linear(units, units)
        self.norm = nn.LayerNorm(units)
        self.layers = TypedModuleList[nn.LSTM](
            nn.LSTM(units if n == 0 else 2 * units, units, batch_first=True, bidirectional=True)
            for n in range(NUM_LAYERS)
        )
        self.norms = TypedModuleList[nn.LayerNorm](nn.LayerNorm(2 * units) for _ in range(NUM_LAYERS))
        self.out = nn.Linear(2 * units, num_targets)

    def forward(self, frames_BTF: Tensor, is_masked_BT: Tensor | None = None) -> list[Tensor]:
        """Return the output of every layer, lowest first, each (B, T, 2 H)."""
        x_BTH = self.input(frames_BTF)
        if is_masked_BT is not None:
            x_BTH = torch.where(is_masked_BT[..., None], self.mask, x_BTH)
        x_BTH = x_BTH + functional.relu(self.conv(x_BTH.transpose(1, 2)).transpose(1, 2))
        x_BTH = self.norm(functional.relu(self.dense(x_BTH)) + x_BTH)
        outputs: list[Tensor] = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            below = outputs[-1] if outputs else x_BTH
            above = norm(layer(functional.dropout(below, DROPOUT, self.training))[0])
            outputs.append(above + below if outputs else above)
        return outputs

    def loss(self, frames_BTF: Tensor, targets_BT: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean cross-entropy of the clusters of masked frames, in nats."""
        starts_BT = torch.rand(targets_BT.shape, generator=generator) < MASK_SHARE
        is_masked_BT = starts_BT.clone()
        for frames in range(1, MASK_FRAMES):
            is_masked_BT[:, frames:] |= starts_BT[:, :-frames]
        hidden_NH = self(frames_BTF, is_masked_BT)[-1][is_masked_BT]
        logits_NK = self.out(functional.dropout(hidden_NH, DROPOUT, self.training))
        return functional.cross_entropy(logits_NK, targets_BT[is_masked_BT])

    def features(self, frames_TF: Tensor) -> Tensor:
        """Return the output of the lowest layer for a recording, float32 (T, 2 H). Call it in evaluation mode."""
        assert not self.training
        return map_windows(lambda frames_BTF: self(frames_BTF)[0], frames_TF)


@torch.inference_mode()
def map_windows(function: Callable[[Tensor], Tensor], frames_TF: Tensor) -> Tensor:
    """Return what a function (B, T, F) -> (B, T, H) gives for a recording, (T, H).

    It is called with windows that overlap: the margin on both sides is context only, so that every frame has some.
    """
    num_frames = len(frames_TF)
    step = WINDOW_FRAMES - 2 * MARGIN_FRAMES
    padding = torch.arange(-MARGIN_FRAMES, num_frames + WINDOW_FRAMES).clamp(0, num_frames - 1)
    padded = frames_TF[padding].long()
    starts = range(0, num_frames, step)
    results = []
    for first in range(0, len(starts), WINDOWS_PER_BATCH):
        windows = [padded[start : start + WINDOW_FRAMES] for start in starts[first : first + WINDOWS_PER_BATCH]]
        outputs = function(torch.stack(windows))
        results += [output[MARGIN_FRAMES : MARGIN_FRAMES + step] for output in outputs]
    return torch.cat(results)[:num_frames]
