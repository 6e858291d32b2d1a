"""Two-sample test: how well can a small classifier separate clips of babble from clips of real speech?

    accuracy = measure_accuracy(babble, held_out, mode, clip_frames=100)

An accuracy like that between two sets of real speech means that the classifier finds no difference.

1. Both sets are cut into clips of one length, none across two recordings, and clips are dropped evenly until both sets
   have the same number.
2. The clips of each set are split into `NUM_FOLDS` folds of consecutive clips. In turn one fold is the test set, the
   next one the validation set for early stopping, and the classifier is trained on the others. So test clips are not
   adjacent to training clips, except at the ends of a fold.
3. The classifier: the sum of embedded fields, a bidirectional GRU, mean and maximum over the clip, one logit.
4. The result is the mean accuracy over the test folds, with an interval from how the folds differ.

Training on a fold is bounded: by `FRAMES_PER_FOLD` frames, so that clips of any length cost about the same, and by
early stopping after `PATIENCE` checks without improvement, or at a validation loss below `SOLVED_LOSS`.

Source: Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests.
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
WEIGHT_DECAY = 0.01
FRAMES_PER_BATCH = 3200
MIN_CLIPS_PER_BATCH = 8
FRAMES_PER_FOLD = 240_000
FRAMES_PER_CHECK = 60_000
PATIENCE = 2
# Cross-entropy per validation clip, in nats: below it, training stops.
SOLVED_LOSS = 0.02
MIN_CLIPS = 2 * NUM_FOLDS
CLIPS_PER_EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Accuracy:
    """How well a classifier separates two sets of clips; 0.5 is chance.

    Attributes:
        accuracy: share of test clips assigned to the right set, knowing that half of them belong to each.
        low: lower end of its 95 % interval, from how the folds differ.
        high: upper end of the interval.
        auc: probability that, of one clip of each set, the right one has the higher logit (area under the ROC curve).
        clips: number of clips of each set.
    """

    accuracy: float
    low: float
    high: float
    auc: float
    clips: int


class ClipClassifier(nn.Module):
    """Clips (B, T, F) -> the logit (B,) that each belongs to the first set."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.input = EmbeddedInput(mode, WIDTH)
        self.gru = nn.GRU(WIDTH, UNITS, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.logit = nn.Linear(4 * UNITS, 1)

    def forward(self, clips_BTF: Tensor) -> Tensor:
        """Return the logits (B,)."""
        hidden_BTH, _ = self.gru(self.dropout(self.input(clips_BTF)))
        pooled_BH = torch.cat([hidden_BTH.mean(dim=1), hidden_BTH.amax(dim=1)], dim=-1)
        return self.logit(self.dropout(pooled_BH)).squeeze(-1)


class ClipSet:
    """One set's frames, where its clips start, and the fold of each clip.

    Args:
        recordings: (T, F) each.
        clip_frames: length of a clip.
    """

    def __init__(self, recordings: list[np.ndarray], clip_frames: int) -> None:
        self.clip_frames = clip_frames
        self.frames = torch.from_numpy(np.concatenate(recordings).astype(np.int64))
        lengths = np.array([len(recording) for recording in recordings])
        counts = lengths // clip_frames
        self.recording = np.repeat(np.arange(len(recordings)), counts)
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self.starts = np.repeat(lengths.cumsum() - lengths, counts) + within * clip_frames

    def keep(self, num_clips: int) -> None:
        """Keep `num_clips` clips, spread evenly, and assign them to folds."""
        kept = np.linspace(0, len(self.starts) - 1, num_clips).round().astype(int)
        self.starts, self.recording = self.starts[kept], self.recording[kept]
        self.folds = np.arange(num_clips) * NUM_FOLDS // num_clips

    def clips(self, starts: np.ndarray) -> Tensor:
        """Return the clips (B, T, F) that start at these frames."""
        return self.frames[torch.from_numpy(starts[:, None] + np.arange(self.clip_frames))]

    def sample(self, is_training: np.ndarray, num_clips: int, rng: np.random.Generator) -> Tensor:
        """Return random training clips (B, T, F), shifted by a random offset if the next clip is a training clip too.

        Args:
            is_training: which clips are training clips, bool (clips,).
            num_clips: how many to sample.
            rng: source of randomness.
        """
        chosen = rng.choice(np.flatnonzero(is_training), num_clips)
        following = np.minimum(chosen + 1, len(is_training) - 1)
        may_shift = (
            is_training[following]
            & (self.recording[following] == self.recording[chosen])
            & (self.starts[following] == self.starts[chosen] + self.clip_frames)
        )
        return self.clips(self.starts[chosen] + may_shift * rng.integers(0, self.clip_frames, num_clips))


def measure_accuracy(
    ours: list[np.ndarray], theirs: list[np.ndarray], mode: Mode, clip_frames: int, seed: int = 0
) -> Accuracy | None:
    """Return how well a classifier separates clips of two sets of speech, or None if either has too few clips.

    Args:
        ours: recordings (T, F), e.g. of babble.
        theirs: recordings (T, F), e.g. of real speech.
        mode: the mode of all frames.
        clip_frames: length of a clip.
        seed: random seed of weights, dropout and the order of clips.
    """
    sets = [ClipSet(recordings, clip_frames) for recordings in (ours, theirs)]
    num_clips = min(len(clip_set.starts) for clip_set in sets)
    if num_clips < MIN_CLIPS:
        return None
    for clip_set in sets:
        clip_set.keep(num_clips)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        scores = np.array([_run_fold(sets, mode, fold, seed) for fold in range(NUM_FOLDS)])
    accuracy, auc = scores.mean(axis=0).tolist()
    reach = STUDENT_T * float(scores[:, 0].std(ddof=1)) / math.sqrt(NUM_FOLDS)
    return Accuracy(accuracy, max(0.0, accuracy - reach), min(1.0, accuracy + reach), auc, num_clips)


def _run_fold(sets: list[ClipSet], mode: Mode, fold: int, seed: int) -> tuple[float, float]:
    """Return accuracy and AUC on a test fold, of the weights with the lowest validation loss."""
    torch.manual_seed(seed * NUM_FOLDS + fold)
    rng = np.random.default_rng([seed, fold])
    validation_fold = (fold + 1) % NUM_FOLDS
    test, validation = ([s.clips(s.starts[s.folds == chosen]) for s in sets] for chosen in (fold, validation_fold))
    is_training = [(s.folds != fold) & (s.folds != validation_fold) for s in sets]
    network = ClipClassifier(mode)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    clip_frames = sets[0].clip_frames
    half = max(MIN_CLIPS_PER_BATCH, FRAMES_PER_BATCH // clip_frames) // 2
    targets = torch.cat([torch.ones(half), torch.zeros(half)])
    steps_per_check = max(1, FRAMES_PER_CHECK // (2 * half * clip_frames))
    best_loss, best_check, scores = math.inf, 0, (0.5, 0.5)
    for check in range(FRAMES_PER_FOLD // FRAMES_PER_CHECK):
        for _ in range(steps_per_check):
            clips = torch.cat([s.sample(chosen, half, rng) for s, chosen in zip(sets, is_training, strict=True)])
            loss = functional.binary_cross_entropy_with_logits(network(clips), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        ours, theirs = (_compute_logits(network, clips) for clips in validation)
        validation_loss = float((functional.softplus(-ours).mean() + functional.softplus(theirs).mean()) / 2)
        if validation_loss < best_loss:
            best_loss, best_check = validation_loss, check
            scores = score_logits(*(_compute_logits(network, clips) for clips in test))
        if validation_loss < SOLVED_LOSS or check - best_check >= PATIENCE:
            break
    return scores


@torch.no_grad()
def _compute_logits(network: ClipClassifier, clips_BTF: Tensor) -> Tensor:
    network.eval()
    logits_B = torch.cat([network(clips) for clips in clips_BTF.split(CLIPS_PER_EVALUATION_BATCH)])
    network.train()
    return logits_B


def score_logits(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return accuracy and AUC of the logits (B,) of both sets; equal logits count half.

    The threshold is the median of all logits, so half of the clips are assigned to each set. A threshold from training
    would be off wherever the test fold differs a little from the others, e.g. drones that hold different tones.
    """
    threshold = torch.cat([ours, theirs]).double().quantile(0.5)
    accuracy = (_share_above(ours, threshold) + 1 - _share_above(theirs, threshold)) / 2
    return accuracy, _share_above(ours[:, None], theirs)


def _share_above(values: Tensor, others: Tensor) -> float:
    return ((values > others).double() + (values == others).double() / 2).mean().item()
