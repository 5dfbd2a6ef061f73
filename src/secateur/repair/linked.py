"""Which layers of a smaller model lost inputs, and where what is left lay before.

Shape legend: O outputs, D columns of the matrix of a layer (see `measure.layers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product, piece_shapes
from secateur.core.mask import Mask
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Batches
from secateur.core.split import Split
from secateur.measure.layers import as_weight, columns, input_dim, is_matrix, matrix, outputs, row_count, rows
from secateur.measure.moments import Moments, drawn, input_moments
from secateur.measure.observe import observe, outlets
from secateur.repair.solve import restricted
from secateur.surgery.fingerprint import real_slots, survivors


@dataclass(frozen=True, eq=False)
class Linked:
    """A layer of the smaller model that reads less than before.

    `columns` (D') and `rows` (O'): where the inputs it has and the outputs it writes lie in the matrix of `source`.
    `own` (D'): where those inputs lie in its own matrix. `norm`: the batch norms, before and after, that take its output,
    `outlet` the name of that norm, or of the layer where there is none. `source_name`: what the layer is called before.
    `head`: the layers between the inputs of `source` and those of `layer`, where that is the last piece of a product;
    `reads` are then the channels that are left of those inputs. `support` (O', D'): the weights there are, where a mask has
    taken others.
    """

    name: str
    source_name: str
    layer: nn.Module
    source: nn.Module
    columns: Tensor
    rows: Tensor
    own: Tensor
    norm: tuple[_BatchNorm, _BatchNorm] | None
    outlet: str
    head: nn.Module | None = None
    reads: Tensor | None = None
    support: Tensor | None = None

    @property
    def has_intercept(self) -> bool:
        """Is there a place for a constant: a bias, or the running mean of a batch norm behind?"""
        return isinstance(self.layer.bias, Tensor) or self.norm is not None

    def weight(self) -> Tensor:
        """What the layer holds now for the inputs it has; (O', D') float64 on the CPU."""
        return matrix(self.layer).double().cpu()[:, self.own]

    def constant_behind(self) -> Tensor:
        """The constant (O',) that a layer without a bias has in the running mean of the batch norm behind it; zero without."""
        if self.norm is None or isinstance(self.layer.bias, Tensor):
            return torch.zeros(len(self.rows), dtype=torch.float64)
        old, new = (cast(Tensor, norm.running_mean).double().cpu() for norm in self.norm)
        return old[self.rows] - new

    def write_(self, weight: Tensor, intercept: Tensor | None) -> None:
        """Set the weights (O', D') and the constant (O',) of the layer; without a bias, by the batch norm behind it."""
        with torch.no_grad():
            held = cast(Tensor, self.layer.weight)
            flat = matrix(self.layer).clone()
            flat[:, self.own] = weight.to(flat)
            held.copy_(as_weight(self.layer, flat))
            if intercept is None:
                return
            if isinstance(self.layer.bias, Tensor):
                self.layer.bias.copy_(intercept)
            elif self.norm is not None:
                old, new = (cast(Tensor, norm.running_mean) for norm in self.norm)
                new.copy_(old.double().cpu()[self.rows] - intercept)


def linked(before: nn.Module, after: nn.Module, batches: Batches, plan: Plan | None = None) -> list[Linked]:
    """The layers of `after` that read less than in `before`, in the order in which the forward calls them.

    With `plan`, the one that led from `before` to `after`. Without, both have the same shapes, and weights that are zero in
    `after` alone count as lost (a mask), as they do where the plan masks. Linear layers and convolutions without groups are
    found, and the last layer of every product; one batch is run. Raises `SecateurError` where shapes do not agree.
    """
    kept, products = kept_entries(plan, before) if plan is not None else ({}, {})
    steps = plan.steps if plan is not None else ()
    masked = {support.tensor for step in steps if isinstance(step, Mask) for support in step.supports}
    masked |= {f"{blocks.module}.weight" for step in steps if isinstance(step, Split) for blocks in step.layers}
    known = {}
    for name, module in after.named_modules():
        source = _module(before, products.get(name, name))
        if is_matrix(module) and source is not None and (is_matrix(source) or name in products):
            known[name] = (module, source)
    found = []
    for name, outlet in outlets(after, {name: layer for name, (layer, _) in known.items()}, batches).items():
        layer, source = known[name]
        old, new, reads = cast(Tensor, source.weight).shape, cast(Tensor, layer.weight), input_dim(layer)
        written = kept.get((f"{name}.weight", 1 - reads), np.arange(old[1 - reads]))
        both = [cast(_BatchNorm, model.get_submodule(outlet)) for model in (before, after)] if outlet != name else None
        norm = (both[0], both[1]) if both else None
        own = torch.arange(matrix(layer).shape[1])
        link = Linked(name, products.get(name, name), layer, source, own, torch.from_numpy(written), own, norm, outlet)
        if name in products:
            link = _product(link, after, kept)
            found.append(_masked(link) if f"{name}.weight" in masked else link)
            continue
        channels = kept.get((f"{name}.weight", reads), np.arange(old[reads]))
        if (len(written), len(channels)) != (new.shape[1 - reads], new.shape[reads]):
            do = "give the plan that led from the first model to the second"
            raise SecateurError(f"a repair of {name!r}", f"weights of shapes {list(old)} and {list(new.shape)}", do)
        at = columns(source, torch.from_numpy(channels)[:, None]).flatten()
        link = replace(link, columns=at)
        if plan is None or f"{name}.weight" in masked:
            link = _masked(link)
        if len(link.columns) < matrix(source).shape[1] or link.support is not None:
            found.append(link)
    return found


def _masked(link: Linked) -> Linked:
    """`link` without the inputs no weight reads, and with the weights there are where outputs differ in them."""
    there = (matrix(link.layer) != 0).cpu()
    own = there.any(0).nonzero().flatten()
    columns = link.columns[own] if link.head is None else link.columns
    support = there[:, own]
    old = None if link.head is not None else matrix(link.source).cpu()[link.rows][:, columns] != 0
    lost = (~support).any() if old is None else (old & ~support).any()
    return replace(link, own=own, columns=columns, support=support if lost else None)


def _product(link: Linked, after: nn.Module, kept: Entries) -> Linked:
    """`link` as the last piece of a product."""
    path, _, last = link.name.rpartition(".")
    pieces = [after.get_submodule(f"{path}.{number}") for number in range(int(last))]
    reads = kept.get((f"{path}.0.weight", 1))
    return replace(link, head=nn.Sequential(*pieces), reads=None if reads is None else torch.from_numpy(reads))


Known = tuple[Moments, Tensor]
"""Moments of what a layer reads and shall write, and the variance of the latter (O',)."""


def known_before(
    layers: list[Linked], before: nn.Module, batches: Batches, limit: int | None, *, sample: int | None = None
) -> Iterator[tuple[Linked, Known]]:
    """Each of `layers` with what is known of it in the network before, from one pass for all cut layers.

    What a product's last layer reads is what its other layers make of the inputs before; each product makes its own pass.
    """
    plain = [each.name for each in layers if each.head is None]
    moments = input_moments(before, plain, batches, limit, sample=sample) if plain else {}
    for each in layers:
        if each.head is not None:
            yield each, _through(each, each.head, before, batches, limit=limit, sample=sample)
            continue
        whole, weight = moments[each.name], matrix(each.source).double().cpu()[each.rows]
        variance = ((weight @ whole.centred().xx) * weight).sum(1)
        yield each, (restricted(whole, each.columns, each.rows), variance)


def _through(
    link: Linked, head: nn.Module, before: nn.Module, batches: Batches, *, limit: int | None, sample: int | None
) -> Known:
    sums: list[Tensor] = []
    count = 0

    def look(x: Tensor, y: Tensor) -> None:
        nonlocal sums, count
        dim = 1 if isinstance(link.source, nn.modules.conv._ConvNd) else -1
        x = x if link.reads is None else x.index_select(dim, link.reads.to(x.device))
        pick = drawn(row_count(link.source, y), sample)
        part, target = rows(link.layer, head(x), pick).double(), outputs(link.source, y, pick).double()
        part, target = part[:, link.own.to(x.device)], target[:, link.rows.to(y.device)]
        parts = [part.sum(0), target.sum(0), part.T @ part, part.T @ target, target.square().sum(0)]
        sums = [a + b.cpu() for a, b in zip(sums, parts, strict=True)] if sums else [value.cpu() for value in parts]
        count += len(part)

    observe(before, {link.source_name: look}, batches, limit)
    x, y, xx, xy, yy = (total / count for total in sums)
    return Moments(x, y, xx, xy), (yy - y.square()).clamp_min(0)


Entries = dict[tuple[str, int], np.ndarray]
"""(tensor, dim) to the entries of the model before that are left."""


def kept_entries(plan: Plan, before: nn.Module) -> tuple[Entries, dict[str, str]]:
    """What is left after every step of `plan`, and for the last layer of every product the name of what it stands for.

    Inner widths of products count in the coordinates of their full rank. Masks and blocks leave all shapes (blocks are
    repaired as plain layers, see `unrolled`).
    """
    plan.check(before)
    kept = {(name, dim): np.arange(n) for name, shape in plan.fingerprint.items() for dim, n in enumerate(shape)}
    products: dict[str, str] = {}
    for step in plan.steps:
        if isinstance(step, Factor):
            for product in step.products:
                _factored(product, kept, products)
            continue
        if not isinstance(step, Keep):  # zeros, which the weights show
            continue
        for place, entries in survivors(real_slots(step), {place: len(entries) for place, entries in kept.items()}).items():
            kept[place] = kept[place][entries]
    return kept, products


def _factored(product: Product, kept: Entries, products: dict[str, str]) -> None:
    """Move what is known of a layer to the pieces it becomes."""
    path = product.module
    dims = max(dim for name, dim in kept if name == f"{path}.weight") + 1
    old = [kept.pop((f"{path}.weight", dim)) for dim in range(dims)]
    shape = tuple(len(entries) for entries in old)
    pieces = piece_shapes(product, shape)
    for number, piece in enumerate(pieces):
        kept |= {(f"{path}.{number}.weight", dim): np.arange(n) for dim, n in enumerate(piece)}
    last = len(pieces) - 1
    kept[f"{path}.0.weight", 1], kept[f"{path}.{last}.weight", 0] = old[1], old[0]
    if (f"{path}.bias", 0) in kept:
        kept[f"{path}.{last}.bias", 0] = kept.pop((f"{path}.bias", 0))
    products[f"{path}.{last}"] = products.pop(path, path)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
