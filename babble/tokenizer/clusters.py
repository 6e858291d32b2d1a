"""Features of frames -> tokens: clusters, and segments of frames that share one.

    clusters = fit_clusters(features_NH, num_clusters=500, seed=0)
    tokens_T = clusters.segment(features_TH)

The nearest cluster of every frame by itself changes with every frame's noise. `segment` chooses the sequence of
clusters with the least sum of squared distances plus a price for every change: fewer, longer tokens that carry more.

Sources: k-means++, Arthur and Vassilvitskii 2007; segmentation by dynamic programming, Kamper and van Niekerk 2020.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Frames on which the first centres are chosen, and iterations of k-means.
START_FRAMES, ITERATIONS = 20_000, 12
ROWS_AT_ONCE = 20_000


def _distances(rows_NH: Tensor, centres_KH: Tensor) -> Tensor:
    """Return squared distances (N, K)."""
    squares = (rows_NH**2).sum(1, keepdim=True) + (centres_KH**2).sum(1)
    return torch.addmm(squares, rows_NH, centres_KH.T, alpha=-2).clamp(min=0)


def assign(rows_NH: Tensor, centres_KH: Tensor) -> Tensor:
    """Return the nearest centre of each row, int64 (N,)."""
    return torch.cat([_distances(rows, centres_KH).argmin(1) for rows in rows_NH.split(ROWS_AT_ONCE)])


def find_centres(rows_NH: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Return k-means centres (K, H) of rows.

    Raises:
        ValueError: fewer rows than clusters.
    """
    if len(rows_NH) < num_clusters:
        raise ValueError(
            f"{len(rows_NH)} frames can't form {num_clusters} clusters: use more speech or fewer clusters."
        )
    generator = torch.Generator().manual_seed(seed)
    sample = rows_NH[torch.randperm(len(rows_NH), generator=generator)[:START_FRAMES]]
    chosen = [sample[0]]
    nearest_N = ((sample - chosen[0]) ** 2).sum(1)
    for _ in range(num_clusters - 1):
        # Equal rows may be all that is left.
        weights = nearest_N if nearest_N.sum() > 0 else torch.ones_like(nearest_N)
        chosen.append(sample[torch.multinomial(weights, 1, generator=generator)[0]])
        nearest_N = torch.minimum(nearest_N, ((sample - chosen[-1]) ** 2).sum(1))
    centres_KH = torch.stack(chosen)
    for _ in range(ITERATIONS):
        clusters_N = assign(rows_NH, centres_KH)
        counts_K = torch.bincount(clusters_N, minlength=num_clusters)
        sums_KH = torch.zeros_like(centres_KH).index_add_(0, clusters_N, rows_NH)
        # An empty cluster stays where it was.
        centres_KH = torch.where(counts_K[:, None] > 0, sums_KH / counts_K.clamp(min=1)[:, None], centres_KH)
    return centres_KH


@dataclass(frozen=True)
class Clusters:
    """Clusters of standardized features.

    Attributes:
        mean: of the features, (H,).
        std: of the features, (H,).
        centres: of the clusters, (K, H).
        change_cost: price of a change of cluster between two frames, in squared distance.
    """

    mean: Tensor
    std: Tensor
    centres: Tensor
    change_cost: float

    def segment(self, features_TH: Tensor) -> np.ndarray:
        """Return the cluster of each frame, int64 (T,), by the cheapest path."""
        standardized_TH = (features_TH.float() - self.mean) / self.std
        costs_K = np.zeros(len(self.centres), np.float32)
        came_from = np.zeros(len(features_TH), np.int64)
        is_changed_TK = np.zeros((len(features_TH), len(self.centres)), bool)
        t = 0
        for rows in standardized_TH.split(ROWS_AT_ONCE):
            for distances_K in _distances(rows, self.centres).numpy():
                came_from[t] = costs_K.argmin()
                after_change = costs_K[came_from[t]] + self.change_cost
                is_changed_TK[t] = costs_K > after_change
                # Relative to the cheapest, so that float32 keeps the small differences of a long recording.
                costs_K = np.minimum(costs_K, after_change) - costs_K[came_from[t]] + distances_K
                t += 1
        tokens_T = np.zeros(len(features_TH), np.int64)
        token = int(costs_K.argmin())
        for t in range(len(tokens_T) - 1, -1, -1):
            tokens_T[t] = token
            if is_changed_TK[t, token]:
                token = int(came_from[t])
        return tokens_T


def fit_clusters(features_NH: Tensor, num_clusters: int, relative_cost: float, seed: int) -> Clusters:
    """Return clusters of features (N, H).

    Args:
        features_NH: of a sample of frames.
        num_clusters: K.
        relative_cost: price of a change, relative to the mean squared distance from the nearest centre.
        seed: random seed of the first centres.
    """
    mean, std = features_NH.mean(0), features_NH.std(0).clamp(min=1e-6)
    standardized_NH = (features_NH - mean) / std
    centres = find_centres(standardized_NH, num_clusters, seed)
    nearest_N = torch.cat([_distances(rows, centres).min(1).values for rows in standardized_NH.split(ROWS_AT_ONCE)])
    return Clusters(mean, std, centres, relative_cost * float(nearest_N.mean()))
