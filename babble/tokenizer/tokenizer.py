"""A tokenizer: encoder and clusters, trained once, that gives every recording of a voice its tokens.

    tokenizer = load_tokenizer(Path("shards/tale-tokens"))
    tokens_T = tokenizer.tokenize(frames_TF)

`train_encoder` continues from the state that it saves every minute, to the same weights as without a stop.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from babble.codec.frames import Mode, get_mode
from babble.codec.token_sequences import join_tokens
from babble.files import replacing
from babble.model.babbler import Babbler
from babble.model.checkpoint import load_checkpoint
from babble.run_folder import RunFolder
from babble.tokenizer.clusters import Clusters
from babble.tokenizer.config import EncoderConfig
from babble.tokenizer.encoder import TokenEncoder, map_windows

FILE = "tokenizer.pt"
BATCH_SIZE, WINDOW_FRAMES = 16, 256
LR, WARMUP_STEPS, CLIP_NORM = 0.003, 100, 1.0
SAVE_SECONDS, REPORT_SECONDS = 60.0, 1.0


@dataclass(frozen=True)
class Tokenizer:
    """Encoder and clusters.

    Attributes:
        encoder: in evaluation mode.
        clusters: of its features.
        mode: the mode of the frames that it takes.
    """

    encoder: TokenEncoder
    clusters: Clusters
    mode: Mode

    def tokenize(self, frames: np.ndarray) -> np.ndarray:
        """Return the token of each frame (T, F), int64 (T,)."""
        return self.clusters.segment(self.encoder.features(torch.from_numpy(frames.astype(np.int64))))

    def find_sequence(self, frames: np.ndarray) -> np.ndarray:
        """Return the tokens of frames (T, F) with their durations: frames (N, 2) of the mode TOKENS."""
        return join_tokens(self.tokenize(frames))

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors in half precision, for `from_state`."""
        encoder, clusters = self.encoder, self.clusters
        return {
            "mode": self.mode.name,
            "units": encoder.dense.out_features,
            "targets": encoder.out.out_features,
            "weights": {
                name: value.half() for name, value in encoder.state_dict().items() if value.is_floating_point()
            },
            "mean": clusters.mean,
            "std": clusters.std,
            "centres": clusters.centres.half(),
            "change_cost": clusters.change_cost,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Tokenizer":
        """Return the tokenizer of a state.

        Raises:
            ValueError: it is of another version of babble.
        """
        try:
            mode = get_mode(state["mode"])
            encoder = TokenEncoder(mode, state["units"], state["targets"])
            encoder.load_state_dict({name: value.float() for name, value in state["weights"].items()}, strict=False)
            centres = state["centres"].float()
            clusters = Clusters(state["mean"], state["std"], centres, state["change_cost"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the tokenizer was not written by this version of babble ({error})") from None
        return cls(encoder.eval(), clusters, mode)


def locate_tokenizer(folder: Path) -> Path:
    """Return the file that has the tokenizer of a folder of tokens, or of a voice.

    Raises:
        FileNotFoundError: it has none.
    """
    for path in (folder / FILE, RunFolder(folder).tokens):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no tokenizer: it is neither a folder of tokens nor a voice that has tokens.")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder of tokens, or of a voice.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged, or of another version of babble.
    """
    path = locate_tokenizer(folder)
    state = load_checkpoint(path)
    return Tokenizer.from_state(state if path.name == FILE else state["tokenizer"])


def train_encoder(
    config: EncoderConfig,
    mode: Mode,
    recordings: list[np.ndarray],
    targets: list[np.ndarray],
    seed: int,
    state_path: Path,
    report: Callable[[int, float], None],
) -> TokenEncoder:
    """Return a trained encoder in evaluation mode.

    Args:
        config: size and number of steps.
        mode: of the frames.
        recordings: frames (T, F) of each.
        targets: cluster of each frame, (T,).
        seed: random seed of weights, windows and masks.
        state_path: where the state is saved, to continue from; the caller removes it.
        report: called with the steps done and the mean loss since the last call, at most once per second.

    Raises:
        ValueError: less speech than one window.
    """
    frames_NF = torch.from_numpy(np.concatenate(recordings).astype(np.int16))
    targets_N = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    if len(frames_NF) <= WINDOW_FRAMES:
        raise ValueError(f"{len(frames_NF)} frames for training: more than {WINDOW_FRAMES} are needed.")
    torch.manual_seed(seed)
    encoder = TokenEncoder(mode, config.units, config.targets)
    optimizer = torch.optim.NAdam(encoder.parameters(), lr=LR, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, config.steps))
    first = 0
    if state_path.is_file():
        state = load_checkpoint(state_path)
        for name, part in (("encoder", encoder), ("optimizer", optimizer), ("schedule", schedule)):
            part.load_state_dict(state[name])
        first = state["step"]
    saved_at = reported_at = time.monotonic()
    losses: list[float] = []
    for step in range(first, config.steps):
        # By step, so that a stop changes nothing: dropout draws from torch's own generator.
        torch.manual_seed(seed * config.steps + step)
        generator = torch.Generator().manual_seed(seed * config.steps + step)
        starts_B = torch.randint(len(frames_NF) - WINDOW_FRAMES, (BATCH_SIZE, 1), generator=generator)
        rows_BT = starts_B + torch.arange(WINDOW_FRAMES)
        loss = encoder.loss(frames_NF[rows_BT].long(), targets_N[rows_BT], generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        now = time.monotonic()
        if now - saved_at >= SAVE_SECONDS:
            save_state(state_path, encoder, optimizer, schedule, step + 1)
            saved_at = now
        if now - reported_at >= REPORT_SECONDS or step + 1 == config.steps:
            report(step + 1, float(np.mean(losses)))
            reported_at, losses = now, []
    return encoder.eval()


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear warm-up, and a cosine to zero."""
    return min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_state(path: Path, encoder: TokenEncoder, optimizer: Any, schedule: Any, step: int) -> None:
    """Write everything that `train_encoder` continues from, whole or not at all."""
    parts = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    with replacing(path) as temporary:
        torch.save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, temporary)


def hidden_states(model: Babbler, frames_TF: Tensor) -> Tensor:
    """Return the output of the top layer of a frame model for each frame of a recording, (T, H)."""
    units = model.config.units
    return map_windows(lambda frames_BTF: model(frames_BTF)[0][..., -units:], frames_TF)
