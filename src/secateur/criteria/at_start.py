"""Gradients of networks that were not trained yet: batch norms run on the batch, since they have seen nothing.

Shape legend: N units, E entries per unit, L length of one dimension of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion
from secateur.criteria.features import otherwise
from secateur.criteria.places import parameters, places
from secateur.surgery import on_batch_statistics


@contextmanager
def on_batches(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode with batch norms on batch statistics; on leaving its modes and buffers are as before."""
    modes = [(module, module.training) for module in model.modules()]
    held = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield on_batch_statistics(model)
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in held:
                buffer.copy_(value)


def by_readers(
    model: nn.Module, sums: Mapping[nn.Parameter, list[Tensor]], asked: str, default: Criterion | None, *, size: bool = True
) -> Criterion:
    """Scores: per-weight saliencies, whose `sums` these are, added up with their signs over all that reads a unit.

    With `size` the absolute value of the sum. An axis that no parameter reads is scored by `default`; with none it raises
    `SecateurError`. Readers, because what a batch norm follows has no slope by its scale: the sum over the weights that write
    a unit is zero for every unit.
    """
    weights = parameters(model)

    def score(axis: Axis) -> Tensor:
        reading = replace(axis, slots=tuple(slot for slot in axis.readers() if slot.tensor in weights))
        if not reading.slots:
            return otherwise(default, axis, asked, "no parameter that reads it")
        found = torch.stack([place.gather(sums).double().sum(-1) for place in places(reading, weights)]).sum(0)
        return found.abs() if size else found

    return score
