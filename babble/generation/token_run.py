"""Tokens on their way: what is said next, chosen by a network over tokens, one token ahead of the frames.

run = TokenRun(level, prompts_BTF, sampling, generator)
context_BC = run.context()      # of the next frame of each stream
run.advance()
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from babble.codec.frames import TOKENS
from babble.codec.token_sequences import CONTEXT, make_context
from babble.files import replacing
from babble.model.babbler import Babbler
from babble.model.checkpoint import build_model, compress_weights, load_checkpoint
from babble.model.sampling import Sampling
from babble.run_folder import RunFolder, locate_checkpoint
from babble.tokenizer.tokenizer import Tokenizer, load_tokenizer

# At 1, an unlikely token every few tenths of a second breaks every word; at 0.4 there are hardly more words, and a
# classifier separates the babble from speech more often (LOG.md, 2026-11-26).
TOKEN_TEMPERATURE = 0.7
# About half a second of speech: a change of temperature takes effect after them.
TOKENS_AHEAD = 6


def check_token_temperature(temperature: float | None, model: Babbler) -> float:
    """Return the temperature that a user set, or the default.

    Raises:
        ValueError: it is not above 0, or the network has no tokens, so that it has no effect.
    """
    if temperature is None:
        return TOKEN_TEMPERATURE
    if not model.config.tokens:
        raise ValueError(f"--token-temperature {temperature:g} has no effect: this network has no tokens.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"--token-temperature {temperature:g}: must be above 0.")
    return temperature


@dataclass(frozen=True)
class TokenLevel:
    """The level above the frame of a voice.

    Attributes:
        tokenizer: gives a prompt its tokens.
        model: a network over tokens, of the mode TOKENS.
    """

    tokenizer: Tokenizer
    model: Babbler


def load_token_level(run: RunFolder, model: Babbler) -> TokenLevel | None:
    """Return the level above the frames of a run's network; None if the network receives no tokens.

    Raises:
        FileNotFoundError: it receives tokens, but they are not beside it.
        ValueError: the file is damaged, or of another version of babble; or the network itself is one over tokens.
    """
    if model.mode == TOKENS:
        raise ValueError(f"{run.path} was trained on tokens, which have no sound: name the run that receives them.")
    if not model.config.tokens:
        return None
    if not run.tokens.is_file():
        raise FileNotFoundError(f"{run.tokens} is missing: the network in {run.path} receives tokens.")
    state = load_checkpoint(run.tokens)
    return TokenLevel(Tokenizer.from_state(state["tokenizer"]), build_model(state["model"]))


def write_token_level(path: Path, tokens: Path, token_model: Path) -> None:
    """Write tokenizer and network into one small file.

    Args:
        path: the file.
        tokens: folder that `babble tokens` wrote.
        token_model: run folder or checkpoint of a network that was trained on it.

    Raises:
        FileNotFoundError, ValueError: one of them is unusable, or the network is not one of tokens.
    """
    checkpoint = load_checkpoint(locate_checkpoint(token_model)[1])
    if build_model(checkpoint).mode != TOKENS:
        raise ValueError(f"{token_model} was trained on frames, not on tokens.")
    weights = compress_weights(checkpoint["state_dict"])
    model = {"hyper_parameters": checkpoint["hyper_parameters"], "bypassed_layers": [], "state_dict": weights}
    with replacing(path) as temporary:
        torch.save({"tokenizer": load_tokenizer(tokens).state(), "model": model}, temporary)


class TokenRun:
    """Tokens of B streams.

    Args:
        level: tokenizer and network.
        prompts_BTF: B prompts of T frames each.
        temperature: of the tokens; durations are drawn as they are distributed.
        generator: draws them.

    Attributes:
        prompt_context_BTC: the context of each frame of the prompts but the first, and of the frame that follows.
    """

    def __init__(
        self, level: TokenLevel, prompts_BTF: np.ndarray, temperature: float, generator: torch.Generator
    ) -> None:
        self._generator, self._head = generator, level.model.head
        # Streams often share one prompt.
        unique, places = np.unique(prompts_BTF, axis=0, return_inverse=True)
        sequences = [level.tokenizer.find_sequence(prompt_TF) for prompt_TF in unique]
        with torch.inference_mode():
            ends = [level.model(torch.from_numpy(sequence.astype(np.int64))[None]) for sequence in sequences]
            self._step = level.model.make_step()
            self.set_temperature(temperature)
            hidden_BH = torch.cat([ends[place][0][:, -1] for place in places])
            self._state = [
                tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
                for layers in zip(*(ends[place][1] for place in places), strict=True)
            ]
            # In numpy, as all that changes from frame to frame: for a few integers, torch takes as long as a layer.
            self._now_B2 = self._sample(hidden_BH).numpy()
        # Tokens that were chosen and that not every stream has used, and how many of them each stream has used.
        self._queue: list[np.ndarray] = []
        self._used_B = np.zeros(len(prompts_BTF), dtype=np.int64)
        self._last_B2 = self._now_B2
        self._since_B = np.zeros(len(prompts_BTF), dtype=np.int64)
        self._after_prompt = [part.copy() for part in self._list_arrays()]
        self._next_B2 = self._take(np.ones(len(prompts_BTF), dtype=bool), self._now_B2)
        prompt_BTC = np.stack([make_context(sequences[place]).astype(np.int64) for place in places])
        # What follows the last token of the prompt is known now.
        last_tokens = prompt_BTC[:, -1:, 0]
        is_last_BT = (prompt_BTC[..., 0] == last_tokens) & (prompt_BTC[..., 1] == last_tokens)
        prompt_BTC[..., 1] = np.where(is_last_BT, self._now_B2[:, :1], prompt_BTC[..., 1])
        self.prompt_context_BTC = torch.cat([torch.from_numpy(prompt_BTC[:, 1:]), self.context()[:, None]], dim=1)

    def set_temperature(self, temperature: float) -> None:
        """Choose the tokens from now on at another temperature."""
        with torch.inference_mode():
            sampling = Sampling.for_mode(TOKENS, temperature=f"token={temperature}")
            self._sample = self._head.make_sampler(sampling, self._generator)

    def _take(self, is_over_B: np.ndarray, tokens_B2: np.ndarray) -> np.ndarray:
        """Return the tokens (B, 2) with those of the streams that need a new one replaced by the next in the queue."""
        if (self._used_B[is_over_B] == len(self._queue)).any():
            self._choose_ahead()
        tokens_B2 = tokens_B2.copy()
        for stream in np.flatnonzero(is_over_B):
            tokens_B2[stream] = self._queue[self._used_B[stream]][stream]
        self._used_B += is_over_B
        # Those that every stream has used. Streams whose tokens are longer than those of others lag behind.
        used = int(self._used_B.min())
        del self._queue[:used]
        self._used_B -= used
        return tokens_B2

    def _choose_ahead(self) -> None:
        """Choose the next tokens of all streams.

        Several at once, which they allow as they do not depend on the frames: one at a time, the weights of the frame
        model would drive those of this network out of the cache in between, and a step would take three times as long.
        """
        with torch.inference_mode():
            for _ in range(TOKENS_AHEAD):
                hidden_BH, self._state = self._step(torch.from_numpy(self._last_B2), self._state, None)
                self._last_B2 = self._sample(hidden_BH).numpy()
                self._queue.append(self._last_B2)

    def context(self) -> Tensor:
        """Return the context of the next frame of each stream, int64 (B, C)."""
        left_B = self._now_B2[:, 1] - self._since_B
        columns = {"token": self._now_B2[:, 0], "next": self._next_B2[:, 0], "left": left_B, "since": self._since_B}
        return torch.from_numpy(np.stack([columns[name] for name in CONTEXT], axis=1))

    def advance(self) -> None:
        """Go on by one frame."""
        is_over_B = self._since_B >= self._now_B2[:, 1]
        self._since_B = np.where(is_over_B, 0, self._since_B + 1)
        if not is_over_B.any():
            return
        self._now_B2 = np.where(is_over_B[:, None], self._next_B2, self._now_B2)
        self._next_B2 = self._take(is_over_B, self._next_B2)

    def start_over(self, stream: int) -> None:
        """Return one stream to the tokens after its prompt."""
        for now, after_prompt in zip(self._list_arrays(), self._after_prompt, strict=True):
            now[stream] = after_prompt[stream]
        # What was chosen ahead is left out.
        self._used_B[stream] = len(self._queue)
        self._next_B2 = self._take(np.arange(len(self._now_B2)) == stream, self._next_B2)

    def _list_arrays(self) -> list[np.ndarray]:
        # Copies, as the queue holds the last tokens too.
        self._last_B2 = self._last_B2.copy()
        state = [part.numpy() for layer in self._state for part in layer]
        return [self._now_B2, self._since_B, self._last_B2, *state]
