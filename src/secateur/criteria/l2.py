"""L2 norm of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.places import parameters, places, plain, power_totals


def l2(model: nn.Module, group: bool = True, *, biases: bool = False) -> Criterion:
    """Scores: the Euclidean norm of each unit's weights, as they are now.

    With `group`, of every weight that a cut of the unit would remove: the weights that write it, the scale of its batch norm,
    the weights that read it; with `biases` their biases and that of the norm too. Without, of the weights that write it alone.

    Source: Li et al., 2017, section 4.4, and He et al., 2018 (Soft Filter Pruning), eq. 2, are `group=False`.
    `group=True` is the group norm of Fang et al., 2023 (DepGraph), who take no root and average over the tensors.
    """
    weights = parameters(model)
    sums = {weight: power_totals(plain(weight), 2) for weight in weights.values()}

    def score(axis: Axis) -> Tensor:
        found = places(axis, weights, group, biases=biases)
        return torch.stack([place.gather(sums).sum(-1) for place in found]).sum(0).sqrt()

    return score
