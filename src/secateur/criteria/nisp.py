"""Importance of what the network finally answers, handed back through the weights.

Shape legend: N units, E entries per unit, O out, I in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion
from secateur.criteria.places import parameters, plain

LARGE = 1e100
"""Importances above are scaled down, all alike: through a hundred layers they would leave double precision."""


def nisp(model: nn.Module, axes: Axes, *, final: Mapping[str, Tensor] | None = None) -> Criterion:
    """Scores: ``s_in = |W|' s_out`` from the last layer back to the first, the kernel's plane summed.

    `final` names axes whose importance is known, as the answers of a classifier ranked by some feature ranking; those that
    no weight reads are 1 unless named. Layers hand on in the reverse order of the model's definition; an axis that
    several layers read, as the stream of a residual network, adds up what they hand back, and hands it on to every
    layer that writes it. `axes`: those of a trace of `model`. Norms and activations hand on unchanged.

    Source: Yu et al., 2018 (NISP), eq. 13 and 14. There the importance of the final response comes from Inf-FS on the
    training set; here it is 1, or given.
    """
    weights = {name: p for name, p in parameters(model).items() if p.dim() > 1}
    known: dict[str, Tensor] = {}
    one = 1.0
    for axis in axes:
        if final is not None and axis.name in final:
            known[axis.name] = torch.as_tensor(final[axis.name]).double()
        else:
            known[axis.name] = torch.full((axis.units,), 0.0 if _read(axis, weights) else one, dtype=torch.float64)
    sides = _sides(axes, weights)
    for name in reversed(list(weights)):
        rows, columns = sides.get((name, 0), []), sides.get((name, 1), [])
        if not columns:
            continue
        weight = plain(weights[name]).double().cpu().abs().flatten(2).sum(-1) if weights[name].dim() > 2 else None
        weight = plain(weights[name]).double().cpu().abs() if weight is None else weight
        handed = torch.full((len(weight),), one if not rows else 0.0, dtype=torch.float64)
        for axis, entries in rows:
            handed[entries] = known[axis.name][:, None].expand(entries.shape)
        back = weight.T @ handed  # (I,)
        for axis, entries in columns:
            if final is None or axis.name not in final:
                known[axis.name] = known[axis.name] + back[entries].sum(1)
        if max(float(value.max()) for value in known.values()) > LARGE:
            known, one = {axis: value / LARGE for axis, value in known.items()}, one / LARGE

    def score(axis: Axis) -> Tensor:
        if axis.name not in known:
            do = "make the criterion with the axes you score"
            raise SecateurError(f"nisp of axis {axis.name!r}", "no such axis among those it was made with", do)
        return known[axis.name] / known[axis.name].max().clamp_min(1e-300)

    return score


def _read(axis: Axis, weights: Mapping[str, Tensor]) -> bool:
    return any(slot.role == "read" and slot.dim == 1 and slot.tensor in weights for slot in axis.slots)


def _sides(axes: Axes, weights: Mapping[str, Tensor]) -> dict[tuple[str, int], list[tuple[Axis, Tensor]]]:
    """(weight, dim) to the axes along it, with the entries (N, E) of their units; those whose entries cover a channel."""
    found: dict[tuple[str, int], list[tuple[Axis, Tensor]]] = {}
    for axis in axes:
        for slot in axis.slots:
            if slot.tensor in weights and (slot.dim, slot.role) in ((0, "write"), (1, "read")):
                entries = torch.from_numpy(slot.of(np.arange(axis.units)))
                found.setdefault((slot.tensor, slot.dim), []).append((axis, entries))
    return found
