"""Compensation-aware pruning: greedy selection of the units that explain the outputs.

Shape legend: O outputs, D inputs of one output, N units, K columns per unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import otherwise, readers
from secateur.criteria.greedy import greedy
from secateur.criteria.places import plain
from secateur.measure.layers import matrix
from secateur.measure.moments import input_moments

CUTOFF = 1e-10
"""Variance left of a column, as a share of the largest there was, below which rounding is all it is."""


def cap(
    model: nn.Module,
    batches: Batches,
    *,
    limit: int | None = None,
    sample: int | None = None,
    default: Criterion | None = None,
) -> Criterion:
    """Scores: the share of the variance of the readers' outputs that is unexplained when each unit is selected.

    Greedy forward selection: the next unit is the one that, with least-squares weights on it and all selected before,
    explains most of the output variance ``tr(W S W')`` of the layers that read the axis; S is the covariance of their inputs
    over `batches` (at most `limit`, of each at most `sample` rows, drawn at random), in double precision. The first unit
    scores 1. An axis that no linear layer or convolution reads gets its scores from `default`; with none it raises
    `SecateurError`. Each axis makes its own pass.

    Source: Xie et al., 2021 (CaP), and the authors' code. That grows the inverse of the selected block; here the
    covariance of what is not selected shrinks by the same block update (Schur complement), which is the same number
    and keeps its symmetry. Units with nothing left to add come last, in order, where the code appends them unranked.
    The code ranks convolutions only, and one reader; gains of several readers add up.
    """

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "cap", "no linear layer or convolution without groups that reads it")
        moments = input_moments(model, sorted({reader.name for reader in found}), batches, limit, sample=sample)
        layers = []
        for reader in found:
            weight = plain(matrix(reader.module)).double().cpu()
            layers.append(Unexplained.of(moments[reader.name].centred().xx, weight, reader.blocks))
        order, gains = greedy_selection(layers)
        total = float(gains.sum()) or 1.0
        left = (total - torch.cat([gains.new_zeros(1), gains.cumsum(0)[:-1]])) / total
        return torch.empty_like(left).scatter_(0, torch.tensor(order), left)

    return score


@dataclass(frozen=True, eq=False)
class Unexplained:
    """Of one reader, what the selected units do not explain: covariance of its inputs (D, D), and with its outputs (O, D).

    `blocks` (N, K): the columns of each unit. Both tensors change as units are selected.
    """

    inputs: Tensor
    outputs: Tensor
    blocks: Tensor
    floor: float

    @classmethod
    def of(cls, covariance: Tensor, weight: Tensor, blocks: Tensor) -> Unexplained:
        """Nothing selected yet."""
        return cls(covariance.clone(), weight @ covariance, blocks, CUTOFF * float(covariance.diagonal().max()))

    def gains(self, units: Tensor) -> Tensor:
        """Output variance that each of `units` (n,) would explain; (n,)."""
        at = self.blocks[units]  # (n, K)
        values, vectors = torch.linalg.eigh(self.inputs[at[:, :, None], at[:, None, :]])  # (n, K), (n, K, K)
        inverse = torch.where(values > self.floor, 1 / values.clamp_min(1e-300), 0.0)
        towards = self.outputs[:, at].movedim(1, 0) @ vectors  # (n, O, K)
        return (towards.square().sum(1) * inverse).sum(1)

    def select_(self, unit: int) -> None:
        """Take away what `unit` explains."""
        at = self.blocks[unit]
        values, vectors = torch.linalg.eigh(self.inputs[at][:, at])
        inverse = torch.where(values > self.floor, 1 / values.clamp_min(1e-300), 0.0)
        solved = (vectors * inverse) @ vectors.T @ self.inputs[at]  # (K, D)
        self.outputs.sub_(self.outputs[:, at] @ solved)
        self.inputs.sub_(self.inputs[:, at] @ solved)


def greedy_selection(layers: list[Unexplained]) -> tuple[list[int], Tensor]:
    """Units in the order they are selected, and the variance each explains beyond those before it; (N,)."""

    def offers(left: Tensor) -> Tensor:
        return torch.stack([layer.gains(left) for layer in layers]).sum(0)

    def take(unit: int) -> None:
        for layer in layers:
            layer.select_(unit)

    return greedy(len(layers[0].blocks), offers, take)
