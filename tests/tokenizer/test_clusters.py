"""Clusters, and the cheapest path through them."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from babble.tokenizer.clusters import Clusters, assign, find_centres, fit_clusters


def price(path: tuple[int, ...], distances_TK: np.ndarray, change_cost: float) -> float:
    changes = sum(a != b for a, b in pairwise(path))
    return float(sum(distances_TK[t, k] for t, k in enumerate(path)) + change_cost * changes)


@pytest.mark.parametrize("change_cost", [0.0, 0.5, 2.0, 100.0])
def test_segments_are_the_cheapest_of_all_paths(change_cost: float) -> None:
    rng = np.random.default_rng(int(change_cost))
    centres, features = torch.from_numpy(rng.normal(size=(3, 2))).float(), rng.normal(size=(7, 2))
    clusters = Clusters(torch.zeros(2), torch.ones(2), centres, change_cost)
    found = clusters.segment(torch.from_numpy(features))
    distances_TK = ((features[:, None] - centres.numpy()) ** 2).sum(-1)
    best = min(price(path, distances_TK, change_cost) for path in product(range(3), repeat=7))
    assert price(tuple(found), distances_TK, change_cost) == pytest.approx(best, rel=1e-5)
    if not change_cost:
        assert (found == distances_TK.argmin(1)).all()


def test_a_price_gives_fewer_longer_segments() -> None:
    features = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    changes = []
    for relative_cost in (0.0, 0.6, 3.0):
        tokens = fit_clusters(features, 20, relative_cost, seed=0).segment(features)
        changes.append(int((np.diff(tokens) != 0).sum()))
    assert changes[0] > changes[1] > changes[2] > 0


def test_far_apart_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50]])
    rows = (groups[:, None] + torch.randn(4, 100, 2, generator=generator)).flatten(0, 1)
    centres = find_centres(rows, 4, seed=1)
    found = assign(rows, centres).view(4, 100)
    assert (found == found[:, :1]).all()
    assert len(found[:, 0].unique()) == 4
    with pytest.raises(ValueError, match="400 frames can't form 500 clusters"):
        find_centres(rows, 500, seed=1)
