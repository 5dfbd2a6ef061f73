"""From scores to gates of 0 and 1 that gradients pass: the allocator decides, a sigmoid lends the slope.

Shape legend: U units, A axes, N units of one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Scores
from secateur.criteria.scoring.counts import Count, count_of
from secateur.criteria.scoring.units import Units

Allocate = Callable[[Axes, Scores, float], Plan]
"""(axes, scores, share that remains) to a plan: the budget is whatever the allocator counts."""


@dataclass(frozen=True, eq=False)
class Gates:
    """`hard` axis name to zeros and ones (N,) with a slope; `excess` over the budget of the widths sigma(s) adds up to."""

    hard: Mapping[str, Tensor]
    excess: Tensor


def gates_of(
    axes: Axes, units: Units, raw: Tensor, plan: Plan, *, temperature: float, share: float, spend: str, count: Count | None
) -> Gates:
    """Gates of `plan`, which an allocator made from the scores behind `raw` (U,).

    The value is exactly 0 or 1. The slope is that of sigma((s - t) / temperature), t lying between the cheapest unit kept and
    the dearest dropped of the axis (Bengio et al., 2013; Ramanujan et al., 2020, is the limit of a high temperature). The
    budget is spent whatever the scores are, so only what one unit gains over others matters: the slope by s counts as if t
    moved to keep the soft count, ``dt = sum_j c_j m'_j ds_j / sum_j c_j m'_j`` with c the cost of a unit, over the whole
    network or, with `spend` "axis", over each axis. It is the gradient of the Lagrangian at the budget. The penalty on the
    excess, which the exact budget makes superfluous, gives scores an origin: sigma(s) is how much of a unit stays.
    """
    kept = kept_of(plan, axes)
    hard = torch.cat([_ones(size, kept.get(name)) for name, size in zip(units.names, units.sizes, strict=True)])
    values = raw.detach()
    threshold = torch.cat([
        _threshold(part, chosen, temperature)
        for part, chosen in zip(values.split(list(units.sizes)), hard.split(list(units.sizes)), strict=True)
    ])  # fmt: skip
    slope = torch.sigmoid((values - threshold) / temperature)
    slope = slope * (1 - slope)
    cost = torch.ones_like(values)
    if count is not None and spend == "network":
        cost = _costs(axes, units, hard, count).to(values)[units.owner]
    weight = cost * slope
    moved = raw - values
    if spend == "network":
        shift = (weight * moved).sum() / weight.sum().clamp_min(1e-12)
    else:
        zero = values.new_zeros(len(units.sizes))
        shift = zero.index_add(0, units.owner, weight * moved) / zero.index_add(0, units.owner, weight).clamp_min(1e-12)
        shift = shift[units.owner]
    soft = torch.sigmoid((values - threshold + moved - shift) / temperature)
    through = hard + (soft - soft.detach())  # exactly 0 or 1
    return Gates(units.split(through), excess_of(axes, units, torch.sigmoid(raw), count, share))


def kept_of(plan: Plan, axes: Axes) -> dict[str, tuple[int, ...]]:
    """Axis name to the units a plan of at most one step keeps. Raises `SecateurError` for what is no such plan of `axes`."""
    asked, do = "the plan of a Scoring Net's allocator", "return the plan of secateur.allocate, made from the axes it is given"
    if not isinstance(plan, Plan):
        raise SecateurError(asked, f"an object of type {type(plan).__name__}", do)
    if plan.fingerprint != axes.fingerprint or len(plan.steps) > 1 or not all(isinstance(step, Keep) for step in plan.steps):
        raise SecateurError(asked, "more than dropped units of the network at hand", do)
    return {cut.axis: cut.kept for step in plan.steps if isinstance(step, Keep) for cut in step.cuts}


def budget_of(axes: Axes, what: str) -> Count | None:
    """The count a budget is on; None where nothing was counted. Raises `SecateurError` for a name that no count has."""
    if axes.terms and what not in axes.terms:
        raise SecateurError(f"budget={what!r}", "no such count", nearest(what, list(axes.terms)))
    return count_of(axes, what) if what in axes.terms else None


def _ones(size: int, kept: tuple[int, ...] | None) -> Tensor:
    return torch.ones(size) if kept is None else torch.zeros(size).index_fill(0, torch.tensor(kept), 1)


def _threshold(values: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """(N,) of one number: between kept and dropped; below all where all are kept."""
    kept, dropped = values[chosen > 0], values[chosen == 0]
    low = kept.min() if len(kept) else dropped.max() + 2 * temperature
    high = dropped.max() if len(dropped) else low - 2 * temperature
    return ((low + high) / 2).expand(len(values))


def _widths(axes: Axes, units: Units, values: Tensor) -> Tensor:
    """The width of every axis (A of all, fixed ones whole) as `values` (U,) add up."""
    sums = dict(zip(units.names, values.new_zeros(len(units.sizes)).index_add(0, units.owner, values), strict=True))
    return torch.stack([sums.get(axis.name, torch.tensor(float(axis.units))).double() for axis in axes])


def _costs(axes: Axes, units: Units, hard: Tensor, count: Count) -> Tensor:
    """What one more unit of each free axis would add to the count (A,), at the widths as cut."""
    with torch.enable_grad():
        widths = _widths(axes, units, hard).detach().requires_grad_()
        (found,) = torch.autograd.grad(count(widths), widths)
    position = {axis.name: number for number, axis in enumerate(axes)}
    return found[torch.tensor([position[name] for name in units.names])].clamp_min(0)


def excess_of(axes: Axes, units: Units, soft: Tensor, count: Count | None, share: float) -> Tensor:
    """(max(0, count of the soft widths / budget - 1))^2."""
    if count is None:
        return soft.new_zeros(())
    whole = torch.tensor([float(axis.units) for axis in axes], dtype=torch.float64)
    return (count(_widths(axes, units, soft)) / (share * count(whole)) - 1).clamp_min(0).square().float()
