"""Pruning a network layer by layer, each one fitted to the original before the next is chosen; repairs by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur import criteria, repair
from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Batches, Repair
from secateur.recipes.schema import Repair as Section
from secateur.repair.least_squares import least_squares
from secateur.repair.linked import kept_entries
from secateur.search.bisect import dearest
from secateur.surgery import duplicate, tensors

Select = Callable[[nn.Module, nn.Module, Axis], Tensor]
"""(current, original, axis) to one score per unit."""


def repair_by_name(
    name: str,
    plan: Plan,
    *,
    sample: int | None = None,
    steps: int = 300,
    lr: float = 3e-3,
    trained_on: Batches | None = None,
) -> Repair:
    """The repair that `name` stands for, "+" joining several in turn: "compensation+batchnorm".

    `sample`: rows that fits take of each batch; None takes all. `steps` and `lr` are those of "distil". `trained_on`: batches
    as training sees them, of which batch norms take their statistics in place of those of the other repairs.
    """
    extra: dict[str, dict[str, Any]] = {"batchnorm": {}, "distil": {"steps": steps, "lr": lr}}
    extra |= {key: {"plan": plan} for key in ("mean_bias", "whitened")}
    parts = [(getattr(repair, part), extra.get(part, {"plan": plan, "sample": sample})) for part in name.split("+")]
    made = [partial(part, **named) for part, named in parts]
    if trained_on is not None:
        made = [_on(trained_on, part) if part.func is repair.batchnorm else part for part in made]
    return repair.chain(*made)


def _on(batches: Batches, part: Repair) -> Any:
    """`part`, which looks at `batches` whatever it is given."""
    return lambda before, after, _: part(before, after, batches)


def repair_of(section: Section, plan: Plan, trained_on: Batches | None = None) -> Repair:
    """The repair that [repair] of a recipe asks for."""
    return repair_by_name(section.name, plan, steps=section.steps, lr=section.lr, trained_on=trained_on)


def channel_pruning(
    model: nn.Module,
    axes: Axes,
    widths: Mapping[str, int],
    batches: Batches,
    *,
    select: Select | None = None,
    limit: int | None = None,
    sample: int | None = None,
    fit: Callable[..., None] = least_squares,
) -> tuple[Plan, nn.Module]:
    """(plan, small): each axis in forward order is cut to `widths` of its units, and what reads it fitted to the original.

    For each named axis: units are selected by the LASSO (or `select`) with inputs from the network as cut so far and targets
    from `model`; the rest is silenced in a copy; the layers that read the axis are fitted by least squares to the outputs
    they have in `model`. Two passes over `batches` (at most `limit`, of each at most `sample` rows) per axis, of both networks.
    `model` stays. With `repair.two_sided` (or a `partial` of it) for `fit`, the layer that alone writes an axis is fitted along
    with its reader, and what is selected behind sees fewer errors. The end of a residual branch makes good the error of its
    shortcut. Where a norm reduces over the units of an axis, as over the stream of a transformer, all layers are fitted once
    more in the network that is cut.
    Axes that no linear layer or convolution reads are selected by L2. Raises `SecateurError` for an unknown or a fixed
    axis, one that is silenced as a whole (the width of an attention head), and widths out of range.

    Source: He et al., 2017 (Channel Pruning), section 3.2, "whole model pruning", and 3.3. The shared units of a residual
    sum are one axis, selected for all of its readers at once, where the paper samples them in front of each branch.
    """
    for name, width in widths.items():
        axis = axes[name]
        if axis.fixed or axis.gate != "read" or not isinstance(width, Integral) or not 1 <= width <= axis.units:
            found = axis.fixed or (f"{width} of {axis.units} units" if axis.gate == "read" else "units that nothing reads")
            raise SecateurError(f"a selection on axis {name!r}", found, "name free axes, with 1 to all of their units")
    current = duplicate(model)
    kept: dict[str, list[int]] = {}
    for axis in axes.free:
        width = widths.get(axis.name, axis.units)
        if width == axis.units:
            continue
        if select is None:
            lasso = criteria.lasso(current, batches, original=model, limit=limit, sample=sample, default=criteria.l2(current))
            scores = lasso(axis)
        else:
            scores = select(current, model, axis)
        kept[axis.name] = dearest(axis, {axis.name: scores}, width)
        silence_(current, axis, kept[axis.name])
        readers = {slot.tensor.rpartition(".")[0] for slot in axis.readers()}
        so_far = axes.plan(kept)
        small = so_far.apply(current)
        fit(model, small, batches, plan=so_far, limit=limit, layers=readers, sample=sample)
        put_back_(current, small, so_far)
    plan = axes.plan(kept)
    small = plan.apply(current)
    if not all(axes[name].exact for name in kept):  # what passes a norm over them is other now
        fit(model, small, batches, plan=plan, limit=limit, sample=sample)
    return plan, small


def reselected(model: nn.Module, axes: Axes, plan: Plan, fit: str, batches: Batches, *, sample: int | None = None) -> Plan:
    """The widths of `plan`, which drops units, their units selected once more by `channel_pruning` and backward elimination.

    `fit`: the repair of that name that mends each axis before the next is selected. Axes that nothing reads, as the width of an
    attention head, keep the units of `plan`; other axes are selected as if those were whole.
    """
    kept = {cut.axis: list(cut.kept) for step in plan.steps if isinstance(step, Keep) for cut in step.cuts}
    widths = {name: len(units) for name, units in kept.items() if axes[name].gate == "read"}
    default = criteria.l2(model)

    def select(current: nn.Module, original: nn.Module, axis: Axis) -> Tensor:
        return criteria.elimination(current, batches, original=original, sample=sample, default=default)(axis)

    how = getattr(repair, fit)
    found, _ = channel_pruning(model, axes, widths, batches, select=select, sample=sample, fit=how)
    chosen = {cut.axis: list(cut.kept) for step in found.steps if isinstance(step, Keep) for cut in step.cuts}
    return axes.plan(kept | {name: chosen[name] for name in widths if name in chosen})


def silence_(model: nn.Module, axis: Axis, kept: list[int]) -> None:
    """Set every weight that reads a unit beyond `kept` to zero."""
    named = dict(tensors(model))
    dropped = np.setdiff1d(np.arange(axis.units), kept)
    with torch.no_grad():
        for slot in axis.readers():
            entries = torch.from_numpy(slot.of(dropped).reshape(-1)).to(named[slot.tensor].device)
            named[slot.tensor].index_fill_(slot.dim, entries, 0)


def put_back_(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Set what `plan` left of `model` to the values it has in `small`."""
    kept, _ = kept_entries(plan, model)
    named = dict(tensors(model))
    with torch.no_grad():
        for name, value in tensors(small):
            if value.dim():
                named[name][np.ix_(*(kept[name, dim] for dim in range(value.dim())))] = value
            else:
                named[name].copy_(value)
