"""First-order Taylor expansion of the loss.

Shape legend: B batches, N units, E entries per unit, L length of one dimension of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.core.running import call, device_of, evaluating, fits, pairs, to_device
from secateur.criteria.places import parameters, places, plain, totals

Reduce = Literal["batch", "data"]
Each = Literal["unit", "weight"]


def taylor(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    limit: int | None = None,
    reduce: Reduce = "batch",
    each: Each = "weight",
) -> Criterion:
    """Scores: how much the loss would change, to first order, if the weights of each unit went to zero.

    For each tensor that holds the unit, ``sum of |gradient * weight|`` over the unit's entries; then the sum over the
    tensors, batch-norm weights and biases among them. With `each="unit"` the products keep their sign inside a tensor,
    ``|sum of gradient * weight|``: they are the derivative by one gate on all of the unit's entries there.

    `reduce="batch"` takes the absolute value per batch and then the mean over batches; "data" the absolute value of
    the mean, which is the expansion of the loss over all data, near zero for a model trained to a minimum.
    `each="weight"` with "data" is the score of Torch-Pruning, which leaves norms out.
    One pass over `batches` (at most `limit`), made now, in evaluation mode; frozen parameters count too. The model, its
    gradients included, does not change. Raises `SecateurError` where there is no batch or a loss is no finite scalar.

    Source: Molchanov et al., 2019, eq. 8, is `each="unit"`, the gate being on weights and batch norm in place of
    activations; the paper squares where this takes the absolute value, and scores one tensor where this sums over the
    coupled ones. By weights what cancels inside a unit still counts, which lost less (docs/decisions.md).
    """
    if reduce not in ("batch", "data"):
        raise SecateurError(f"reduce={reduce!r}", "no such reduction", "give 'batch' or 'data'")
    if each not in ("unit", "weight"):
        raise SecateurError(f"each={each!r}", "no such part of a unit", "give 'unit' or 'weight'")
    weights = parameters(model)
    unique = list(dict.fromkeys(weights.values()))
    found: dict[nn.Parameter, list[list[Tensor]]] = {weight: [] for weight in unique}  # per batch, per dim: (L,)
    running: dict[nn.Parameter, Tensor] = {}  # products of weights and gradients, summed over batches
    batches_seen = 0
    with evaluating(model), differentiable(unique):
        for number, slopes in enumerate(each_gradient(model, unique, batches, loss, limit)):
            for weight, gradient in zip(unique, slopes, strict=True):
                product = plain(gradient) * plain(weight)
                if (each, reduce) == ("weight", "data"):
                    running[weight] = running[weight].add_(product) if number else product
                else:
                    found[weight].append(totals(product.abs() if each == "weight" else product))
            batches_seen = number + 1
    found |= {weight: [totals(product.abs() / batches_seen)] for weight, product in running.items()}
    if not all(found.values()):
        raise SecateurError("Taylor scores", "no batch", "give data that can be iterated anew for every pass")
    sums = {weight: [torch.stack(dim) for dim in zip(*rows, strict=True)] for weight, rows in found.items()}  # (B, L)

    def score(axis: Axis) -> Tensor:
        scores = torch.zeros(axis.units, dtype=torch.float64)
        for place in places(axis, weights):
            signed = place.gather(sums).double().sum(-1)  # (B, N, E) -> (B, N)
            scores += signed.abs().mean(0) if reduce == "batch" else signed.mean(0).abs()
        return scores

    return score


@contextmanager
def differentiable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Every weight asks for a gradient; on leaving, frozen ones are frozen again."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def each_gradient(
    model: nn.Module, weights: Sequence[nn.Parameter], batches: Batches, loss: Loss, limit: int | None
) -> Iterator[tuple[Tensor, ...]]:
    """The gradients of the loss of each of `batches` (at most `limit`) by `weights`, in the mode the model is in.

    Raises `SecateurError` for batches that the model or the loss does not take, and where a loss is no finite scalar.
    """
    device = device_of(model)
    for number, (inputs, target) in enumerate(pairs(batches, limit)):
        with fits(inputs, target):
            value = loss(call(model, to_device(inputs, device)), to_device(target, device))
        yield gradients(value, weights, number)


def gradients(value: Any, weights: Sequence[nn.Parameter], number: int) -> tuple[Tensor, ...]:
    """Gradients of the loss by `weights`, zero where it does not depend on one; `.grad` stays as it was."""
    return torch.autograd.grad(scalar(value, number), weights, allow_unused=True, materialize_grads=True)


def scalar(value: Any, number: int) -> Tensor:
    """The loss of batch `number` as a tensor (). Raises `SecateurError` where it is no finite number that has gradients."""
    found, do = None, "give a loss(output, target) that returns one finite number"
    if not isinstance(value, Tensor):
        found = f"a loss of type {type(value).__name__}"
    elif value.numel() != 1:
        found = f"a loss of shape {list(value.shape)}"
    elif not torch.isfinite(value):
        found = f"a loss of {value.item()}"
        do = "look for weights, inputs and targets that are infinite or not a number"
    elif not value.requires_grad:
        found = "a loss that does not depend on the weights"
    if found:
        raise SecateurError("scores by gradients", f"{found} in batch {number}", do)
    return value.reshape(())
