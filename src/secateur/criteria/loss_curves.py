"""Scores by how the loss of the network rises as one axis alone is cut.

Shape legend: N units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.core.plan import Plan
from secateur.core.protocols import Criterion
from secateur.criteria.scoring.counts import unit_costs

SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75)


def loss_curves(
    axes: Axes,
    base: Criterion,
    judge: Callable[[Plan], float],
    *,
    shares: Sequence[float] = SHARES,
    cost: str = "macs",
    least: float = 1e-4,
) -> Criterion:
    """Scores: the rise of the loss that each unit saves over what it costs, its axis cut in the order of `base`.

    `judge` gives the loss under a plan, best after the repair that is to follow: it is asked about each axis alone, at
    `shares` of its units. Between them the rise is interpolated by its logarithm, and the lower convex hull of it taken, so
    that a unit never scores above a dearer one; rises below `least` count as that. A unit's score is the fall of the hull at
    the width that takes it in, over the share of `cost` ("macs" or "params") that goes with it. With ``normalise="none"`` an
    allocator then minimises the sum of all rises under its budget (Lagrange's condition), were they to add up.

    Source: Li et al., 2017 (PFEC), section 3.2, for curves of one layer at a time; turned into scores without a paper.
    """
    if not shares or not all(is_number(share) and 0 < share < 1 for share in shares) or not 0 < least < math.inf:
        do = "give shares between 0 and 1, and least above 0"
        raise SecateurError("curves of the loss", f"shares={tuple(shares)!r}, least={least!r}", do)
    costs = dict(zip([axis.name for axis in axes], unit_costs(axes, cost).tolist(), strict=True))
    dense: list[float] = []

    def score(axis: Axis) -> Tensor:
        dense[:] = dense or [judge(axes.plan({}))]
        order = base(axis).argsort(descending=True, stable=True)
        widths = sorted({max(round(share * axis.units), axis.fewest) for share in shares} - {axis.units})
        rises = {}
        for width in widths:
            loss = judge(axes.plan({axis.name: sorted(order[:width].tolist())}))
            rises[width] = max(loss - dense[0], least) if math.isfinite(loss) else math.inf
        curve = interpolated(rises | {axis.units: least}, axis.units)
        values = falls(curve) / max(costs[axes[axis.name].name], 1 / max(axes.count(cost), 1))
        return torch.empty_like(values).scatter_(0, order.cpu(), values)

    return score


def interpolated(rises: dict[int, float], units: int) -> list[float]:
    """The rise at 1 to `units` units: never below that of more units, its logarithm linear between widths that were judged."""
    known, most = {}, 0.0
    for width in sorted(rises, reverse=True):
        most = max(most, min(rises[width], 1e30))
        known[width] = most
    curve, widths = [], sorted(known)
    for width in range(1, units + 1):
        low = max((w for w in widths if w <= width), default=widths[0])
        high = min(w for w in widths if w >= max(width, widths[0]))
        part = (width - low) / (high - low) if high > low else 0.0
        curve.append(known[low] ** (1 - part) * known[high] ** part)
    return curve


def falls(curve: Sequence[float]) -> Tensor:
    """By how much the lower convex hull of `curve`, at 1 to N units, falls at each unit; (N,), descending.

    The first unit, without which there is nothing, comes before the second.
    """
    hull = [0]
    for at in range(1, len(curve)):
        while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) >= _slope(curve, hull[-1], at):
            hull.pop()
        hull.append(at)
    slopes = [-_slope(curve, a, b) for a, b in pairwise(hull) for _ in range(b - a)]
    values = torch.tensor([2 * slopes[0] if slopes else 1.0, *slopes], dtype=torch.float64)
    values = values.clamp_min(max(1e-12 * float(values[0]), 1e-30))  # where the curve is flat, units come in order too
    return values * (1 + 1e-9 * torch.arange(len(values) - 1, -1, -1, dtype=torch.float64))  # equal ones stay in order


def _slope(curve: Sequence[float], a: int, b: int) -> float:
    return (curve[b] - curve[a]) / (b - a)
