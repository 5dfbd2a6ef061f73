"""3SP: SNIP by units, divided by what a unit costs."""

from __future__ import annotations

from torch import nn

from secateur.core.axes import Axes
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.per_cost import per_cost
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

    `axes` are those of a trace of `model`. Ask the allocator for ``normalise="none"``, as recipes do: the cost is one number
    per axis, and over the mean of its axis it cancels, which leaves `snip`.

    Source: van Amersfoort et al., 2020 ("Single shot structured pruning before training"), whose saliency is divided by the
    compute cost of the channel; written from its description, the formula was not at hand.
    """
    return per_cost(axes, snip(model, batches, loss, limit=limit, default=default), cost)
