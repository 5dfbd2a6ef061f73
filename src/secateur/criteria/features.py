"""Where the units of an axis are seen as features: the inputs of the linear layers and convolutions that read them.

Shape legend: N units, E channels per unit, B samples, P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion
from secateur.measure.layers import columns, input_dim, is_matrix
from secateur.measure.observe import observe

Reduce = Callable[[Tensor], tuple[Tensor, int]]
"""Features (B, N, E, ...) to (sums (N,), how many were summed)."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the units, and which channels of its input they are (N, E)."""

    name: str
    module: nn.Module
    channels: Tensor

    @property
    def blocks(self) -> Tensor:
        """Columns of the layer's matrix that read each unit; (N, E * K)."""
        return columns(self.module, self.channels)

    def features(self, x: Tensor) -> Tensor:
        """The units in an input of the layer; (B, N, E, positions as they lie)."""
        dim = 1 if isinstance(self.module, nn.modules.conv._ConvNd) else -1
        return x.movedim(dim, 1)[:, self.channels.to(x.device)]


def readers(model: nn.Module, axis: Axis) -> list[Reader]:
    """Every linear layer and convolution without groups that reads `axis`; may be none."""
    found = []
    for slot in axis.readers():
        path, _, last = slot.tensor.rpartition(".")
        module = _module(model, path)
        if last == "weight" and module is not None and is_matrix(module) and slot.dim == input_dim(module):
            entries = slot.of(np.arange(axis.units))
            if entries.max() >= cast(Tensor, module.weight).shape[slot.dim]:
                shape = f"{slot.tensor!r} of shape {list(cast(Tensor, module.weight).shape)}"
                raise SecateurError(f"scores for axis {axis.name!r}", shape, "trace this model, after its last cut")
            found.append(Reader(path, module, torch.from_numpy(entries)))
    return found


def mean_over_features(
    model: nn.Module, found: list[Reader], batches: Batches, reduce: Reduce, *, limit: int | None = None
) -> Tensor:
    """`reduce` summed over batches, divided by its counts, and averaged over the readers; (N,) float64 on the CPU."""
    totals = [torch.zeros(len(reader.channels), dtype=torch.float64) for reader in found]
    counts = [0] * len(found)

    def look(index: int) -> Callable[[Tensor, Tensor], None]:
        def add(x: Tensor, _: Tensor) -> None:
            sums, count = reduce(found[index].features(x))
            totals[index] += sums.double().cpu()
            counts[index] += count

        return add

    groups: dict[str, list[Callable[[Tensor, Tensor], None]]] = {}
    for index, reader in enumerate(found):
        groups.setdefault(reader.name, []).append(look(index))
    observe(model, {name: _each(looks) for name, looks in groups.items()}, batches, limit)
    return torch.stack([total / max(count, 1) for total, count in zip(totals, counts, strict=True)]).mean(0)


def otherwise(default: Criterion | None, axis: Axis, asked: str, found: str) -> Tensor:
    """Scores by `default`; raises `SecateurError` where there is none."""
    return default(axis) if default is not None else _refuse(axis, asked, found)


def _refuse(axis: Axis, asked: str, found: str) -> NoReturn:
    do = f"give a default criterion for such axes, as in {asked}(model, ..., default=l2(model)), or ignore this axis"
    raise SecateurError(f"{asked} of axis {axis.name!r}", found, do)


def _each(looks: list[Callable[[Tensor, Tensor], None]]) -> Callable[[Tensor, Tensor], None]:
    def both(x: Tensor, y: Tensor) -> None:
        for look in looks:
            look(x, y)

    return both


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
