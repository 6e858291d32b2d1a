"""The floors: the same work in minimal loops over bare library calls, without anything of babble's own machinery.

    for packets in encode_recordings(paths): ...
    train = make_training(model, batches); train(steps)
    generate = make_generator(model, prompts_BTF); frames_NBF = generate(num_frames)

`python -m jobs.benchmark.floors PATH...` encodes recordings and discards the packets. torch and the codec are imported
where they are used, as the time that an import takes would count.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from babble.codec.frames import SAMPLE_RATE_HZ
from jobs.benchmark.config import MODE

if TYPE_CHECKING:
    from babble.model.babbler import Babbler

READ_VALUES = 1 << 16


def encode_recordings(paths: Sequence[Path | str]) -> Iterator[bytes]:
    """Yield the Codec 2 packets of each recording."""
    import pycodec2
    import soundfile

    for path in paths:
        encode = pycodec2.Codec2(int(MODE.name)).encode
        packets, rest = [], np.empty(0, np.int16)
        with soundfile.SoundFile(path) as sound:
            for mono in _read_mono(sound):
                pcm = np.clip(np.rint(mono * np.float32(32768)), -32768, 32767).astype(np.int16)
                pcm = np.concatenate([rest, pcm])
                end = len(pcm) // MODE.pcm_per_frame * MODE.pcm_per_frame
                packets += [encode(pcm[at : at + MODE.pcm_per_frame]) for at in range(0, end, MODE.pcm_per_frame)]
                rest = pcm[end:]
        yield b"".join(packets)


def _read_mono(sound: Any) -> Iterator[np.ndarray]:
    """Yield the samples of an open sound file, mixed to mono and resampled to 8 kHz."""
    import soxr

    rate_hz = sound.samplerate
    resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32") if rate_hz != SAMPLE_RATE_HZ else None
    is_last = False
    while not is_last:
        block = sound.read(READ_VALUES, dtype="float32", always_2d=True)
        is_last = not len(block)
        mono = sum(block.T) / sound.channels if sound.channels > 1 else block[:, 0]
        yield resampler.resample_chunk(np.ascontiguousarray(mono), last=is_last) if resampler else mono


def make_training(model: "Babbler", batches: Iterator[Any], is_mixed: bool = False) -> Callable[[int], None]:
    """Return a function that trains for a number of steps: plain PyTorch and the optimizer of 2017.

    Args:
        model: the network, on any device.
        batches: as many as there are steps.
        is_mixed: whether the forward pass computes in bfloat16 where that is safe.
    """
    import torch

    optimizer = torch.optim.NAdam(model.parameters())
    for module in model.modules():
        # A copied network's weights are not in one piece, as cuDNN needs them.
        if isinstance(module, torch.nn.RNNBase):
            module.flatten_parameters()

    def train(steps: int) -> None:
        for _ in range(steps):
            frames_BTF = next(batches).frames.to(model.device).long()
            with torch.autocast(model.device.type, torch.bfloat16, enabled=is_mixed):
                hidden_BTH, _ = model(frames_BTF[:, :-1])
                loss = model.head.loss(hidden_BTH, frames_BTF[:, 1:]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait_for(model.device)

    return train


def wait_for(device: Any) -> None:
    """Wait until a GPU has done all that it was given; a CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_generator(model: "Babbler", prompts_BTF: np.ndarray) -> Callable[[int], np.ndarray]:
    """Return a function that generates the next N frames (N, B, F): one matrix product per layer and one for the head.

    Args:
        model: a stack of LSTMs without skips and a regression head, as in 2017.
        prompts_BTF: a prompt for each of B streams.
    """
    import torch

    layers: Any = model.layers
    dense: Any = model.head.dense
    with torch.inference_mode():
        hidden_BTH, states = model(torch.from_numpy(prompts_BTF.astype(np.int64)))
        x = hidden_BTH[:, -1]
        hs, cs = [h for h, _ in states], [c for _, c in states]
        weights = [
            torch.cat([layer.rnn.weight_ih_l0, layer.rnn.weight_hh_l0], dim=1).t().contiguous() for layer in layers
        ]
        biases = [layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0 for layer in layers]
        head_weight, head_bias = dense.weight.t().contiguous(), dense.bias
        highest_F = torch.tensor(model.mode.levels - 1, dtype=torch.float32)

    @torch.inference_mode()
    def generate(num_frames: int) -> np.ndarray:
        nonlocal x
        frames = []
        for _ in range(num_frames):
            levels_BF = torch.addmm(head_bias, x, head_weight).relu_().mul_(highest_F).round_()
            frames.append(torch.minimum(levels_BF, highest_F))
            x = frames[-1] / highest_F
            for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                i, f, g, o = torch.addmm(bias, torch.cat([x, hs[n]], dim=1), weight).chunk(4, dim=1)
                cs[n] = f.sigmoid_().mul_(cs[n]).addcmul_(i.sigmoid_(), g.tanh_())
                x = hs[n] = o.sigmoid_().mul_(cs[n].tanh())
        return torch.stack(frames).numpy().astype(model.mode.dtype)

    return generate


if __name__ == "__main__":
    for _ in encode_recordings(sys.argv[1:]):
        pass
