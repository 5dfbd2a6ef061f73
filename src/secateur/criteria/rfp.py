"""Redundant-feature pruning: filters that point the same way."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.places import parameters, places

FARTHEST = 2.0
"""The largest cosine distance."""


def rfp(model: nn.Module, group: bool = False, method: Literal["complete", "average", "single"] = "complete") -> Criterion:
    """Scores: the cosine distance at which each unit is merged into a cluster that a unit of larger norm stands for.

    Agglomerative clustering of the weights that write the units (with `group`, of all that a cut would remove). When two
    clusters merge, the one whose representative has the smaller norm loses it, and that unit's score is the height of the
    merge. So the units with scores above 1 - t are exactly one per cluster of the tree cut at similarity t, as
    `allocate.threshold(axes, scores, 1 - t)` takes them. The last representative has 2, units of zero weight have 0.

    Source: Ayinde and Zurada, 2018 (arXiv 1802.07653), section 3; the paper keeps a random unit of each cluster, this
    the one of largest norm, and orders the rest so that any budget can be met.
    """
    weights = parameters(model)

    def score(axis: Axis) -> Tensor:
        rows = torch.cat([place.rows() for place in places(axis, weights, group)], 1).double().cpu().numpy()
        return torch.from_numpy(merge_heights(rows, method))

    return score


def merge_heights(rows: np.ndarray, method: str) -> np.ndarray:
    """The height at which each row (N, D) stops standing for its cluster; (N,)."""
    norms = np.linalg.norm(rows, axis=1)
    alive = np.flatnonzero(norms > 0)
    heights = np.where(np.isfinite(norms), 0.0, np.nan)
    alive = alive[np.isfinite(norms[alive])]
    heights[alive] = FARTHEST
    if len(alive) < 2:
        return heights
    standing = dict(enumerate(alive))  # cluster to its representative
    for number, (a, b, height, _) in enumerate(linkage(rows[alive], method, metric="cosine")):
        one, other = standing.pop(int(a)), standing.pop(int(b))
        loser, winner = (one, other) if norms[one] < norms[other] else (other, one)
        heights[loser] = max(height, 0.0)  # equal vectors can be at -1e-16
        standing[len(alive) + number] = winner
    return heights
