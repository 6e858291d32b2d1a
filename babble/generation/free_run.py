"""Free-running generation: each sampled frame is the network's next input.

    frames_BTF = generate_frames(model, prompts_BTF, num_frames=1500)

State is carried from frame to frame, so every frame costs the same, however many came before it.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from babble.generation.frame_graph import FrameGraph, NextFrame, Now
from babble.generation.token_run import TOKEN_TEMPERATURE, TokenLevel, TokenRun
from babble.model.babbler import Added, Babbler
from babble.model.sampling import Sampling

# Frames that are sampled together and then written: one or two seconds of speech.
BLOCK_FRAMES = 50


def choose_sampling(
    model: Babbler,
    temperature: str | float | None = None,
    top_p: str | float | None = None,
    min_p: str | float | None = None,
) -> Sampling:
    """Return the sampling settings of each field from what a user set; None is the default of `Sampling.for_mode`.

    Raises:
        ValueError: an illegal value, or any value for a head without a likelihood, where it has no effect.
    """
    settings = {"temperature": temperature, "top_p": top_p, "min_p": min_p}
    chosen = {key: str(value) for key, value in settings.items() if value is not None}
    if chosen and not model.head.has_likelihood:
        key, value = next(iter(chosen.items()))
        flag = f"--{key.replace('_', '-')}"
        raise ValueError(
            f"{flag} {value} has no effect: the {model.config.head} head has no distribution to sample from. "
            "Remove the flag."
        )
    return Sampling.for_mode(model.mode, **chosen)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a few streams are a chain of small products, which more threads only slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FreeRun:
    """B streams generated in parallel.

    Args:
        model: the network, on any device.
        prompts_BTF: B prompts of T frames each.
        sampling: settings of each field; the network's own distribution by default.
        seed: random seed; the same one gives the same frames on the same machine.
        tokens: of a network with tokens, the level above it.
        token_temperature: of the tokens; `sampling` applies to the frames.
    """

    def __init__(
        self,
        model: Babbler,
        prompts_BTF: np.ndarray,
        sampling: Sampling | None = None,
        seed: int = 0,
        tokens: TokenLevel | None = None,
        token_temperature: float = TOKEN_TEMPERATURE,
    ) -> None:
        assert (tokens is not None) == bool(model.config.tokens), "a network with tokens needs their level"
        device = model.device
        generator = torch.Generator(device).manual_seed(seed)
        self._head, self._generator, self._dtype = model.head, generator, model.mode.dtype
        self._tokens = None
        if tokens:
            self._tokens = TokenRun(tokens, prompts_BTF, token_temperature, torch.Generator().manual_seed(seed))
        context_BTC = self._tokens.prompt_context_BTC.to(device) if self._tokens else None
        self._context = model.context
        with torch.inference_mode():
            self._first_added = None
            if self._context and context_BTC is not None:
                self._first_added = self._context(context_BTC[:, -1])
            hidden_BTH, state = model(torch.from_numpy(prompts_BTF.astype(np.int64)).to(device), None, context_BTC)
            self._step = model.make_step()
        self._after_prompt: Now = hidden_BTH[:, -1], state
        self._now = self._after_prompt
        self.set_sampling(sampling or Sampling.for_mode(model.mode))

    def set_sampling(self, sampling: Sampling) -> None:
        """Sample the frames from now on with other settings."""
        with torch.inference_mode():
            sample = self._head.make_sampler(sampling, self._generator)

            def next_frame(now: Now, added: Added | None) -> tuple[Tensor, Now]:
                frames_BF = sample(now[0])
                return frames_BF, self._step(frames_BF, now[1], added)

            self._next_frame: NextFrame = next_frame
            if self._generator.device.type == "cuda":
                self._next_frame = FrameGraph(next_frame, self._now, self._first_added, self._generator)

    def set_token_temperature(self, temperature: float) -> None:
        """Choose the tokens from now on at another temperature; of no effect for a network without tokens."""
        if self._tokens:
            self._tokens.set_temperature(temperature)

    def make_block(self, num_frames: int = BLOCK_FRAMES) -> np.ndarray:
        """Return the next frames (B, num_frames, F) of every stream."""
        # One block per call: entering and leaving inference mode takes as long as a layer.
        with torch.inference_mode():
            block = []
            for added in self._advance_tokens(num_frames):
                frames_BF, self._now = self._next_frame(self._now, added)
                block.append(frames_BF)
            return torch.stack(block, dim=1).cpu().numpy().astype(self._dtype)

    def _advance_tokens(self, num_frames: int) -> Iterable[Added | None]:
        """Return what the context adds after each of the next frames; None for a network without tokens."""
        if self._tokens is None or self._context is None:
            return [None] * num_frames
        to_input_TBI, to_head_TBH = self._context(self._tokens.advance(num_frames).to(self._now[0].device))
        return zip(to_input_TBI.unbind(), to_head_TBH.unbind(), strict=True)

    def start_over(self, stream: int) -> None:
        """Return one stream to the state after its prompt; the frames sampled from there are new ones."""
        if self._tokens:
            self._tokens.start_over(stream)
        (hidden_BH, state), (prompt_BH, prompt_state) = self._now, self._after_prompt
        with torch.inference_mode():
            hidden_BH[stream] = prompt_BH[stream]
            for layer, prompt_layer in zip(state, prompt_state, strict=True):
                for now, after_prompt in zip(layer, prompt_layer, strict=True):
                    now[stream] = after_prompt[stream]


def generate_frames(
    model: Babbler,
    prompts_BTF: np.ndarray,
    num_frames: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    tokens: TokenLevel | None = None,
    token_temperature: float = TOKEN_TEMPERATURE,
) -> np.ndarray:
    """Return the frames (B, num_frames, F) that continue each prompt; the other arguments are those of `FreeRun`."""
    free_run = FreeRun(model, prompts_BTF, sampling, seed, tokens, token_temperature)
    blocks = [free_run.make_block() for _ in range(-(-num_frames // BLOCK_FRAMES))]
    return np.concatenate(blocks, axis=1)[:, :num_frames]
