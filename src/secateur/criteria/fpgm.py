"""Filter pruning via geometric median."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.places import parameters, places


def fpgm(model: nn.Module, group: bool = False, *, squares: bool = False) -> Criterion:
    """Scores: the sum of Euclidean distances from the weights of each unit to those of all other units of the axis.

    A unit near all others can be replaced by them. Distances are between the weights that write the units (all
    writers of a residual sum as one vector), with `group` between all parameter entries that a cut would remove. With
    `squares` they are between the squares of the weights, those that write the units and those that read them each on
    their own, and added up; norms and biases are left out. Ask an allocator for ``normalise="mean"`` then.

    Source: He et al., 2019 (FPGM), eq. 4 and 6, where distances are between the weights themselves. Their squares are the
    arithmetic of Torch-Pruning 1.6.1, which without retraining lost less at high rates (docs/decisions.md).
    """
    weights = parameters(model)

    def score(axis: Axis) -> Tensor:
        if squares:
            rows = [place.rows().square() for place in places(axis, weights) if place.parameter.ndim > 1]
            if rows:
                return torch.stack([sum_of_distances([each]) for each in rows]).sum(0)
        return sum_of_distances([place.rows() for place in places(axis, weights, group)])

    return score


def sum_of_distances(rows: list[Tensor]) -> Tensor:
    """Sum over `j` of ``||w_i - w_j||``, `w_i` being row `i` of all `rows` (N, D) side by side; (N,), on the CPU.

    By ``||a - b||^2 = a.a - 2 a.b + b.b``, one matrix product per tensor. Between equal units single precision leaves
    about 1e-3 of their norm in place of 0, which is lost in the sum over all others.
    """
    gram = rows[0] @ rows[0].T  # (N, N)
    for part in rows[1:]:
        gram.addmm_(part, part.T)
    norms = gram.diagonal()
    squares = (norms[:, None] - 2 * gram + norms).clamp_min(0).fill_diagonal_(0)
    return squares.sqrt().sum(1).cpu()
