"""Channel independence.

Shape legend: B samples, N units, E channels per unit, C = N * E rows, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import mean_over_features, otherwise, readers


def chip(model: nn.Module, batches: Batches, *, limit: int | None = None, default: Criterion | None = None) -> Criterion:
    """Scores: by how much the nuclear norm of all features falls when those of one unit are zero, mean over samples.

    For each sample of `batches` (at most `limit`), with A (C, P) one row per channel: ``|A|_* - |A without unit i|_*``.
    Features are the inputs of the layers that read the units; mean over the readers. An axis that no linear layer or
    convolution reads gets its scores from `default`; with none it raises `SecateurError`. Each axis makes its own pass.

    Source: Sui et al., 2021 (CHIP), eq. 3 and 4. The paper reads features before pooling, and averages five draws of 128
    images where this takes the images it is given. Features without positions (linear layers) make one matrix per
    batch, a column per sample. Norms come from eigenvalues of the smaller Gram matrix in double precision.
    """

    def falls(features: Tensor) -> tuple[Tensor, int]:  # (B, N, E, ...)
        maps = features.detach().double().flatten(3) if features.dim() > 3 else features.detach().double().movedim(0, -1)[None]
        return torch.stack([independence(sample) for sample in maps]).sum(0), len(maps)

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "chip", "no linear layer or convolution without groups that reads it")
        return mean_over_features(model, found, batches, falls, limit=limit)

    return score


def independence(features: Tensor) -> Tensor:
    """By how much the nuclear norm of `features` (N, E, P), as a matrix of N * E rows, falls without each unit; (N,)."""
    units, each, positions = features.shape
    rows = features.flatten(0, 1)
    if positions < rows.shape[0]:  # A'A of the rows that stay is A'A less those of the unit
        gram = rows.T @ rows
        rest = gram - features.mT @ features  # (N, P, P)
    else:
        gram = rows @ rows.T
        stay = torch.stack([torch.cat([torch.arange(i * each), torch.arange((i + 1) * each, len(gram))]) for i in range(units)])
        rest = gram[stay[:, :, None], stay[:, None, :]]  # (N, C - E, C - E)
    return _nuclear(gram) - (_nuclear(rest) if rest.shape[-1] else gram.new_zeros(units))


def _nuclear(gram: Tensor) -> Tensor:
    """Nuclear norm of a matrix from its Gram matrix."""
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum(-1)
