"""First and second moments of what a layer reads, and of what it shall write.

Shape legend: O outputs, D inputs of one output, M rows (samples times positions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from numbers import Integral

import torch
from torch import Tensor, nn

from secateur.core.errors import NotFinite, SecateurError
from secateur.core.protocols import Batches
from secateur.measure.layers import matrix, outputs, row_count, rows
from secateur.measure.observe import Look, observe


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over all rows in float64, on the CPU: of x (D,), y (O,), x x' (D, D) and x y' (D, O).

    Raises `NotFinite` where one of them is infinite or not a number.
    """

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    def __post_init__(self) -> None:
        if not all(torch.isfinite(part).all() for part in (self.x, self.y, self.xx.diagonal())):
            do = "look for such values in the weights and in the data"
            raise NotFinite("the inputs and outputs of a layer over the data", "infinite values or NaN", do)

    def centred(self) -> Moments:
        """The same of x and y less their means: covariances; a diagonal that rounding made negative is zero."""
        xx = self.xx - self.x[:, None] * self.x
        xx.diagonal().clamp_(min=0)
        return Moments(self.x, self.y, xx, self.xy - self.x[:, None] * self.y)


def drawn(count: int, sample: int | None) -> Tensor | None:
    """At most `sample` of `count` rows, the same for every batch of that size; None is all of them.

    Raises `SecateurError` for a number of rows that is none.
    """
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, Integral) or sample < 1):
        raise SecateurError(f"sample={sample!r}", "no number of rows", "give a whole number from 1, or None for all rows")
    return None if sample is None or count <= sample else _drawn(count, sample)


@lru_cache(maxsize=16)
def _drawn(count: int, sample: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:sample].clone()


def input_moments(
    model: nn.Module, names: Sequence[str], batches: Batches, limit: int | None = None, *, sample: int | None = None
) -> dict[str, Moments]:
    """For each named layer that runs, the moments of its inputs and of its own outputs, which follow from them; one pass.

    `sample`: rows that are taken of each batch, drawn at random; a batch of images has thousands, next to one another.
    """
    sums: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(names, 0)

    def look(name: str) -> Look:
        module = model.get_submodule(name)

        def add(x: Tensor, y: Tensor) -> None:
            part = rows(module, x, drawn(row_count(module, y), sample)).double()
            counts[name] += len(part)
            _add(sums, name, [part.sum(0), part.T @ part])

        return add

    observe(model, {name: look(name) for name in names}, batches, limit)
    found = {}
    for name in (name for name in names if name in sums):
        if not counts[name]:
            do = "give batches that are not empty"
            raise SecateurError(f"what the layer {name!r} reads over the data", "no rows in any batch", do)
        x, xx = (total / counts[name] for total in sums[name])
        weight, bias = matrix(model.get_submodule(name)).double().cpu(), model.get_submodule(name).bias
        y, xy = weight @ x, xx @ weight.T
        if isinstance(bias, Tensor):
            b = bias.detach().double().cpu()
            y, xy = y + b, xy + x[:, None] * b
        found[name] = Moments(x, y, xx, xy)
    return found


AT_ONCE = 1 << 28
"""Bytes of second moments that `moments_of_each` keeps at a time: some hundred layers of a small network, one of a large."""


def moments_of_each(
    model: nn.Module, names: Sequence[str], batches: Batches, limit: int | None = None, *, sample: int | None = None
) -> Iterator[tuple[str, Moments]]:
    """The same as `input_moments`, layer after layer: as many in one pass over `batches` as `AT_ONCE` has room for."""
    group: list[str] = []
    room = AT_ONCE
    for name in names:
        size = 8 * matrix(model.get_submodule(name)).shape[1] ** 2
        if group and size > room:
            yield from input_moments(model, group, batches, limit, sample=sample).items()
            group, room = [], AT_ONCE
        group, room = [*group, name], room - size
    if group:
        yield from input_moments(model, group, batches, limit, sample=sample).items()


def paired_moments(
    current: nn.Module,
    original: nn.Module,
    names: Sequence[str],
    batches: Batches,
    *,
    limit: int | None = None,
    sources: Mapping[str, str] | None = None,
    sample: int | None = None,
) -> dict[str, Moments]:
    """For each named layer, the moments of its inputs in `current` and of its outputs in `original`, batch by batch.

    A layer that is called several times in a forward pairs its calls in order. `sources`: the names that layers have in
    `original`, where they differ. `sample` as in `input_moments`; both sides show the same rows.
    """
    where = {name: (sources or {}).get(name, name) for name in names}
    sums: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(names, 0)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Look:
        source = original.get_submodule(where[name])

        def take(_: Tensor, y: Tensor) -> None:
            kept[name].append(outputs(source, y, drawn(row_count(source, y), sample)).double().clone())

        return take

    def look(name: str) -> Look:
        module = current.get_submodule(name)

        def add(x: Tensor, y: Tensor) -> None:
            part, target = rows(module, x, drawn(row_count(module, y), sample)).double(), kept[name].pop(0).to(x.device)
            counts[name] += len(part)
            _add(sums, name, [part.sum(0), target.sum(0), part.T @ part, part.T @ target])

        return add

    calls: int | None = None
    for batch in islice(batches, limit):
        observe(original, {where[name]: keep(name) for name in names}, [batch], calls=calls)
        calls = sum(map(len, kept.values()))
        observe(current, {name: look(name) for name in names}, [batch], calls=calls)
    if not sums:
        observe(current, {}, [])  # says that there is no batch
    return {name: Moments(*(total / counts[name] for total in sums[name])) for name in names}


def _add(sums: dict[str, list[Tensor]], name: str, parts: list[Tensor]) -> None:
    parts = [part.cpu() for part in parts]
    sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts


def contributions(moments: Moments, weight: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """G (N, N) and b (N,): mean inner products of what each unit adds to the outputs, with each other and with the targets.

    `blocks` (N, C): the columns of `weight` (O, D) that read each unit. With Z_i = X_i W_i': G_ij = <Z_i, Z_j>,
    b_i = <Z_i, Y>.
    """
    flat = blocks.reshape(-1)
    weight = weight.double().cpu()[:, flat]
    product = (weight.T @ weight) * moments.xx[flat][:, flat]
    n, width = blocks.shape
    gram = product.reshape(n, width, n, width).sum((1, 3))
    towards = (moments.xy[flat] * weight.T).sum(1).reshape(n, width).sum(1)
    return gram, towards


def stack(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sums of the G and of the b of several layers."""
    return torch.stack([gram for gram, _ in parts]).sum(0), torch.stack([b for _, b in parts]).sum(0)
