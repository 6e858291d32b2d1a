"""Free-running generation: each sampled frame is the network's next input.

frames = generate_frames(model, prompts_BTF, num_frames=1500)
"""

from collections.abc import Iterator

import numpy as np
import torch

from babble.model.babbler import Babbler
from babble.model.sampling import Sampling

# Frames that are sampled at once and then written: a second or two of speech.
BLOCK_FRAMES = 50


class FreeRun:
    """B streams that run free side by side.

    Args:
        model: the network, on any device.
        prompts_BTF: B prompts of T frames each.
        sampling: how levels are drawn; as they were learned by default.
        seed: the same one gives the same frames on the same machine.
    """

    def __init__(
        self, model: Babbler, prompts_BTF: np.ndarray, sampling: Sampling | None = None, seed: int = 0
    ) -> None:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        with torch.inference_mode():
            hidden_BTH, state = model(torch.from_numpy(prompts_BTF.astype(np.int64)).to(device))
            self._step = model.make_step()
            self._draw = model.head.make_sampler(sampling or Sampling.for_mode(model.mode), generator)
        self._dtype = model.mode.dtype
        self._after_prompt = hidden_BTH[:, -1], state
        self._now = self._after_prompt

    def make_block(self) -> np.ndarray:
        """Return the next frames (B, BLOCK_FRAMES, F) of every stream."""
        hidden_BH, state = self._now
        # A block at a time: going in and out of inference mode and of torch takes as long as a layer.
        with torch.inference_mode():
            block = []
            for _ in range(BLOCK_FRAMES):
                frames_BF = self._draw(hidden_BH)
                block.append(frames_BF)
                hidden_BH, state = self._step(frames_BF, state)
            self._now = hidden_BH, state
            return torch.stack(block, dim=1).cpu().numpy().astype(self._dtype)

    def start_over(self, stream: int) -> None:
        """Let one stream go on from its prompt, as if it had said nothing yet; what it draws is new."""
        (hidden_BH, state), (prompt_BH, prompt_state) = self._now, self._after_prompt
        with torch.inference_mode():
            hidden_BH[stream] = prompt_BH[stream]
            for layer, prompt_layer in zip(state, prompt_state, strict=True):
                for now, then in zip(layer, prompt_layer, strict=True):
                    now[stream] = then[stream]


def iterate_babble(
    model: Babbler, prompts_BTF: np.ndarray, sampling: Sampling | None = None, seed: int = 0
) -> Iterator[np.ndarray]:
    """Yield the frames (B, F) that continue each prompt, without end; the arguments are those of `FreeRun`."""
    free_run = FreeRun(model, prompts_BTF, sampling, seed)
    while True:
        yield from free_run.make_block().swapaxes(0, 1)


def generate_frames(
    model: Babbler, prompts_BTF: np.ndarray, num_frames: int, sampling: Sampling | None = None, seed: int = 0
) -> np.ndarray:
    """Return the frames (B, num_frames, F) that continue each prompt; the arguments are those of `iterate_babble`."""
    frames = iterate_babble(model, prompts_BTF, sampling, seed)
    return np.stack([next(frames) for _ in range(num_frames)], axis=1)
