"""What a layer and its products cost: counted, or timed.

Shape legend: none; a place has the shape of its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import prod

import torch
from torch import nn

from secateur.core.factor import Product, piece_shapes
from secateur.core.plan import factor
from secateur.core.running import device_of
from secateur.lowrank.places import Place
from secateur.measure import compare
from secateur.surgery import fingerprint

Costs = Mapping[Product | None, float]
"""Of each product of a layer, and under None of the layer as it is."""


def counted(place: Place, products: Sequence[Product], what: str) -> Costs:
    """The multiply-accumulates ("macs") of all calls, or the parameters ("params"), of the layer and of each product."""
    layer = deepcopy(place.layer).to("meta")
    read, wrote = place.shape, tuple(layer(torch.empty(place.shape, device="meta", dtype=place.weight.dtype)).shape)
    images = 1 if isinstance(layer, nn.Linear) or len(read) == 3 else read[0]
    shape = tuple(place.weight.shape)
    bias = layer.bias.numel() if layer.bias is not None else 0

    def count(pieces: list[tuple[int, ...]], positions: list[int]) -> float:
        if what == "params":
            return float(bias + sum(prod(piece) for piece in pieces))
        return float(place.calls * sum(prod(piece) * n for piece, n in zip(pieces, positions, strict=True)))

    def area(of: tuple[int, ...]) -> int:
        """Samples times pixels of (B, C, H, W) or (C, H, W); rows of (..., C) of a linear layer."""
        return prod(of[:-1]) if isinstance(layer, nn.Linear) else images * of[-2] * of[-1]

    made: dict[Product | None, float] = {None: count([shape], [area(wrote)])}
    for product in products:
        pieces = piece_shapes(product, shape)
        narrow = (*wrote[:-1], read[-1])  # between the two layers of a spatial product
        first = area({"spatial": narrow, "tucker2": read, "decouple": read}.get(product.format, wrote))
        positions = [first, *[area(wrote)] * (len(pieces) - 1)]
        made[product] = count(pieces, positions)
    return made


def timed(groups: Mapping[Place, Sequence[Product]], *, repeats: int = 10, threads: int | None = None) -> dict[Place, Costs]:
    """Median milliseconds of all calls of each layer and of each of its products, alone, on random input of their shape.

    Layers of one kind are timed once. The layer and all its products take turns, so that a busy machine slows all alike.
    """
    known: dict[tuple[object, ...], dict[tuple[object, ...] | None, float]] = {}
    table: dict[Place, Costs] = {}
    for place, products in groups.items():
        if place.kind not in known:
            alone = nn.Sequential(deepcopy(place.layer)).eval()
            x = torch.randn(place.shape, device=device_of(alone), dtype=place.weight.dtype)
            models: dict[str, nn.Module] = {"": alone}
            for number, product in enumerate(products):
                models[str(number)] = factor(fingerprint(alone), [_as_first(product)]).apply(alone)
            times = compare(models, x, repeats=repeats, warmup=2, threads=threads)
            known[place.kind] = {None: times[""]}
            known[place.kind] |= {(p.format, p.ranks): times[str(number)] for number, p in enumerate(products)}
        mine = known[place.kind]
        costs: dict[Product | None, float] = {None: place.calls * mine[None]}
        table[place] = costs | {product: place.calls * mine[product.format, product.ranks] for product in products}
    return table


def _as_first(product: Product) -> Product:
    return Product("0", product.format, product.ranks)
