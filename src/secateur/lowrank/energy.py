"""How much of a layer a product of given ranks keeps.

Shape legend: O out, I in, D inputs of one output, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import product as pairs
from typing import Any

import torch
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import FORMATS, Format, Product, full_ranks, piece_shapes, reachable
from secateur.linalg import patch_covariance, responses, through
from secateur.lowrank.places import Place
from secateur.surgery import unfold

Kept = Callable[[tuple[int, ...]], float]
"""Ranks to the share of energy they keep, above 0 and at most 1."""


def kept_by(place: Place, form: Format, covariance: Tensor | None = None) -> Kept:
    """The share of energy a product of `form` keeps at given ranks: of the weight, or, with the covariance (D, D) of what the
    layer reads, of its responses. A Tucker-2 product keeps the product of what its two sides keep, an estimate."""
    weight = place.weight.double().cpu()
    sides = [_shares(energies) for energies in _energies(weight, form, covariance)]

    def kept(ranks: tuple[int, ...]) -> float:
        share = 1.0
        for side, rank in zip(sides, ranks, strict=True):
            share *= float(side[min(rank, len(side)) - 1])
        return max(share, 1e-12)

    return kept


def candidates(place: Place, form: Format, multiple: int) -> list[Product]:
    """Products of `form` whose ranks are multiples of `multiple` and whose weights are fewer than the layer's own."""
    shape = tuple(place.weight.shape)
    limits = full_ranks(form, shape)
    choices = [range(multiple, limit + 1, multiple) for limit in limits]
    found = [Product(place.name, form, ranks) for ranks in pairs(*choices)]
    return [p for p in found if reachable(p, shape) and _smaller(p, shape)]


def require_formats(forms: Any) -> tuple[Format, ...]:
    """`forms` of products for convolutions. Raises `SecateurError` for one that is none, one text, and no format at all."""
    known: list[str] = [form for form in FORMATS if form != "linear"]
    if isinstance(forms, str) or not isinstance(forms, Collection) or not forms:
        do = f"give a list of at least one of {', '.join(known)}"
        raise SecateurError(f"formats={forms!r}", "no list of formats", do)
    for form in forms:
        if form not in known:
            raise SecateurError(f"the format {form!r}", "no such format", nearest(form, known))
    return tuple(forms)


def forms_of(place: Place, forms: tuple[Format, ...]) -> tuple[Format, ...]:
    """Those of `forms` that mean something for the layer: one for a 1 x 1 convolution, for which they are the same."""
    if place.weight.dim() == 2:
        return ("linear",)
    return ("channel",) if place.weight.shape[2:].numel() == 1 else forms


def _smaller(product: Product, shape: tuple[int, ...]) -> bool:
    return sum(torch.Size(piece).numel() for piece in piece_shapes(product, shape)) < torch.Size(shape).numel()


def _energies(weight: Tensor, form: Format, covariance: Tensor | None) -> list[Tensor]:
    """Squared singular values, falling, one tensor per rank of the format."""
    flat = weight.flatten(1)
    kernel: Any = tuple(weight.shape[2:]) or (1, 1)
    if form == "decouple":
        return [torch.linalg.svdvals(unfold(weight, form)).square().sum(0)]
    if form == "spatial":
        matrix = unfold(weight, form)[0]
        if covariance is None:
            return [torch.linalg.svdvals(matrix).square()]
        return [through(matrix, patch_covariance(covariance, kernel, "column")).energies]
    out = torch.linalg.svdvals(flat).square() if covariance is None else responses(flat, covariance).energies
    if form != "tucker2":
        return [out]
    inward = weight.transpose(0, 1).flatten(1)
    if covariance is None:
        return [torch.linalg.svdvals(inward).square(), out]
    return [through(inward, patch_covariance(covariance, kernel, "point")).energies, out]


def _shares(energies: Tensor) -> Tensor:
    sums = energies.cumsum(0)
    return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)  # a layer of zeros has nothing to lose
