"""3SP: SNIP by units, divided by what a unit costs."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.scoring.counts import unit_costs
from secateur.criteria.snip import snip


def three_sp(
    model: nn.Module,
    axes: Axes,
    batches: Batches,
    loss: Loss,
    *,
    cost: str = "macs",
    limit: int | None = 1,
    default: Criterion | None = None,
) -> Criterion:
    """Scores: ``|dL/dm|`` of `snip` over the share of `cost` ("macs" or "params") that goes with one unit of the axis.

    `axes` are those of a trace of `model`. A unit that costs nothing is scored as if it cost one of the count.
    Ask the allocator for ``normalise="none"``, as recipes do: the cost is one number per axis, and over the mean of its axis it
    cancels, which leaves `snip`.

    Source: van Amersfoort et al., 2020 ("Single shot structured pruning before training"), whose saliency is divided by the
    compute cost of the channel; written from its description, the formula was not at hand.
    """
    sensitivity = snip(model, batches, loss, limit=limit, default=default)
    costs = dict(zip([axis.name for axis in axes], unit_costs(axes, cost).tolist(), strict=True))
    least = 1 / max(axes.count(cost), 1)

    def score(axis: Axis) -> Tensor:
        return sensitivity(axis) / max(costs[axes[axis.name].name], least)

    return score
