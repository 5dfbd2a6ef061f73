"""Pruning compensation in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import repeatable
from secateur.repair.blocks import unrolled
from secateur.repair.linked import known_before, linked
from secateur.repair.solve import least_error


def compensation(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    ridge: float = 1e-8,
    rescale: bool = False,
    sample: int | None = None,
) -> None:
    """Set weights and constants of every layer of `after` that lost inputs so that kept inputs stand for the lost ones.

    With S the kept and C all inputs of a layer in `before`: ``W' = W S_CS S_SS^-1``, ``b' = b + W m - W' m_S``; means and
    covariances over one pass of `before` on `batches` (at most `limit`), in double precision, for all layers at once.
    `rescale` gives each output the variance it had. A layer without a bias has its constant in the running mean of the batch
    norm behind it; with neither it is fitted without. `plan`, `ridge` and `sample` are as in `least_squares`. The last layer
    of a product reads what the others make of the inputs in `before`. Where the cut itself moves the kept inputs, as in a
    stream behind a layer norm, which is then taken over fewer channels, use `least_squares`: it reads them from `after`.

    Source: Xie et al., 2021 (CaP), and the authors' code, which adds a bias where there is none; here no tensor is added, so
    that a plan still fits.
    """
    batches = repeatable(batches, limit)
    with restoring(after), unrolled(after) as whole:
        layers = linked(before, whole, batches, plan)
        for each, (known, variance) in known_before(layers, before, batches, limit, sample=sample):
            weight, constant = least_error(
                known, each.weight(), intercept=each.has_intercept, ridge=ridge, support=each.support
            )
            if rescale:
                weight = weight * deviation_ratio(variance, weight, known.centred().xx)[:, None]
                constant = known.y - weight @ known.x if constant is not None else None
            if torch.isfinite(weight).all():
                each.write_(weight, constant)


def deviation_ratio(variance: Tensor, weight: Tensor, covariance: Tensor) -> Tensor:
    """How many times the deviation of each output under `weight` is that wanted; (O,), 1 where either has none."""
    now = ((weight @ covariance) * weight).sum(1)
    return torch.where((variance > 0) & (now > 0), variance / now.clamp_min(1e-300), 1.0).sqrt()
