"""Rank of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import mean_over_features, otherwise, readers
from secateur.criteria.places import plain


def hrank(model: nn.Module, batches: Batches, *, limit: int | None = None, default: Criterion | None = None) -> Criterion:
    """Scores: the mean rank of each unit's feature map (height x width) over the images of `batches` (at most `limit`).

    Maps are the inputs of the 2d convolutions that read the units, that is after activation and pooling; mean over the
    readers, and over the maps of a unit that has several. An axis that no such convolution reads gets its scores from
    `default`; with none it raises `SecateurError`. Each axis makes its own pass, on the weights as they then are.

    Source: Lin et al., 2020 (HRank), eq. 4 and 5. The paper reads the maps before pooling, and of one layer.
    """

    def ranks(maps: Tensor) -> tuple[Tensor, int]:  # (B, N, E, H, W)
        found = torch.linalg.matrix_rank(plain(maps))
        return found.double().mean(2).sum(0), len(maps)

    def score(axis: Axis) -> Tensor:
        found = [reader for reader in readers(model, axis) if isinstance(reader.module, nn.Conv2d)]
        if not found:
            return otherwise(default, axis, "hrank", "no 2d convolution without groups that reads it")
        return mean_over_features(model, found, batches, ranks, limit=limit)

    return score
