"""Optimal brain damage on units: the diagonal of the Fisher information in place of the Hessian's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.places import parameters, places, plain, totals
from secateur.criteria.samples import gradients_per_sample


def obd(model: nn.Module, batches: Batches, loss: Loss, *, limit: int | None = None, group: bool = True) -> Criterion:
    """Scores: ``1/2 sum of w^2 F`` over each unit's weights, F being the mean over samples of the squared gradient.

    With `group`, over every parameter entry that a cut of the unit would remove; without, over the weights that write it.
    One backward pass per sample of `batches` (at most `limit` batches), made now.

    Source: LeCun et al., 1990 (Optimal Brain Damage), eq. 5, summed over units as C-OBD of Wang et al., 2019
    (EigenDamage), eq. 6. The Hessian is replaced by the empirical Fisher information, from gradients of single samples.
    """
    weights = parameters(model)
    unique = list(dict.fromkeys(weights.values()))
    squares = {weight: torch.zeros_like(plain(weight)) for weight in unique}
    samples = 0
    for gradients in gradients_per_sample(model, unique, batches, loss, limit=limit):
        samples += 1
        for weight, gradient in zip(unique, gradients, strict=True):
            squares[weight] += plain(gradient).square()
    sums = {weight: totals(plain(weight).square() * squares[weight] / (2 * samples)) for weight in unique}

    def score(axis: Axis) -> Tensor:
        found = places(axis, weights, group)
        return torch.stack([place.gather(sums).sum(-1) for place in found]).sum(0)

    return score
