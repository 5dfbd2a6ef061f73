"""SNIP: connection sensitivity before training, by units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.at_start import by_readers, on_batches
from secateur.criteria.places import parameters, plain, totals
from secateur.criteria.taylor import differentiable, each_gradient


def snip(
    model: nn.Module, batches: Batches, loss: Loss, *, limit: int | None = 1, default: Criterion | None = None
) -> Criterion:
    """Scores: ``|dL/dm|``, the slope of the loss by a gate m on each unit, of the network as it is initialised.

    The slope is the sum of weight times gradient over all that reads the unit, of the mean loss over `limit` batches. An axis
    that no parameter reads is scored by `default`. The model does not change.

    Source: Lee et al., 2019, eq. 5, for single weights; the gate on a unit is the sum of those on its weights, signs kept. Its
    code scores a copy initialised anew by Xavier's rule; this scores the weights it is given.
    """
    weights = list(dict.fromkeys(parameters(model).values()))
    slopes = mean_gradients(model, weights, batches, loss, limit)
    sums = {w: totals(plain(w) * g) for w, g in zip(weights, slopes, strict=True)}
    return by_readers(model, sums, "snip", default)


def mean_gradients(
    model: nn.Module, weights: list[nn.Parameter], batches: Batches, loss: Loss, limit: int | None
) -> list[Tensor]:
    """The gradient of the mean of the batches' losses by each of `weights`. Raises `SecateurError` where there is no batch."""
    count, found = 0, [torch.zeros_like(plain(weight)) for weight in weights]
    with on_batches(model), differentiable(weights):
        for slopes in each_gradient(model, weights, batches, loss, limit):
            for total, gradient in zip(found, slopes, strict=True):
                total += plain(gradient)
            count += 1
    if not count:
        raise SecateurError("scores before training", "no batch", "give data that can be iterated anew for every pass")
    return [total / count for total in found]
