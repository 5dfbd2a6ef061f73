"""Least-squares reconstruction of what each layer wrote before the cut."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.measure.moments import Moments, paired_moments
from secateur.measure.shortcuts import residual_moments
from secateur.repair.blocks import unrolled
from secateur.repair.linked import Linked, linked
from secateur.repair.solve import least_error, restricted


def least_squares(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    ridge: float = 1e-8,
    layers: Collection[str] | None = None,
    residual: bool = True,
    sample: int | None = None,
) -> None:
    """Set weights and constants of every layer of `after` that lost inputs so that it writes what it wrote in `before`.

    Inputs are those of `after` as repaired so far, targets the outputs of the same layer in `before`, so errors of earlier
    layers are made good by later ones, from shallow to deep: a pass of both models over `batches` (at most `limit`) per
    layer. A layer without a bias has its constant in the running mean of the batch norm behind it; with neither it is
    fitted without. `plan` is the one that led from `before` to `after`; None for models of the same shapes, where inputs
    with zero weights are lost (a mask).
    `ridge` is a share of the mean variance of the inputs. `sample`: at most so many rows of each batch, drawn at random (all
    of them without), for images have more positions than a fit needs. `layers`: the names of those to set, all others stay.
    With `residual`, a layer whose output (or that of the batch norm behind it) is added to a shortcut is to make good the
    shortcut's error too. The last layer of a product is fitted to the layer the product stands for.

    Source: He et al., 2017 (Channel Pruning), eq. 2, step (ii) and section 3.3. Weights are fitted on all rows by their
    second moments in double precision, where the authors' code samples ten points per image.
    """
    with unrolled(after) as whole:
        for each in linked(before, whole, batches, plan):
            if layers is not None and each.name not in layers:
                continue
            known = _known(each, (whole, before), batches, limit=limit, sample=sample, residual=residual)
            constant = each.has_intercept
            weight, added = least_error(known, each.weight(), intercept=constant, ridge=ridge, support=each.support)
            if torch.isfinite(weight).all():
                each.write_(weight, added)


def _known(
    each: Linked,
    pair: tuple[nn.Module, nn.Module],
    batches: Batches,
    *,
    limit: int | None,
    sample: int | None,
    residual: bool,
) -> Moments:
    """Moments of the inputs the layer has, in the first network, and of its targets, from the second."""
    known = None
    if residual and each.head is None:
        known = residual_moments(pair, each.name, each.outlet, batches, kept=each.rows, limit=limit, sample=sample)
    if known is None:
        sources = {each.name: each.source_name}
        known = paired_moments(*pair, [each.name], batches, limit=limit, sources=sources, sample=sample)[each.name]
        known = restricted(known, torch.arange(len(known.x)), each.rows)
    return restricted(known, each.own, torch.arange(len(known.y)))
