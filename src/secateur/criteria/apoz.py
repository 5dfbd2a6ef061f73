"""Average percentage of zeros."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import mean_over_features, otherwise, readers


def apoz(model: nn.Module, batches: Batches, *, limit: int | None = None, default: Criterion | None = None) -> Criterion:
    """Scores: the share of each unit's activations that are not zero, over `batches` (at most `limit`): 1 - APoZ.

    Activations are the inputs of the layers that read the units; mean over the readers. It tells units apart only behind
    activations that give zeros. An axis that no linear layer or convolution reads gets its scores from `default`; with none
    it raises `SecateurError`. Each axis makes its own pass, on the weights as they then are.

    Source: Hu et al., 2016 (Network Trimming), eq. 1, which is of the outputs of a ReLU, before pooling.
    """

    def alive(features: Tensor) -> tuple[Tensor, int]:  # (B, N, E, ...)
        nonzero = torch.where(features.isfinite(), (features != 0).double(), torch.nan).movedim(1, 0).flatten(1)
        return nonzero.sum(1), nonzero.shape[1]

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "apoz", "no linear layer or convolution without groups that reads it")
        return mean_over_features(model, found, batches, alive, limit=limit)

    return score
