"""The classifier test: can a small network tell babble from real speech, given clips of both?

Where it can do no better than between two segments of real speech, it finds nothing in babble that is not in speech.

1. Both sides are cut into clips of one length, none across two recordings, and as many of one as of the other.
2. In time each side falls into `NUM_FOLDS` segments. In turn one of them is held back for the test, the next chooses
   when to stop, and a network learns from the rest: nothing that lies beside a learned frame is tested, but at the
   ends of a segment.
3. The network: embedded fields summed, a bidirectional GRU, its mean and maximum over the clip, one logit.
4. The accuracy on the clips held back, over all turns, and what the turns differ by.

A turn's training is bounded: `FRAMES_PER_TURN` frames at most, so that clips of any length cost about the same; and it
ends early once `PATIENCE` checks on the choosing clips brought nothing, or nothing is left to learn.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from babble.codec.frames import Mode
from babble.model.babbler import EmbeddedInput

NUM_FOLDS = 5
# Student's t at 97.5 % with NUM_FOLDS - 1 degrees of freedom.
STUDENT_T = 2.776
WIDTH = 64
UNITS = 64
DROPOUT = 0.3
LEARNING_RATE = 3e-3
FRAMES_PER_BATCH = 3200
MIN_CLIPS_PER_BATCH = 8
FRAMES_PER_TURN = 240_000
FRAMES_PER_CHECK = 60_000
PATIENCE = 2
# Cross-entropy a choosing clip, in nats: below it, nothing is left to learn.
SOLVED_COST = 0.02
WEIGHT_DECAY = 0.01
MIN_CLIPS = 2 * NUM_FOLDS
JUDGED_AT_ONCE = 128


@dataclass(frozen=True)
class Accuracy:
    """How well clips are told apart; chance is 0.5.

    Attributes:
        accuracy: share of held-back clips put on the right side by who knows that half of them are of either.
        low: lower end of its 95 % interval, from how the turns differ.
        high: upper end.
        auc: probability that of one clip of either side the right one looks more like babble.
        clips: how many clips of each side were judged.
    """

    accuracy: float
    low: float
    high: float
    auc: float
    clips: int


class ClipClassifier(nn.Module):
    """Clips (B, T, F) -> the logit (B,) that each is of our side."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.input = EmbeddedInput(mode, WIDTH)
        self.gru = nn.GRU(WIDTH, UNITS, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.logit = nn.Linear(4 * UNITS, 1)

    def forward(self, clips_BTF: Tensor) -> Tensor:
        """Return the logits (B,)."""
        hidden_BTH, _ = self.gru(self.dropout(self.input(clips_BTF)))
        pooled = torch.cat([hidden_BTH.mean(dim=1), hidden_BTH.amax(dim=1)], dim=-1)
        return self.logit(self.dropout(pooled)).squeeze(-1)


class _Side:
    """One side's frames, where its clips start, and which fold, a segment of time, each clip is in."""

    def __init__(self, recordings: list[np.ndarray], clip_frames: int) -> None:
        self.clip_frames = clip_frames
        self.frames = torch.from_numpy(np.concatenate(recordings).astype(np.int64))
        lengths = np.array([len(recording) for recording in recordings])
        counts = lengths // clip_frames
        self.recording = np.repeat(np.arange(len(recordings)), counts)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self.starts = np.repeat(lengths.cumsum() - lengths, counts) + within * clip_frames

    def keep(self, num_clips: int) -> None:
        """Leave so many clips, spread evenly, and deal them to the folds."""
        kept = np.linspace(0, len(self.starts) - 1, num_clips).round().astype(int)
        self.starts, self.recording = self.starts[kept], self.recording[kept]
        self.folds = np.arange(num_clips) * NUM_FOLDS // num_clips

    def clips(self, starts: np.ndarray) -> Tensor:
        """Return the clips (B, T, F) that start there."""
        return self.frames[torch.from_numpy(starts[:, None] + np.arange(self.clip_frames))]

    def draw(self, is_learned: np.ndarray, num_clips: int, rng: np.random.Generator) -> Tensor:
        """Return clips to learn from, shifted at random into the clip behind where that is learned from too."""
        chosen = rng.choice(np.flatnonzero(is_learned), num_clips)
        behind = np.minimum(chosen + 1, len(is_learned) - 1)
        may_shift = (
            is_learned[behind]
            & (self.recording[behind] == self.recording[chosen])
            & (self.starts[behind] == self.starts[chosen] + self.clip_frames)
        )
        return self.clips(self.starts[chosen] + may_shift * rng.integers(0, self.clip_frames, num_clips))


def measure_accuracy(
    ours: list[np.ndarray], theirs: list[np.ndarray], mode: Mode, clip_frames: int, seed: int = 0
) -> Accuracy | None:
    """Return how well a classifier tells clips of two kinds of speech apart; None with too little speech for that.

    Args:
        ours: recordings (T, F), say of babble.
        theirs: recordings (T, F), say of real speech; clips of the side that has more are left out evenly.
        mode: the mode of all of them.
        clip_frames: length of a clip.
        seed: of weights, dropout and the order of clips.
    """
    sides = [_Side(recordings, clip_frames) for recordings in (ours, theirs)]
    num_clips = min(len(side.starts) for side in sides)
    if num_clips < MIN_CLIPS:
        return None
    for side in sides:
        side.keep(num_clips)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        turns = np.array([_take_turn(sides, mode, fold, seed) for fold in range(NUM_FOLDS)])
    accuracy, auc = turns.mean(axis=0).tolist()
    reach = STUDENT_T * float(turns[:, 0].std(ddof=1)) / math.sqrt(NUM_FOLDS)
    return Accuracy(accuracy, max(0.0, accuracy - reach), min(1.0, accuracy + reach), auc, num_clips)


def _take_turn(sides: list[_Side], mode: Mode, fold: int, seed: int) -> tuple[float, float]:
    """Return accuracy and AUC on a fold that is held back."""
    torch.manual_seed(seed * NUM_FOLDS + fold)
    rng = np.random.default_rng([seed, fold])
    test, choose = (
        [side.clips(side.starts[side.folds == part]) for side in sides] for part in (fold, (fold + 1) % NUM_FOLDS)
    )
    learned = [(side.folds != fold) & (side.folds != (fold + 1) % NUM_FOLDS) for side in sides]
    network = ClipClassifier(mode)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    clip_frames = sides[0].clip_frames
    half = max(MIN_CLIPS_PER_BATCH, FRAMES_PER_BATCH // clip_frames) // 2
    is_ours = torch.cat([torch.ones(half), torch.zeros(half)])
    steps_per_check = max(1, FRAMES_PER_CHECK // (2 * half * clip_frames))
    best, best_check, judged = math.inf, 0, (0.5, 0.5)
    for check in range(FRAMES_PER_TURN // FRAMES_PER_CHECK):
        for _ in range(steps_per_check):
            clips = torch.cat([side.draw(part, half, rng) for side, part in zip(sides, learned, strict=True)])
            loss = functional.binary_cross_entropy_with_logits(network(clips), is_ours)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        our_logits, their_logits = (_judge(network, clips) for clips in choose)
        cost = float((functional.softplus(-our_logits).mean() + functional.softplus(their_logits).mean()) / 2)
        if cost < best:
            best, best_check = cost, check
            judged = _score(*(_judge(network, clips) for clips in test))
        if cost < SOLVED_COST or check - best_check >= PATIENCE:
            break
    return judged


@torch.no_grad()
def _judge(network: ClipClassifier, clips_BTF: Tensor) -> Tensor:
    """Return the logits (B,) of clips."""
    network.eval()
    logits = torch.cat([network(clips) for clips in clips_BTF.split(JUDGED_AT_ONCE)])
    network.train()
    return logits


def _score(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return accuracy and AUC of the logits of both sides; equal logits count half.

    The half that looks most like ours is called ours. A line drawn in learning would lie wrong wherever the held-back
    segment differs a little from the others, as between drones that stick to different tones.
    """
    middle = torch.cat([ours, theirs]).double().quantile(0.5)
    accuracy = (_share_above(ours, middle) + 1 - _share_above(theirs, middle)) / 2
    return accuracy, _share_above(ours[:, None], theirs)


def _share_above(values: Tensor, others: Tensor) -> float:
    return ((values > others).double() + (values == others).double() / 2).mean().item()
