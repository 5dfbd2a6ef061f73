"""Layer-adaptive magnitude."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.l2 import l2


def lamp(model: nn.Module, group: bool = True, base: Criterion | None = None) -> Criterion:
    """Scores: each unit's squared L2 norm (or its score by `base`) as a share of those of all units at least as large.

    With scores in ascending order, ``s_i / sum over j >= i of s_j``; the largest unit of every axis has 1, so that a ranking
    across axes leaves one everywhere. Rank with ``normalise="none"``. Where all that is left is zero, zero.

    Source: Lee et al., 2021 (LAMP), eq. 5, which is of single weights; of units as in Torch-Pruning (Fang et al., 2023).
    """
    norm = l2(model, group)

    def score(axis: Axis) -> Tensor:
        sizes = (norm(axis).double().square() if base is None else base(axis).double()).cpu()
        ascending, order = sizes.sort(stable=True)
        rest = ascending.flip(0).cumsum(0).flip(0)
        return sizes.new_zeros(len(sizes)).scatter_(0, order, torch.where(rest == 0, 0.0, ascending / rest))

    return score
