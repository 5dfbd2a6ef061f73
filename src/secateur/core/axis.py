"""Axes: units of a network that can only be dropped together.

Shape legend: N units of the axis, E entries per unit in one tensor dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Role = Literal["write", "read", "scale", "count"]
Gate = Literal["read", "all"]


@dataclass(frozen=True)
class Slot:
    """Where an axis lives in one dimension of one tensor, or in an integer attribute of a module.

    Unit `u` owns the entries `start + u * step + sum_k i_k * stride_k`, with `0 <= i_k < count_k` over
    `loops = ((count, stride), ...)`. Concatenation gives `start`, flattening (C, H, W) gives `step = H * W` with a loop
    over the plane, a packed QKV projection gives a loop over its three parts. `index` overrides this with an explicit
    list of entries per unit.

    `role`: "write" rows that produce the unit, "read" columns that consume it, "scale" point-wise tensors (batch norm,
    layer scale, a table), "count" an integer attribute (`num_heads`, `groups`) that counts entries; then `dim` is -1.
    """

    tensor: str
    dim: int
    start: int = 0
    step: int = 1
    loops: tuple[tuple[int, int], ...] = ()
    role: Role = "scale"
    index: tuple[tuple[int, ...], ...] | None = None

    @property
    def entries(self) -> int:
        """E, entries per unit."""
        return len(self.index[0]) if self.index else int(np.prod([count for count, _ in self.loops], dtype=int))

    def of(self, units: np.ndarray) -> np.ndarray:
        """Entries owned by `units` (int array of n units); int64 of shape (n, E)."""
        if self.index is not None:
            return np.asarray(self.index, dtype=np.int64)[units]
        entries = np.asarray(units, dtype=np.int64)[:, None] * self.step + self.start
        for count, stride in self.loops:
            inner = np.arange(count, dtype=np.int64) * stride
            entries = (entries[:, :, None] + inner).reshape(len(entries), entries.shape[1] * count)
        return entries


@dataclass(frozen=True)
class Axis:
    """N units that can only be dropped together, and every slot they occupy.

    `kind`: "channel", "hidden", "head", "head_dim", "group", "rank" or "width". `fixed` is None or the reason why the
    axis cannot be cut. `exact` is False where a normalisation reduces over the units: there a cut renormalises.
    `gate` says how a unit is silenced without surgery: "read" zeroes the weights that read it (exact through batch
    norm); "all" zeroes every tensor of it, for units that two activations contract with each other. `fewest` units stay in any
    cut: a kernel of one entry that is standardised over its inputs needs two of them.
    """

    name: str
    kind: str
    units: int
    slots: tuple[Slot, ...]
    fixed: str | None = None
    exact: bool = True
    gate: Gate = "read"
    fewest: int = 1

    def freeze(self, reason: str) -> Axis:
        """The same axis, fixed for `reason` (an earlier reason stays)."""
        return self if self.fixed else replace(self, fixed=reason)

    def writers(self) -> tuple[Slot, ...]:
        """Slots whose tensors produce the units."""
        return tuple(slot for slot in self.slots if slot.role == "write")

    def readers(self) -> tuple[Slot, ...]:
        """Slots whose tensors consume the units."""
        return tuple(slot for slot in self.slots if slot.role == "read")
