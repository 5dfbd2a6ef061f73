"""Means of what was cut, folded into constants."""

from __future__ import annotations

from torch import nn

from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import repeatable
from secateur.repair.blocks import unrolled
from secateur.repair.linked import known_before, linked


def mean_bias(
    before: nn.Module, after: nn.Module, batches: Batches, *, plan: Plan | None = None, limit: int | None = None
) -> None:
    """Add to the constant of every layer of `after` that lost inputs what those added to it on average.

    Means over `batches` (at most `limit`) of the inputs in `before`; every output of such a layer keeps its mean. Without a
    bias the constant is in the running mean of the batch norm behind the layer; a layer with neither stays as it is.
    `plan` is as in `least_squares`.

    Source: the constant of Xie et al., 2021 (CaP), with the weights left alone.
    """
    batches = repeatable(batches, limit)
    with restoring(after), unrolled(after) as whole:
        layers = [each for each in linked(before, whole, batches, plan) if each.has_intercept]
        for each, (known, _) in known_before(layers, before, batches, limit):
            weight = each.weight()
            each.write_(weight, known.y - weight @ known.x)
