"""Ranks among isomorphic axes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion


def isomorphic(model: nn.Module, axes: Axes, base: Criterion) -> Criterion:
    """Scores: the share of units of like axes that score at most as much by `base`, in (0, 1].

    Axes are alike where the same kinds of layers write, scale and read their units (`likeness`). Scores of unlike axes are
    never compared: each group loses the same share of its units in a ranking of all with ``normalise="none"``. The scores
    of all free axes are taken now.

    Source: Fang et al., 2024 (Isomorphic Pruning), section 3.2; likeness here is of the layers of an axis and their
    number, not of the whole sub-graph.
    """
    groups: dict[Hashable, list[tuple[str, Tensor]]] = {}
    for axis in axes.free:
        groups.setdefault(likeness(model, axis), []).append((axis.name, base(axis).detach().double().cpu()))
    ranks: dict[str, Tensor] = {}
    for members in groups.values():
        every = torch.cat([scores for _, scores in members]).sort().values
        ranks |= {name: torch.searchsorted(every, scores, right=True).double() / len(every) for name, scores in members}

    def score(axis: Axis) -> Tensor:
        if axis.name not in ranks:
            do = "give the axes you score, with this one free"
            raise SecateurError(f"isomorphic ranks of axis {axis.name!r}", "no such free axis", do)
        return ranks[axis.name]

    return score


def likeness(model: nn.Module, axis: Axis) -> Hashable:
    """Kind of the axis, and how often each kind of layer holds it in which tensor, dimension and role."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    places = []
    for slot in axis.slots:
        path, _, last = slot.tensor.rpartition(".")
        places.append((type(modules.get(path, model)).__name__, last, slot.dim, slot.role))
    return axis.kind, tuple(sorted(places))
