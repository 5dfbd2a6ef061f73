"""What each unit carries, for a Scoring Net that looks at activations: of its readers' outputs, and of the network's.

Shape legend: N units of one axis, U of all free axes, E channels per unit, B samples, P positions, F columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.attention import following
from secateur.core.axes import Axes
from secateur.core.errors import NotFinite, SecateurError
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, flat, pairs, to_device
from secateur.criteria.features import Reader, readers
from secateur.criteria.places import plain
from secateur.criteria.thinet import greedy_removal
from secateur.measure.layers import matrix
from secateur.measure.moments import contributions, moments_of_each

FLOWS = 10
LEAST = 1e-9
"""A share below this is none."""
Grams = Mapping[str, Tensor]
"""Axis name to inner products (N, N)."""


class Flows:
    """What flows through the units of each free axis, over at most `limit` of `batches`; labels are not read.

    `carried`: the covariance of what units add to the outputs of their readers, over its sum; the mean over readers.
    `felt`: inner products of what units add, to first order, to a random signing of the network's outputs, over the outputs'
    variance: J'J of the outputs by gates. Both count deviations from the mean alone, which batch norms take off.
    Readers are linear layers and convolutions without groups; an axis that none reads is in neither.
    One forward, on `sample` rows of each layer (several where second moments of all layers are too many to be held at once),
    and one forward and backward, in evaluation mode; `passes` counts them by batches.
    Raises `SecateurError` where there is no batch, and `NotFinite`.
    """

    def __init__(self, model: nn.Module, axes: Axes, batches: Batches, *, limit: int = 20, sample: int = 128) -> None:
        found = {axis.name: readers(model, axis) for axis in axes.free}
        reading = {name: known for name, known in found.items() if known}
        self.carried: Grams = _carried(model, reading, batches, limit, sample)
        self.felt: Grams
        self.felt, count = _felt(model, reading, batches, limit)
        self.passes = 2 * count


def columns(axes: Axes, macs: Sequence[float], norms: Sequence[Tensor], flows: Flows) -> tuple[Tensor, Tensor]:
    """What a net reads of `flows` (U, F), and a criterion (U,): half the logarithm of what is lost in the readers, half of
    that at the outputs, less that of the axis' share of the MACs.

    Columns are a fifth of the logarithms of: what is lost in the readers; the unit's variance over the axis' mean; the sum of
    variances over the variance of the sum; the norm; units; the axis' share of the MACs; what is lost at the outputs; what is
    felt of the unit alone. The last two: was it carried, was it felt?

    `norms`: relative L1 norms (N,) of each free axis, which stand in where an axis has none, with no cross terms;
    `macs`: the share of the MACs that goes with a unit of each. Losses are those of greedy removal.
    """
    names, blocks = [axis.name for axis in axes.free], []
    for axis, cost, norm in zip(axes.free, macs, norms, strict=True):
        gram = flows.carried.get(axis.name)
        known = torch.diag(norm.square() / norm.square().sum().clamp_min(LEAST)) if gram is None else gram
        diagonal, share = known.diagonal().clamp_min(0), torch.full_like(norm, max(cost * axis.units, LEAST))
        felt = flows.felt.get(axis.name)
        rows = [lost(known), diagonal / diagonal.mean().clamp_min(LEAST), diagonal, diagonal.sum().expand_as(norm)]
        rows += [norm, torch.full_like(norm, axis.units), share]
        rows += [torch.full_like(norm, LEAST)] * 2 if felt is None else [removed(felt), felt.diagonal()]
        logs = torch.stack(rows, 1).clamp_min(LEAST).log()
        told = torch.tensor([float(gram is not None), float(felt is not None)], dtype=norm.dtype).expand(len(norm), 2)
        blocks.append(torch.cat([logs, told], 1))
    if not names:
        return torch.zeros(0, FLOWS, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    table = torch.cat(blocks)
    seen = table[:, 10].bool()
    for column, like in ((7, 0), (8, 2)):  # where nothing was felt: what is carried, on the scale of the rest
        gap = (table[seen, column] - table[seen, like]).mean() if bool(seen.any()) else table.new_zeros(())
        table[:, column] = torch.where(seen, table[:, column], table[:, like] + gap)
    prior = (table[:, 0] + table[:, 7]) / 2 - table[:, 6]
    return torch.cat([table[:, :2], table[:, 3:]], 1) / 5, prior


def lost(gram: Tensor) -> Tensor:
    """How much of the readers' output is gone when each unit goes, in greedy order; (N,), from 0 to 1.

    Of units still there, S, the next to go is the one that leaves the highest squared correlation of the sum over S with the
    sum over all: r^2 = (1_S' G 1)^2 / (1_S' G 1_S * 1' G 1), for `gram` G (N, N). Means and scales, which batch norms find
    anew after a cut, do not count. 1 - r^2 then is its loss, or the highest before it. ThiNet's removal (Luo et al., 2017,
    algorithm 1), by correlation in place of the error.
    """
    one = gram.sum(1)
    whole = float(one.sum().clamp_min(1e-30))
    found, alive = torch.zeros_like(one), torch.ones(len(gram), dtype=torch.bool)
    shared, own, towards, most = whole, whole, one.clone(), 0.0  # 1_S' G 1, 1_S' G 1_S, G 1_S
    for _ in range(len(gram)):
        left = own - 2 * towards + gram.diagonal()
        squared = (shared - one).clamp_min(0).square() / (left.clamp_min(1e-30) * whole)
        unit = int(torch.where(alive, squared, -1.0).argmax())
        most = min(max(most, 1 - float(squared[unit])), 1.0)
        shared, own, towards = shared - float(one[unit]), float(left[unit]), towards - gram[:, unit]
        found[unit], alive[unit] = most, False
    return found


def removed(gram: Tensor) -> Tensor:
    """1_R' G 1_R, R being all that is gone when each unit goes, in the order that keeps it lowest; never less than before."""
    order = torch.tensor(greedy_removal(gram), dtype=torch.int64)
    errors = gram[order][:, order].cumsum(0).cumsum(1).diagonal().clamp_min(0).cummax(0).values
    return torch.empty_like(errors).scatter_(0, order, errors)


