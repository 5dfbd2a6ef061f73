"""Greedy removal by the error in the next layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import otherwise, readers
from secateur.criteria.places import plain
from secateur.measure.layers import matrix
from secateur.measure.moments import contributions, input_moments, stack


def thinet(model: nn.Module, batches: Batches, *, limit: int | None = None, default: Criterion | None = None) -> Criterion:
    """Scores: the place of each unit in the order of greedy removal, from 0 (goes first) up to, not including, 1.

    Each step removes the unit with which ``|sum over removed c of X_c W_c|^2``, what the readers of the axis lose, is
    smallest; errors of several readers add up. All positions of all samples of `batches` (at most `limit`) count.
    An axis that no linear layer or convolution reads gets its scores from `default`; with none it raises
    `SecateurError`. Each axis makes its own pass, on the weights as they then are.

    Source: Luo et al., 2017 (ThiNet), eq. 6 and algorithm 1. The paper samples ten positions per image; here the sums
    are exact, by the Gram matrix of what each unit contributes. Its least-squares scaling is `repair.least_squares`.
    """

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "thinet", "no linear layer or convolution without groups that reads it")
        moments = input_moments(model, sorted({reader.name for reader in found}), batches, limit)
        parts = [contributions(moments[reader.name], plain(matrix(reader.module)), reader.blocks) for reader in found]
        order = greedy_removal(stack(parts)[0])
        scores = torch.empty(axis.units, dtype=torch.float64)
        scores[order] = torch.arange(axis.units, dtype=torch.float64) / axis.units
        return scores

    return score


def greedy_removal(gram: Tensor) -> list[int]:
    """Units in the order in which they go; `gram` (N, N) holds the inner products of their contributions."""
    cost = gram.diagonal().clone()  # by how much the error grows with each unit
    order: list[int] = []
    for _ in range(len(gram)):
        unit = int(cost.argmin())
        order.append(unit)
        cost += 2 * gram[unit]
        cost[unit] = torch.inf
    return order
