"""What a cut will cost, told without a forward of the cut network: what a predicted search orders its steps by.

Shape legend: N units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Loss
from secateur.criteria import group_fisher, l2, score, taylor
from secateur.criteria.features import readers
from secateur.criteria.places import plain
from secateur.measure.layers import matrix
from secateur.measure.moments import contributions, input_moments, stack
from secateur.search import additive
from secateur.search.predicted import Predict


def prediction(name: str, model: nn.Module, axes: Axes, batches: Batches, loss: Loss) -> Predict:
    """The prediction of that name: "reconstruction", or the sum of the "taylor" or "group_fisher" scores of what goes."""
    if name == "reconstruction":
        return reconstruction(model, axes, batches)
    if name == "taylor":
        return additive(score(axes, taylor(model, batches, loss, each="unit")))
    return additive(score(axes, group_fisher(model, batches, loss, default=l2(model))))


def reconstruction(model: nn.Module, axes: Axes, batches: Batches, *, sample: int | None = 4096) -> Predict:
    """A prediction by the share of the variance of what the readers of an axis write that the cut takes away.

    With G the covariance of what each unit adds to the outputs of its readers (N, N) and D the units that go: ``sum of G over
    D x D / sum of G``; each reader is divided by its own variance first. One pass over `batches`, `sample` rows of each, for
    all axes. Units that are copies of one another count together, which sums of scores cannot tell. An axis that no linear
    layer or convolution reads is predicted by the share of its squared weights that goes.
    """
    known = {axis.name: readers(model, axis) for axis in axes.free}
    names = sorted({reader.name for found in known.values() for reader in found})
    moments = input_moments(model, names, batches, sample=sample) if names else {}
    grams: dict[str, Tensor] = {}
    for axis in axes.free:
        parts = []
        for reader in known[axis.name]:
            centred = moments[reader.name].centred()
            weight = plain(matrix(reader.module)).double().cpu()
            total = float(((weight @ centred.xx) * weight).sum())
            gram, towards = contributions(centred, weight, reader.blocks)
            parts.append((gram / max(total, 1e-30), towards))
        if parts:
            grams[axis.name] = stack(parts)[0] / len(parts)
        else:
            values = l2(model)(axis).double().square()
            grams[axis.name] = torch.diag(values / values.sum().clamp_min(1e-30))

    def predict(axis: Axis, kept: Sequence[int]) -> float:
        gone = np.setdiff1d(np.arange(axis.units), kept)
        return max(float(grams[axis.name][gone][:, gone].sum()), 0.0)

    return predict
