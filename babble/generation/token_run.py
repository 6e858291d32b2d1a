"""The tokens of generated frames, sampled from a network over tokens, at least one token ahead of the frames.

run = TokenRun(level, prompts_BTF, temperature, generator)
context_TBC = run.advance(num_frames)   # of the frames that follow the last one
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from babble.codec.frames import TOKENS
from babble.codec.token_sequences import CONTEXT, make_context
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


def pack_token_level(tokens: Path, token_model: Path) -> bytes:
    """Return the content of a run's tokens.pt: tokenizer and network, the network in 8 bits per weight.

    Args:
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
    content = io.BytesIO()
    torch.save({"tokenizer": load_tokenizer(tokens).state(), "model": model}, content)
    return content.getvalue()


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
            # The chosen tokens but those that are over in all streams.
            self._chosen = [self._sample(hidden_BH).numpy()]
        num_streams = len(prompts_BTF)
        # Where among them each stream's present token is, and which frame of that token was the last: counted from 0,
        # -1 before the first.
        self._place_B, self._since_B = np.zeros(num_streams, np.int64), np.full(num_streams, -1)
        prompt_BTC = np.stack([make_context(sequences[place]).astype(np.int64) for place in places])
        # What follows the last token of the prompt is known now.
        for place, context_TC, chosen_2 in zip(places, prompt_BTC, self._chosen[0], strict=True):
            context_TC[-1 - int(sequences[place][-1, 1]) :, 1] = chosen_2[0]
        # The context of a frame names the token after its own too.
        self._choose(1)
        first_BTC = self.advance(1).transpose(0, 1)
        self.prompt_context_BTC = torch.cat([torch.from_numpy(prompt_BTC[:, 1:]), first_BTC], dim=1)
        self._first_NB2 = np.stack(self._chosen)
        self._first_state = [tuple(part.clone() for part in layer) for layer in self._state]

    def set_temperature(self, temperature: float) -> None:
        """Choose the tokens from now on at another temperature."""
        with torch.inference_mode():
            sampling = Sampling.for_mode(TOKENS, temperature=f"token={temperature}")
            self._sample = self._head.make_sampler(sampling, self._generator)

    def advance(self, num_frames: int) -> Tensor:
        """Go on by some frames and return their contexts, int64 (T, B, C)."""
        place_TB, starts_NB, tokens_NB2 = self._place_frames(num_frames)
        streams = np.arange(len(self._since_B))
        since_TB = self._since_B + np.arange(1, num_frames + 1)[:, None] - starts_NB[place_TB, streams]
        now_TB2, next_TB2 = tokens_NB2[place_TB, streams], tokens_NB2[place_TB + 1, streams]
        left_TB = now_TB2[..., 1] - since_TB
        columns = {"token": now_TB2[..., 0], "next": next_TB2[..., 0], "left": left_TB, "since": since_TB}
        self._place_B, self._since_B = place_TB[-1], since_TB[-1]
        used = int(self._place_B.min())
        del self._chosen[:used]
        self._place_B -= used
        return torch.from_numpy(np.stack([columns[name] for name in CONTEXT], axis=-1))

    def _place_frames(self, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the tokens that the next frames need, and return which frame has which.

        Returns:
            place_TB: where the token of each frame is among the tokens.
            starts_NB: the first frame of each token, counted from the first one of the stream's present token.
            tokens_NB2: token and duration - 1.
        """
        last_B = self._since_B + num_frames
        while True:
            tokens_NB2 = np.stack(self._chosen)
            is_over_NB = np.arange(len(tokens_NB2))[:, None] < self._place_B
            lengths_NB = np.where(is_over_NB, 0, tokens_NB2[..., 1] + 1)
            ends_NB = lengths_NB.cumsum(axis=0)
            # The token after that of the last frame has to be known too.
            if len(ends_NB) > 1 and (ends_NB[-2] > last_B).all():
                break
            # Several at once, however short the block: one at a time, the weights of the frame model would drive those
            # of this network out of the cache in between.
            self._choose(TOKENS_AHEAD)
        frames_TB = self._since_B + np.arange(1, num_frames + 1)[:, None]
        return (ends_NB <= frames_TB[:, None]).sum(axis=1), ends_NB - lengths_NB, tokens_NB2

    def _choose(self, count: int) -> None:
        """Choose the next tokens of all streams."""
        with torch.inference_mode():
            for _ in range(count):
                hidden_BH, self._state = self._step(torch.from_numpy(self._chosen[-1]), self._state)
                self._chosen.append(self._sample(hidden_BH).numpy())

    def start_over(self, stream: int) -> None:
        """Return one stream to the first frame after its prompt; what was chosen ahead for it is left out."""
        for chosen_B2, first_B2 in zip(self._chosen[-2:], self._first_NB2, strict=True):
            chosen_B2[stream] = first_B2[stream]
        self._place_B[stream], self._since_B[stream] = len(self._chosen) - 2, 0
        with torch.inference_mode():
            for layer, first_layer in zip(self._state, self._first_state, strict=True):
                for part, first_part in zip(layer, first_layer, strict=True):
                    part[stream] = first_part[stream]
