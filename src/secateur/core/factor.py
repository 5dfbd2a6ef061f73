"""Weights that become products: what is said of one layer, and the shapes it leads to.

The layer at `module` becomes a sequence of plain layers, `module.0`, `module.1` (and `module.2`); their inner widths are
its ranks. Shape legend: O out, I in (per group), K kernel, R rank, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from operator import index
from typing import Literal, get_args

from secateur.core.errors import SecateurError, nearest

Format = Literal["spatial", "channel", "tucker2", "decouple", "linear"]
FORMATS: tuple[Format, ...] = get_args(Format)
_MEND = "choose another rank or format, or leave the layer whole"


@dataclass(frozen=True)
class Product:
    """One weight as a product of smaller ones.

    | format | layers of the product | ranks |
    |---|---|---|
    | "channel" | K x K to R, then 1 x 1 (Zhang et al., 2016) | R per group |
    | "spatial" | K x 1 to R, then 1 x K (Jaderberg et al., 2014) | R per group |
    | "tucker2" | 1 x 1 to R1, K x K to R2, 1 x 1 (Kim et al., 2016) | R1, R2 |
    | "decouple" | 1 x 1 to O * R, then K x K over the R of each output (Guo et al., 2018) | R |
    | "linear" | I to R, then R to O | R |

    The sum over the paths of a network decoupling is one grouped convolution, so every product is a sequence.
    """

    module: str
    format: Format
    ranks: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        asked = f"a product for the layer {self.module!r}"
        if not isinstance(self.module, str):
            raise SecateurError(asked, f"{self.module!r} for its name", "give the name of a layer, as a text")
        if not self.module:
            raise SecateurError("a product for the model itself", "no layer's name", "put the layer inside a module")
        if self.format not in FORMATS:
            raise SecateurError(asked, f"format {self.format!r}", nearest(str(self.format), list(FORMATS)))
        object.__setattr__(self, "groups", _whole(self.groups, asked, f"groups {self.groups!r}"))
        found = f"ranks {self.ranks!r}"
        ranks = tuple(self.ranks) if isinstance(self.ranks, Iterable) else (None,)
        object.__setattr__(self, "ranks", tuple(_whole(rank, asked, found) for rank in ranks))
        wanted = 2 if self.format == "tucker2" else 1
        if len(self.ranks) != wanted or min(self.ranks) < 1:
            raise SecateurError(asked, f"ranks {list(self.ranks)}", f"give {wanted} of at least 1")
        if self.groups != 1 and (self.groups < 1 or self.format not in ("channel", "spatial")):
            found = f"format {self.format!r} with {self.groups} groups"
            raise SecateurError(asked, found, 'use "channel" or "spatial" for a grouped convolution, or leave it whole')

    def __str__(self) -> str:
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.format} of rank {', '.join(map(str, self.ranks))}{groups}"


@dataclass(frozen=True)
class Factor:
    """A step that turns weights into products. All its layers are of the model the step starts from."""

    products: tuple[Product, ...]

    def __post_init__(self) -> None:
        names = [product.module for product in self.products]
        for name in names:
            if names.count(name) > 1:
                raise SecateurError("a factor step", f"layer {name!r} named twice", "name each layer once per step")
        object.__setattr__(self, "products", tuple(sorted(self.products, key=lambda product: product.module)))


def _whole(number: object, asked: str, found: str) -> int:
    """`number` as Python's own integer, which goes into a file; numpy's come in too."""
    with suppress(TypeError):
        if not isinstance(number, bool):
            return index(number)  # type: ignore[arg-type]
    raise SecateurError(asked, found, "give whole numbers, ranks in a list")


def full_ranks(format: Format, shape: tuple[int, ...], *, groups: int = 1) -> tuple[int, ...]:
    """The highest ranks of a weight of `shape` (O, I / G, K, K), where the product is exact."""
    outputs, inputs, plane = shape[0] // groups, shape[1], prod(shape[2:])
    if format == "tucker2":
        return min(inputs, outputs * plane), min(outputs, inputs * plane)
    if format == "decouple":
        return (min(inputs, plane),)
    if format == "spatial":
        return (min(inputs * shape[2], outputs * shape[3]),)
    return (min(outputs, inputs * plane),)


def piece_shapes(product: Product, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the weights whose product stands for one of `shape`, in forward order."""
    outputs, inputs, kernel = shape[0], shape[1], shape[2:]
    one, rank = (1, 1), product.ranks[0]
    if product.format == "linear":
        return [(rank, inputs), (outputs, rank)]
    if product.format == "channel":
        return [(product.groups * rank, inputs, *kernel), (outputs, rank, *one)]
    if product.format == "spatial":
        return [(product.groups * rank, inputs, kernel[0], 1), (outputs, rank, 1, kernel[1])]
    if product.format == "decouple":
        return [(outputs * rank, inputs, *one), (outputs, rank, *kernel)]
    return [(rank, inputs, *one), (product.ranks[1], rank, *kernel), (outputs, product.ranks[1], *one)]


def factored(shapes: Mapping[str, tuple[int, ...]], product: Product) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape after `product`. Raises `SecateurError` where the layer or its rank does not allow it."""
    path = product.module
    weight, bias = f"{path}.weight", f"{path}.bias"
    asked = f"a product for the layer {path!r}"
    if weight not in shapes:
        known = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        hint = nearest(path, known)
        raise SecateurError(asked, f"no tensor {weight!r}", hint if hint.startswith("did") else "name a layer of the model")
    shape = tuple(shapes[weight])
    if len(shape) != (2 if product.format == "linear" else 4) or 0 in shape or shape[0] % product.groups:
        found = f"a weight of shape {list(shape)} for format {product.format!r} of {product.groups} groups"
        raise SecateurError(asked, found, 'use "linear" for two dims, the others for a two-dimensional convolution')
    limits = full_ranks(product.format, shape, groups=product.groups)
    if any(rank > limit for rank, limit in zip(product.ranks, limits, strict=True)) or not reachable(product, shape):
        raise SecateurError(asked, f"ranks {list(product.ranks)} where {list(limits)} is full", _MEND)
    pieces = piece_shapes(product, shape)
    new: dict[str, tuple[int, ...]] = {}
    for name, old in shapes.items():
        if name == weight:
            new |= {f"{path}.{number}.weight": piece for number, piece in enumerate(pieces)}
        elif name == bias:
            new[f"{path}.{len(pieces) - 1}.bias"] = tuple(old)
        elif name.startswith(f"{path}."):
            raise SecateurError(asked, f"a tensor {name!r} beside its weight", "leave the layer whole")
        else:
            new[name] = tuple(old)
    return new


def reachable(product: Product, shape: tuple[int, ...]) -> bool:
    """Can the two ranks of a Tucker-2 product stand beside each other?"""
    if product.format != "tucker2":
        return True
    (first, second), plane = product.ranks, prod(shape[2:])
    return first <= second * plane and second <= first * plane


def settle(steps: Iterable[Factor]) -> list[Factor]:
    """Factor steps in a row as few as can be: a product goes into the first of them in which its layer stands."""
    levels: list[list[Product]] = []
    for step in steps:
        for product in step.products:
            inside = [
                depth
                for depth, products in enumerate(levels)
                if any(product.module.startswith(f"{other.module}.") for other in products)
            ]
            level = max(inside, default=-1) + 1
            if level == len(levels):
                levels.append([])
            levels[level].append(product)
    return [Factor(tuple(products)) for products in levels]
