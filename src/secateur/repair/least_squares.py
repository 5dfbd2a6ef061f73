"""Least-squares reconstruction of what each layer wrote before the cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import repeatable
from secateur.measure.layers import is_matrix
from secateur.measure.shortcuts import Seen, target_moments, written
from secateur.repair.blocks import unrolled
from secateur.repair.linked import Linked, linked
from secateur.repair.solve import least_error, restricted


def least_squares(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    ridge: float = 1e-8,
    layers: Collection[str] | None = None,
    residual: bool = True,
    sample: int | None = None,
) -> None:
    """Set weights and constants of every layer of `after` that lost inputs so that it writes what it wrote in `before`.

    Inputs are those of `after` as repaired so far, targets the outputs of the same layer in `before`, so errors of earlier
    layers are made good by later ones, from shallow to deep: a pass of both models over `batches` (at most `limit`) per
    layer; with a `sample` of a list of batches a single one of `before`. A layer without a bias has its constant in the
    running mean of the batch norm behind it; with neither it is fitted without. `plan` is the one that led from `before` to
    `after`; None for models of the same shapes, where inputs with zero weights are lost (a mask).
    `ridge` is a share of the mean variance of the inputs. `sample`: at most so many rows of each batch, drawn at random (all
    of them without), for images have more positions than a fit needs. `layers`: the names of those to set, all others stay.
    With `residual`, a layer whose output (or that of the batch norm behind it) is added to a shortcut is to make good the
    shortcut's error too. The last layer of a product is fitted to the layer the product stands for. Whatever stops it, bad
    data or Ctrl-C, `after` is then as it was.

    Source: He et al., 2017 (Channel Pruning), eq. 2, step (ii) and section 3.3. Weights are fitted on all rows by their
    second moments in double precision, where the authors' code samples ten points per image.
    """
    batches = repeatable(batches, limit)
    with restoring(after), unrolled(after) as whole:
        chosen = of_layers(linked(before, whole, batches, plan), after, layers)
        targets = targets_of(chosen, before, batches, limit=limit, sample=sample, residual=residual)
        for each in chosen:
            fit_(whole, each, targets(each), ridge=ridge, sample=sample, residual=residual)


def of_layers(chosen: list[Linked], after: nn.Module, layers: Collection[str] | None) -> list[Linked]:
    """Those of `chosen` that are named, or all. Raises `SecateurError` for a name that no layer of `after` has."""
    there = dict(after.named_modules())
    if unknown := [name for name in layers or () if name not in there]:
        do = nearest(unknown[0], [name for name, module in there.items() if is_matrix(module)])
        raise SecateurError(f"a fit of layer {unknown[0]!r}", "no such layer", do)
    return [each for each in chosen if layers is None or each.name in layers]


def fit_(whole: nn.Module, each: Linked, targets: Targets, *, ridge: float, sample: int | None, residual: bool = True) -> None:
    """Set one layer of `whole` so that it writes `targets`; the rest is as in `least_squares`."""
    known = target_moments(whole, each.name, outlet_of(each, residual), targets, kept=each.rows, sample=sample)
    if known is None:
        raise SecateurError("a pass over data", "no batch", "give data that can be iterated anew for every pass")
    known = restricted(known, each.own, torch.arange(len(known.y)))
    weight, added = least_error(known, each.weight(), intercept=each.has_intercept, ridge=ridge, support=each.support)
    if torch.isfinite(weight).all():
        each.write_(weight, added)


def outlet_of(each: Linked, residual: bool = True) -> str | None:
    """The module whose output may be added to a shortcut; None where that is of no interest."""
    return each.outlet if residual and each.head is None else None


Targets = Iterable[tuple[Any, Seen]]
"""The inputs of each batch and what a layer of the network before wrote."""


def targets_of(
    layers: list[Linked], before: nn.Module, batches: Batches, *, limit: int | None, sample: int | None, residual: bool
) -> Callable[[Linked], Targets]:
    """What each layer is fitted to.

    A list of batches is the same at every pass: with a `sample`, which bounds what has to be held, one pass of `before`
    tells of all layers. Other data may be drawn anew every time, and every layer sees its batches through both networks.
    """
    names = {each.source_name: outlet_of(each, residual) for each in layers}
    if sample is not None and isinstance(batches, (list, tuple)):
        held = list(written(before, names, batches, limit=limit, sample=sample))
        return lambda each: ((inputs, found[each.source_name]) for inputs, found in held)

    def anew(each: Linked) -> Targets:
        own = {each.source_name: names[each.source_name]}
        for inputs, found in written(before, own, batches, limit=limit, sample=sample):
            yield inputs, found[each.source_name]

    return anew
