"""Scores over what a unit costs."""

from __future__ import annotations

from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.scoring.counts import unit_costs


def per_cost(axes: Axes, base: Criterion, cost: str = "macs") -> Criterion:
    """Scores: those of `base` over the share of `cost` ("macs" or "params") that goes with one unit of the axis.

    `axes` are those of a trace of the model. A unit that costs nothing is scored as if it cost one of the count. Ask the
    allocator for ``normalise="none"``: the cost is one number per axis, and over the mean of its axis it cancels.
    """
    costs = dict(zip([axis.name for axis in axes], unit_costs(axes, cost).tolist(), strict=True))
    least = 1 / max(axes.count(cost), 1)

    def score(axis: Axis) -> Tensor:
        return base(axis) / max(costs[axes[axis.name].name], least)

    return score
