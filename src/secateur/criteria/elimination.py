"""Backward elimination: the unit goes whose loss the others make good best, one after another.

Shape legend: O outputs, D inputs of one output, N units, K columns per unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.core.protocols import Batches, Criterion
from secateur.core.running import repeatable
from secateur.criteria.features import Reader, otherwise, readers
from secateur.criteria.greedy import greedy
from secateur.measure.layers import matrix
from secateur.measure.moments import Moments
from secateur.measure.observe import outlets
from secateur.measure.shortcuts import Seen, target_moments, written


def elimination(
    model: nn.Module,
    batches: Batches,
    *,
    original: nn.Module | None = None,
    limit: int | None = None,
    sample: int | None = None,
    ridge: float = 1e-6,
    default: Criterion | None = None,
) -> Criterion:
    """Scores: the share of what least squares explains that is lost once a unit, and all that score below it, are gone.

    Greedy backward elimination: of the units that are left, the one goes without which the layers that read the axis come
    closest to their targets, all their weights fitted anew. Inputs are those in `model`, as cut so far; targets the outputs in
    `original`, and the error of the shortcut they are added to. `original` has the layers of `model` with the same outputs;
    None is `model` itself. The last unit scores 1. Over `batches` (at most `limit`, of each at most `sample` rows, drawn at
    random), in double precision; `ridge` is a share of the inputs' mean variance that is added to each. Inputs no weight of
    `model` reads count as lost. An axis that no linear layer or convolution reads gets its scores from `default`; with none it
    raises `SecateurError`, as it does for a ridge not above 0. Each axis makes its own two passes.

    Source: Frantar and Alistarh, 2022 (Optimal Brain Compression), eqs. 6 and 7 and their update of the inverse, for blocks of
    all weights that read a unit, over all outputs at once; after Hassibi and Stork, 1993 (Optimal Brain Surgeon). Inputs and
    targets from two networks are those of He et al., 2017 (Channel Pruning), sections 3.2 and 3.3; selection for the reader is
    that of Luo et al., 2017 (ThiNet), there without weights. Weights start from the fit to the targets, not from those there
    are. Errors of several readers add up.
    """
    if not is_number(ridge) or not 0 < ridge < math.inf:
        do = "give a number above 0, the share of the mean variance that is added to each"
        raise SecateurError(f"an elimination with ridge={ridge!r}", "no share above 0", do)

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "elimination", "no linear layer or convolution without groups that reads it")
        source, again = original or model, repeatable(batches, limit)
        behind = {reader.name: reader.name for reader in found}
        behind |= outlets(model, {reader.name: reader.module for reader in found}, again)
        held = list(written(source, behind, again, limit=limit, sample=sample))
        layers = []
        for reader in found:
            targets = [(inputs, seen[reader.name]) for inputs, seen in held]
            layers.append(Remaining.of(*_known(model, reader, behind[reader.name], targets, sample=sample), ridge))
        order, rises = backward_elimination(layers)
        lost = rises.cumsum(0) / (float(rises.sum()) or 1.0)
        return torch.empty_like(lost).scatter_(0, torch.tensor(order), lost)

    return score


@dataclass(frozen=True, eq=False)
class Remaining:
    """Of one reader, the inverse of its inputs' covariance (D, D) and its fitted weights (D, O), for the units that are left.

    `blocks` (N, K): the columns of each unit. Both tensors change as units go.
    """

    inverse: Tensor
    weights: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, known: Moments, blocks: Tensor, ridge: float) -> Remaining:
        """All units there, `known` of the inputs and of the targets."""
        added = ridge * float(known.xx.diagonal().mean()) or 1.0
        inverse = torch.linalg.inv(known.xx + added * torch.eye(len(known.xx), dtype=known.xx.dtype))
        inverse = (inverse + inverse.T) / 2
        return cls(inverse, inverse @ known.xy, blocks)

    def rises(self, units: Tensor) -> Tensor:
        """By how much the error rises without each of `units` (n,), all that is left fitted anew; (n,)."""
        at = self.blocks[units]  # (n, K)
        own = self.weights[at]  # (n, K, O)
        inner = self.inverse[at[:, :, None], at[:, None, :]]  # (n, K, K)
        return (torch.linalg.solve(inner, own) * own).sum((1, 2))

    def remove_(self, unit: int) -> None:
        """Fit what is left without `unit`."""
        at = self.blocks[unit]
        through = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at]).T  # (D, K)
        self.weights.sub_(through @ self.weights[at])
        self.inverse.sub_(through @ self.inverse[at])
        self.weights[at] = 0
        self.inverse[at] = 0
        self.inverse[:, at] = 0


def backward_elimination(layers: Sequence[Remaining]) -> tuple[list[int], Tensor]:
    """Units in the order they go, and by how much the error rises as each does; (N,)."""

    def offers(left: Tensor) -> Tensor:
        return -torch.stack([layer.rises(left) for layer in layers]).sum(0)

    def take(unit: int) -> None:
        for layer in layers:
            layer.remove_(unit)

    order, offered = greedy(len(layers[0].blocks), offers, take)
    return order, (-offered).clamp_min(0)


def _known(
    model: nn.Module, reader: Reader, outlet: str, targets: list[tuple[Any, Seen]], *, sample: int | None
) -> tuple[Moments, Tensor]:
    """Moments of the inputs that `reader` has in `model` and of its targets, and the columns (N, K) of each unit among them."""
    weight = matrix(reader.module)
    known = target_moments(model, reader.name, outlet, targets, kept=torch.arange(len(weight)), sample=sample)
    if known is None:
        raise SecateurError("a pass over data", "no batch", "give data that can be iterated anew for every pass")
    if outlet != reader.name or isinstance(reader.module.bias, Tensor):  # a place for a constant
        known = known.centred()
    there = (weight != 0).any(0).cpu()
    there[reader.blocks.reshape(-1)] = True
    own = there.nonzero().flatten()
    return Moments(known.x[own], known.y, known.xx[own][:, own], known.xy[own]), (there.cumsum(0) - 1)[reader.blocks]
