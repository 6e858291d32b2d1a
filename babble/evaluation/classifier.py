"""Two-sample test: how well can a small classifier separate clips of babble from clips of real speech?

    accuracy = measure_accuracy(babble, held_out, mode, clip_frames=100)

An accuracy like that between two sets of real speech means that the classifier finds no difference.

1. Both sets are cut into clips of one length, none across two recordings, and clips are dropped evenly until both sets
   have the same number, a multiple of `NUM_FOLDS`.
2. The clips of each set are split into `NUM_FOLDS` folds of consecutive clips. In turn one fold is the test set, the
   next one the validation set for early stopping, and the classifier is trained on the others. So test clips are not
   adjacent to training clips, except at the ends of a fold.
3. The classifier: the sum of embedded fields, a bidirectional GRU, mean and maximum over the clip, one logit. Those of
   all folds are trained side by side.
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
from babble.evaluation.parallel_gru import run_gru
from babble.model.head import first_columns

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
# Of each fold.
FRAMES_PER_EVALUATION_BATCH = 12_800


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


class FoldClassifiers(nn.Module):
    """A classifier per fold: clips (K, B, T, F) -> the logits (K, B) that each belongs to the first set.

    They share no weights, and their gradients are independent: the first axis K of each weight is the classifier. L are
    the levels of all fields, placed end to end, W and U the widths of the embedding and of the GRU, D its directions, G
    its gates r, z, n, N all pairs of classifier and direction, and X all frames of all clips.
    """

    first_row_K1F: Tensor

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        num_levels = int(mode.levels.sum())
        rows_K1F = num_levels * torch.arange(NUM_FOLDS)[:, None, None] + torch.tensor(first_columns(mode))
        self.register_buffer("first_row_K1F", rows_K1F, persistent=False)
        self.table_KLW = nn.Parameter(torch.randn(NUM_FOLDS, num_levels, WIDTH) * mode.num_fields**-0.5)
        # Initialized as PyTorch does it; these two have the gates of both directions.
        self.input_KWG = _uniform(UNITS, NUM_FOLDS, WIDTH, 6 * UNITS)
        self.input_bias_KG = _uniform(UNITS, NUM_FOLDS, 6 * UNITS)
        self.recurrent_KDUG = _uniform(UNITS, NUM_FOLDS, 2, UNITS, 3 * UNITS)
        self.recurrent_bias_KDG = _uniform(UNITS, NUM_FOLDS, 2, 3 * UNITS)
        self.logit_KH = _uniform(4 * UNITS, NUM_FOLDS, 4 * UNITS)
        self.logit_bias_K1 = _uniform(4 * UNITS, NUM_FOLDS, 1)

    def forward(self, clips_KBTF: Tensor) -> Tensor:
        """Return the logits (K, B)."""
        rows_KXF = clips_KBTF.flatten(1, 2) + self.first_row_K1F
        x_W = functional.embedding_bag(rows_KXF.flatten(0, 1), self.table_KLW.flatten(0, 1), mode="sum")
        x_KXW = functional.dropout(x_W, DROPOUT, self.training).unflatten(0, (NUM_FOLDS, -1))
        x_KXG = torch.baddbmm(self.input_bias_KG[:, None], x_KXW, self.input_KWG)
        forward_TKBG, backward_TKBG = x_KXG.view(*clips_KBTF.shape[:3], -1).permute(2, 0, 1, 3).chunk(2, dim=-1)
        x_TNBG = torch.stack([forward_TKBG, backward_TKBG.flip(0)], dim=2).flatten(1, 2)
        outputs_TNBU = run_gru(x_TNBG, self.recurrent_KDUG.flatten(0, 1), self.recurrent_bias_KDG.flatten(0, 1))
        hidden_TKDBU = outputs_TNBU.unflatten(1, (NUM_FOLDS, 2))
        pooled = torch.stack([hidden_TKDBU.mean(dim=0), hidden_TKDBU.amax(dim=0)])
        pooled_KBH = functional.dropout(pooled.permute(1, 3, 0, 2, 4).flatten(2), DROPOUT, self.training)
        return torch.einsum("kbh,kh->kb", pooled_KBH, self.logit_KH) + self.logit_bias_K1


def _uniform(inputs: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


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
        """Keep `num_clips` clips, a multiple of the number of folds, spread evenly; assign them to folds."""
        kept = np.linspace(0, len(self.starts) - 1, num_clips).round().astype(int)
        self.starts, self.recording = self.starts[kept], self.recording[kept]
        self.folds = np.arange(NUM_FOLDS).repeat(num_clips // NUM_FOLDS)

    def clips(self, starts: np.ndarray) -> Tensor:
        """Return the clips (B, T, F) that start at these frames."""
        return self.frames[torch.from_numpy(starts[:, None] + np.arange(self.clip_frames))]

    def sample(self, fold: int, num_clips: int, rng: np.random.Generator) -> Tensor:
        """Return random training clips (B, T, F), shifted by a random offset if the next clip is a training clip too.

        Args:
            fold: the test fold, the next fold being the validation set; the other folds are the training set.
            num_clips: how many to sample.
            rng: source of randomness.
        """
        is_training = (self.folds != fold) & (self.folds != (fold + 1) % NUM_FOLDS)
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
    num_clips = min(len(clip_set.starts) for clip_set in sets) // NUM_FOLDS * NUM_FOLDS
    if num_clips < MIN_CLIPS:
        return None
    for clip_set in sets:
        clip_set.keep(num_clips)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        scores_K2 = _train_and_test(sets, mode, seed)
    accuracy, auc = scores_K2.mean(axis=0).tolist()
    reach = STUDENT_T * float(scores_K2[:, 0].std(ddof=1)) / math.sqrt(NUM_FOLDS)
    return Accuracy(accuracy, max(0.0, accuracy - reach), min(1.0, accuracy + reach), auc, num_clips)


def _train_and_test(sets: list[ClipSet], mode: Mode, seed: int) -> np.ndarray:
    """Return accuracy and AUC (K, 2) on each test fold, of the weights with the lowest validation loss."""
    clip_frames = sets[0].clip_frames
    half = max(MIN_CLIPS_PER_BATCH, FRAMES_PER_BATCH // clip_frames) // 2
    targets_KB = torch.cat([torch.ones(NUM_FOLDS, half), torch.zeros(NUM_FOLDS, half)], dim=1)
    steps_per_check = max(1, FRAMES_PER_CHECK // (2 * half * clip_frames))
    # Classifier k is tested on fold k and validated on the next one.
    tests = [s.clips(s.starts).unflatten(0, (NUM_FOLDS, -1)) for s in sets]
    validations = [clips_KBTF.roll(-1, dims=0) for clips_KBTF in tests]
    rngs = [np.random.default_rng([seed, fold]) for fold in range(NUM_FOLDS)]
    classifiers = FoldClassifiers(mode)
    optimizer = torch.optim.AdamW(classifiers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    weights = list(classifiers.parameters())
    best_weights = [weight.detach().clone() for weight in weights]
    best_loss_K, best_check_K = np.full(NUM_FOLDS, np.inf), np.zeros(NUM_FOLDS)
    is_training_K = np.full(NUM_FOLDS, True)
    for check in range(FRAMES_PER_FOLD // FRAMES_PER_CHECK):
        for _ in range(steps_per_check):
            clips = [torch.cat([s.sample(fold, half, rng) for s in sets]) for fold, rng in enumerate(rngs)]
            losses_KB = functional.binary_cross_entropy_with_logits(
                classifiers(torch.stack(clips)), targets_KB, reduction="none"
            )
            optimizer.zero_grad()
            losses_KB.mean(dim=1).sum().backward()
            _clip_gradients(classifiers)
            optimizer.step()
        ours_KB, theirs_KB = (_compute_logits(classifiers, clips) for clips in validations)
        loss_K = ((functional.softplus(-ours_KB) + functional.softplus(theirs_KB)).mean(dim=1) / 2).numpy()
        is_best_K = is_training_K & (loss_K < best_loss_K)
        best_loss_K[is_best_K], best_check_K[is_best_K] = loss_K[is_best_K], check
        for best, weight in zip(best_weights, weights, strict=True):
            best[is_best_K] = weight.detach()[is_best_K]
        is_training_K &= (loss_K >= SOLVED_LOSS) & (check - best_check_K < PATIENCE)
        if not is_training_K.any():
            break
    with torch.no_grad():
        for best, weight in zip(best_weights, weights, strict=True):
            weight.copy_(best)
    logits = zip(*(_compute_logits(classifiers, clips) for clips in tests), strict=True)
    return np.array([score_logits(*pair) for pair in logits])


def _clip_gradients(classifiers: FoldClassifiers) -> None:
    """Scale the gradients of each classifier to a norm of at most 1."""
    gradients = [parameter.grad for parameter in classifiers.parameters() if parameter.grad is not None]
    norm_K = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale_K = (1 / (norm_K + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale_K.view(-1, *[1] * (gradient.dim() - 1)))


@torch.no_grad()
def _compute_logits(classifiers: FoldClassifiers, clips_KBTF: Tensor) -> Tensor:
    classifiers.eval()
    clips_per_batch = max(1, FRAMES_PER_EVALUATION_BATCH // clips_KBTF.shape[2])
    logits_KB = torch.cat([classifiers(clips) for clips in clips_KBTF.split(clips_per_batch, dim=1)], dim=1)
    classifiers.train()
    return logits_KB


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
