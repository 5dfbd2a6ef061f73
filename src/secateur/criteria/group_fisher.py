"""Fisher information of gates that coupled layers share.

Shape legend: S samples, N units, E entries per unit, L length of one dimension of a parameter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.features import otherwise
from secateur.criteria.places import parameters, places, plain, totals
from secateur.criteria.samples import gradients_per_sample


def group_fisher(
    model: nn.Module, batches: Batches, loss: Loss, *, limit: int | None = None, default: Criterion | None = None
) -> Criterion:
    """Scores: half the mean over samples of the squared derivative of the loss by a gate on each unit.

    One gate m_i scales the unit in every layer that reads it: ``1/2 mean_n (sum over readers of dL_n/dm_i)^2``. The
    derivative at one reader is the sum of weight times gradient over the unit's entries there; the sum over coupled
    layers is taken before squaring. One pass per sample of `batches` (at most `limit` batches), made now. The loss is
    that of a batch of one sample. An axis that no parameter reads gets its scores from `default`; with none it raises
    `SecateurError`.

    Source: Liu et al., 2021 (Group Fisher), eq. 4 and 6, without the division by the memory saved: `allocate.budget`
    counts costs. The gate is on weights that read in place of the input; both have the same derivative.
    """
    weights = parameters(model)
    unique = list(dict.fromkeys(weights.values()))
    found: dict[nn.Parameter, list[list[Tensor]]] = {weight: [] for weight in unique}  # per sample, per dim: (L,)
    for gradients in gradients_per_sample(model, unique, batches, loss, limit=limit):
        for weight, gradient in zip(unique, gradients, strict=True):
            found[weight].append(totals(plain(gradient) * plain(weight)))
    sums = {weight: [torch.stack(dim) for dim in zip(*rows, strict=True)] for weight, rows in found.items()}  # (S, L)

    def score(axis: Axis) -> Tensor:
        reading = replace(axis, slots=tuple(slot for slot in axis.readers() if slot.tensor in weights))
        if not reading.slots:
            return otherwise(default, axis, "group_fisher", "no parameter that reads it")
        slopes = [place.gather(sums).double().sum(-1) for place in places(reading, weights)]  # (S, N) each
        return torch.stack(slopes).sum(0).square().mean(0) / 2

    return score
