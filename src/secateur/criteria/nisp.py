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
    turned = _turned(axes, weights)
    sides = _sides(axes, weights, turned)
    known: dict[str, Tensor] = {}
    one = 1.0
    for axis in axes:
        if final is not None and axis.name in final:
            known[axis.name] = torch.as_tensor(final[axis.name]).double()
        else:
            known[axis.name] = torch.full((axis.units,), 0.0 if _read(axis, weights, turned) else one, dtype=torch.float64)
    for name in reversed(list(weights)):
        rows, columns = sides.get((name, "write"), []), sides.get((name, "read"), [])
        if not columns:
            continue
        weight = plain(weights[name]).double().cpu().abs()
        weight = weight.flatten(2).sum(-1) if weight.dim() > 2 else weight
        weight = weight.T if name in turned else weight
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


def _turned(axes: Axes, weights: Mapping[str, Tensor]) -> set[str]:
    """Weights (I, O, ...), of transposed convolutions without groups and of GPT-2's linear layers: read along dimension 0."""
    slots = [slot for axis in axes for slot in axis.slots]
    places = {(slot.tensor, slot.dim, slot.role) for slot in slots}
    grouped = {slot.tensor.rpartition(".")[0] for slot in slots if slot.tensor.endswith(".groups")}
    found = {name for name in weights if (name, 0, "read") in places and (name, 1, "write") in places}
    return {name for name in found if name.rpartition(".")[0] not in grouped and (name, 1, "read") not in places}


def _read(axis: Axis, weights: Mapping[str, Tensor], turned: set[str]) -> bool:
    read = [slot for slot in axis.slots if slot.role == "read" and slot.tensor in weights]
    return any(slot.dim == (0 if slot.tensor in turned else 1) for slot in read)


def _sides(axes: Axes, weights: Mapping[str, Tensor], turned: set[str]) -> dict[tuple[str, str], list[tuple[Axis, Tensor]]]:
    """(weight, role) to the axes that write or read it, with the entries (N, E) of their units."""
    found: dict[tuple[str, str], list[tuple[Axis, Tensor]]] = {}
    for axis in axes:
        for slot in axis.slots:
            sides = ("read", "write") if slot.tensor in turned else ("write", "read")
            if slot.tensor in weights and slot.dim in (0, 1) and slot.role == sides[slot.dim]:
                entries = torch.from_numpy(slot.of(np.arange(axis.units)))
                found.setdefault((slot.tensor, slot.role), []).append((axis, entries))
    return found
