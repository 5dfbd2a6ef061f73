"""Where the units of an axis lie in the parameters of a model: what every criterion on weights starts from.

Shape legend: N units, E entries per unit in one dimension, L length of that dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError

BLOCK = 1 << 16
"""Entries summed at a time."""


@dataclass(frozen=True)
class Place:
    """The entries of all units of an axis along dimension `dim` of one parameter."""

    parameter: nn.Parameter
    dim: int
    entries: Tensor  # (N, E) int64

    def gather(self, sums: Mapping[nn.Parameter, list[Tensor]]) -> Tensor:
        """What the `totals` (..., L) of the parameter hold for each unit; (..., N, E)."""
        return sums[self.parameter][self.dim][..., self.entries]

    def rows(self) -> Tensor:
        """All entries of each unit, one row per unit; (N, E * rest)."""
        return plain(self.parameter).movedim(self.dim, 0)[self.entries.to(self.parameter.device)].flatten(1)


def plain(tensor: Tensor) -> Tensor:
    """`tensor` without gradient, half precision as single: squares and sums of halves overflow."""
    return tensor.detach().float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.detach()


def totals(values: Tensor) -> list[Tensor]:
    """For each dimension, `values` summed over all others; (L,) each, on the CPU.

    All that a criterion of sums needs of a tensor, once for the many axes that a concatenation makes read it.
    """
    return power_totals(values, None)


def power_totals(values: Tensor, power: int | None) -> list[Tensor]:
    """The same for the absolute values to a `power`, without a second tensor of that size.

    Blocks of the first dimension stay in the processor's cache; a kernel's plane is summed first.
    """
    rows = max(1, BLOCK // max(values[:1].numel(), 1)) if values.ndim else 1
    sums: list[Tensor] = []
    for block in values.reshape(values.shape or (1,)).split(rows):
        block = block if power is None else block.square() if power == 2 else block.abs()
        plane = block.flatten(2).sum(2) if block.ndim > 2 else block
        first = plane.sum(1) if plane.ndim > 1 else plane
        rest = [plane.sum(0)] if plane.ndim > 1 else []
        rest += [block.sum([i for i in range(block.ndim) if i != dim]) for dim in range(2, block.ndim)]
        if sums:
            sums[0] = torch.cat([sums[0], first])
            sums[1:] = [a + b for a, b in zip(sums[1:], rest, strict=True)]
        else:
            sums = [first, *rest]
    return [total.cpu() for total in sums]


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of real numbers, under each name that it goes by (tied weights have several)."""
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}


def places(axis: Axis, parameters: Mapping[str, nn.Parameter], group: bool = True, *, biases: bool = True) -> list[Place]:
    """Where the units of `axis` lie: in every parameter coupled to them, or with `group=False` in the weights that write them.

    Writers are weights, not their biases. Without `biases`, those of layers and norms are left out where there is anything
    else. A tied weight has one place, whichever of its names the slots use.
    Raises `SecateurError` where there is no such parameter, or the axis is of another model.
    """
    units = np.arange(axis.units)
    found: dict[tuple[object, ...], Place] = {}
    added: set[tuple[object, ...]] = set()
    for slot in axis.slots:
        parameter = parameters.get(slot.tensor)
        if parameter is None or not (group or _writes(slot, parameter)):
            continue
        entries = slot.of(units)
        if slot.dim >= parameter.ndim or entries.max() >= parameter.shape[slot.dim]:
            found_shape = f"{slot.tensor!r} of shape {list(parameter.shape)}"
            raise SecateurError(f"scores for axis {axis.name!r}", found_shape, "trace this model, after its last cut")
        key = (id(parameter), slot.dim, slot.start, slot.step, slot.loops, slot.index)
        found[key] = Place(parameter, slot.dim, torch.from_numpy(entries))
        if slot.tensor.rpartition(".")[2].startswith("bias"):
            added.add(key)
    if not found:
        what = "no parameter" if group else "no weight that writes its units"
        do = "score a model that has the traced tensors" if group else "take group=True, or ignore this axis"
        raise SecateurError(f"scores for axis {axis.name!r}", what, do)
    return [place for key, place in found.items() if biases or key not in added] or list(found.values())


def _writes(slot: Slot, parameter: Tensor) -> bool:
    return slot.role == "write" and parameter.ndim > 1