def _carried(
    model: nn.Module, reading: Mapping[str, list[Reader]], batches: Batches, limit: int, sample: int
) -> dict[str, Tensor]:
    layers = sorted({reader.name for found in reading.values() for reader in found})
    parts: dict[str, list[Tensor]] = {}
    for layer, moments in moments_of_each(model, layers, batches, limit, sample=sample):
        for name, reader in ((name, reader) for name, found in reading.items() for reader in found if reader.name == layer):
            gram, _ = contributions(moments.centred(), plain(matrix(reader.module)), reader.blocks)
            parts.setdefault(name, []).append(gram / gram.sum().clamp_min(1e-30))
    return {name: torch.stack(grams).mean(0) for name, grams in parts.items()}


def _felt(model: nn.Module, reading: Mapping[str, list[Reader]], batches: Batches, limit: int) -> tuple[dict[str, Tensor], int]:
    modules = {reader.name: reader.module for found in reading.values() for reader in found}
    generator, device = torch.Generator().manual_seed(0), device_of(model)
    sums: dict[str, Tensor] = {}
    variance, count, seen = 0.0, 0, {name: [] for name in modules}  # type: ignore[var-annotated]

    def show(known: list[Tensor], module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        known.append(args[0].clone() if args[0].requires_grad else args[0].clone().requires_grad_())
        return (known[-1], *args[1:])

    handles = [module.register_forward_pre_hook(partial(show, seen[name])) for name, module in modules.items()]
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model), following(model, modules):
            for inputs, _ in pairs(batches, limit):
                for known in seen.values():
                    known.clear()
                with fits(inputs):
                    output = call(model, to_device(inputs, device))
                outputs = [value for value in flat(output) if isinstance(value, Tensor) and value.is_floating_point()]
                signs = [torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1 for value in outputs]
                signed = torch.stack([(value * sign).sum() for value, sign in zip(outputs, signs, strict=True)]).sum()
                calls = [x for known in seen.values() for x in known]
                slopes = torch.autograd.grad(signed, calls, allow_unused=True, materialize_grads=True)
                by_call = {id(x): slope for x, slope in zip(calls, slopes, strict=True)}
                variance += sum(float((value.detach() - value.detach().mean(0)).double().square().sum()) for value in outputs)
                count += 1
                for name, found in reading.items():
                    added = [_added(reader, x.detach(), by_call[id(x)]) for reader in found for x in seen[reader.name]]
                    if added:
                        rows = torch.stack(added).sum(0)  # (B, N)
                        sums[name] = sums.get(name, 0) + rows.T @ rows
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise SecateurError("a pass over data", "no batch", "give data that can be iterated anew for every pass")
    if not all(bool(gram.isfinite().all()) for gram in sums.values()) or not math.isfinite(variance):
        do = "look for such values in the weights and in the data"
        raise NotFinite("the outputs of a network over the data", "infinite values or NaN", do)
    return {name: gram / max(variance, 1e-30) for name, gram in sums.items()}, count


def _added(reader: Reader, x: Tensor, slope: Tensor) -> Tensor:
    """The slope by a gate on what each unit deviates from its mean, of every sample; (B, N) in double precision on the CPU."""
    values, slopes = (
        reader.features(part).flatten(3) if part.dim() > 2 else reader.features(part)[..., None] for part in (x, slope)
    )
    return ((values - values.mean((0, 3), keepdim=True)) * slopes).sum((2, 3)).double().cpu()
