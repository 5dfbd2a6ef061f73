"""Gradients of the loss of single samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, evaluating, fits, pairs, to_device
from secateur.criteria.taylor import differentiable, gradients


def gradients_per_sample(
    model: nn.Module, weights: Sequence[nn.Parameter], batches: Batches, loss: Loss, *, limit: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """For each sample of `batches` (at most `limit` batches) the gradients of its own loss by `weights`.

    In evaluation mode, so that samples do not meet; the model and its gradients stay as they are. One backward pass per
    sample: squares of a batch's gradient are not the sum of squares of its samples'.
    Raises `SecateurError` where there is no sample, or a loss is no finite scalar.
    """
    device, number = device_of(model), 0
    with evaluating(model), differentiable(weights):
        for inputs, target in pairs(batches, limit):
            for sample in range(_size(inputs)):
                x, y = (to_device(_one(value, sample), device) for value in (inputs, target))
                with fits(x, y):
                    value = loss(call(model, x), y)
                yield gradients(value, weights, number)
                number += 1
    if not number:
        raise SecateurError("gradients per sample", "no batch", "give data that can be iterated anew for every pass")


def _size(batch: Any) -> int:
    """How many samples `batch` has: the length of its first tensor."""
    while isinstance(batch, (Mapping, list, tuple)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def _one(batch: Any, sample: int) -> Any:
    """Sample number `sample` as a batch of one."""
    if isinstance(batch, Tensor):
        return batch[sample : sample + 1] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _one(value, sample) for key, value in batch.items()}
    return type(batch)(_one(value, sample) for value in batch) if isinstance(batch, (list, tuple)) else batch
