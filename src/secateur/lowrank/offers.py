"""What each format would have to offer a layer: its full rank, and up to which rank it saves multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.core.factor import Format, Product, full_ranks, reachable
from secateur.lowrank.cost import counted
from secateur.lowrank.energy import forms_of, require_formats
from secateur.lowrank.places import Place


def offers(place: Place, forms: Sequence[Format]) -> list[dict[str, Any]]:
    """One row per format: "layer", "weight" (its shape), "format", "full" ranks, and "pays": the highest with fewer MACs.

    Of a Tucker-2 product, which has two ranks, "pays" is the highest pair in the ratio of the full ones.
    Raises `SecateurError` for a format there is none of.
    """
    forms = require_formats(forms)
    shape = tuple(place.weight.shape)
    rows = []
    for form in forms_of(place, forms):
        full = full_ranks(form, shape)
        steps = [tuple(max(1, rank * step // max(full)) for rank in full) for step in range(1, max(full) + 1)]
        products = [p for ranks in dict.fromkeys(steps) if reachable(p := Product(place.name, form, ranks), shape)]
        costs = counted(place, products, "macs")
        pays = [product.ranks for product in products if costs[product] < costs[None]]
        said = {"layer": place.name, "weight": "x".join(map(str, shape)), "format": form}
        rows.append({**said, "full": _text(full), "pays": _text(pays[-1]) if pays else "-"})
    return rows


def _text(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks))
