"""GraSP: what keeps the gradient flowing before training, by units."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.core.running import call, device_of, fits, pairs, to_device
from secateur.criteria.at_start import by_readers, on_batches
from secateur.criteria.places import parameters, plain, totals
from secateur.criteria.taylor import differentiable, scalar


def grasp(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    limit: int | None = 1,
    temperature: float = 200.0,
    default: Criterion | None = None,
) -> Criterion:
    """Scores: ``sum of w * (H g)`` over all that reads a unit, H the Hessian and g the gradient of the loss.

    The scores have signs: dropping a unit of low score raises the norm of the gradient, of a high one lowers it. Outputs that
    are tensors are divided by `temperature` before the loss. g is the mean over `limit` batches. An axis that no parameter
    reads is scored by `default`. The model does not change.

    Source: Wang et al., 2020, eq. 8: S = -w * H g, the largest S are pruned. For single weights there; a gate on a unit is the
    sum of those on its weights. The paper takes g and H g from the same data; so does this.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise SecateurError(f"GraSP scores at temperature={temperature!r}", "no temperature", "give a number above 0")
    weights = list(dict.fromkeys(parameters(model).values()))
    device, values = device_of(model), list[Tensor]()
    with on_batches(model), differentiable(weights), sdpa_kernel(SDPBackend.MATH):  # the fused ones differentiate once
        for number, (x, y) in enumerate(pairs(batches, limit)):
            with fits(x, y):
                value = loss(_cooled(call(model, to_device(x, device)), temperature), to_device(y, device))
            values.append(scalar(value, number))
        if not values:
            raise SecateurError("GraSP scores", "no batch", "give data that can be iterated anew for every pass")
        slopes = torch.autograd.grad(
            torch.stack(values).mean(), weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flow = sum(((g.detach() * g).sum() for g in slopes), torch.zeros((), device=device))
        products = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    sums = {w: totals(plain(w) * plain(hg)) for w, hg in zip(weights, products, strict=True)}
    return by_readers(model, sums, "grasp", default, size=False)


def _cooled(output: Any, temperature: float) -> Any:
    return output / temperature if isinstance(output, Tensor) else output
