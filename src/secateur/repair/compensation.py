"""Pruning compensation in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.measure.layers import matrix
from secateur.measure.moments import input_moments
from secateur.repair.linked import linked
from secateur.repair.solve import least_error, restricted


def compensation(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    ridge: float = 1e-8,
    rescale: bool = False,
) -> None:
    """Set weights and constants of every layer of `after` that lost inputs so that kept inputs stand for the lost ones.

    With S the kept and C all inputs of a layer in `before`: ``W' = W S_CS S_SS^-1``, ``b' = b + W m - W' m_S``; means and
    covariances over one pass of `before` on `batches` (at most `limit`), in double precision, for all layers at once.
    `rescale` gives each output the variance it had. A layer without a bias has its constant in the running mean of the
    batch norm behind it; with neither it is fitted without. `plan` and `ridge` are as in `least_squares`.

    Source: Xie et al., 2021 (CaP), and the authors' code, which adds a bias where there is none; here no tensor is added, so
    that a plan still fits.
    """
    layers = linked(before, after, batches, plan)
    moments = input_moments(before, [each.name for each in layers], batches, limit) if layers else {}
    for each in layers:
        known = restricted(moments[each.name], each.columns, each.rows)
        weight, constant = least_error(known, each.weight(), intercept=each.has_intercept, ridge=ridge)
        if rescale:
            whole, full = moments[each.name].centred(), matrix(each.source).double().cpu()[each.rows]
            weight = weight * variance_ratio(full, whole.xx, weight, known.centred().xx)[:, None]
            constant = known.y - weight @ known.x if constant is not None else None
        if torch.isfinite(weight).all():
            each.write_(weight, constant)


def variance_ratio(weight: Tensor, covariance: Tensor, other: Tensor, other_covariance: Tensor) -> Tensor:
    """How many times the deviation of each output under `weight` is that under `other`; (O,), 1 where either has none."""
    one = ((weight @ covariance) * weight).sum(1)
    two = ((other @ other_covariance) * other).sum(1)
    return torch.where((one > 0) & (two > 0), one / two.clamp_min(1e-300), 1.0).sqrt()
