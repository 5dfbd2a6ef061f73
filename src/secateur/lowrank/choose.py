"""The format and the ranks of every layer, most energy kept under a budget.

Shape legend: none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

from torch import Tensor, nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import Format, Product
from secateur.core.numeric import require_finite
from secateur.core.plan import Plan, factor
from secateur.core.protocols import Batches
from secateur.lowrank.cost import Costs, counted, timed
from secateur.lowrank.energy import Kept, candidates, forms_of, kept_by, require_formats
from secateur.lowrank.knapsack import knapsack
from secateur.lowrank.places import Place, places
from secateur.measure import facts, latency
from secateur.measure.moments import moments_of_each
from secateur.surgery import fingerprint

QUANTITIES = ("macs", "params", "latency")


def choose(
    model: nn.Module,
    example: Any,
    keep: Mapping[str, float],
    *,
    formats: Sequence[Format] = ("channel", "spatial", "tucker2"),
    multiple: int = 8,
    batches: Batches | None = None,
    limit: int | None = None,
    sample: int | None = None,
    repeats: int = 10,
    threads: int | None = None,
    **which: Any,
) -> Plan:
    """The plan of products that keeps most energy within `keep`, the share of the dense {"macs": 0.5}, "params" or "latency".

    Every layer takes one of `formats`, with ranks that are multiples of `multiple`, or stays as it is; products that cost no
    less than the layer are left out. Energy is that of the weights, or, with `batches` (at most `limit` of them), that of
    the responses (`sample`: of so many rows of each batch); layers count by the logarithm of the share they keep, so that
    one that loses all its energy is never chosen for the sake of the others (Zhang et al., 2016, eq. 13, a product over
    layers). Found by dynamic programming over a table of costs: multiply-accumulates counted, or latencies measured layer by
    layer (`repeats` interleaved rounds on `threads`), to which everything else in the network is added as a constant.
    `which`: as in `places`.

    Raises `SecateurError` for a budget that cannot be met, saying the least that can, and for weights that are not finite.
    """
    what, share = _one(keep)
    formats = require_formats(formats)
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise SecateurError(f"multiple={multiple!r}", "no whole number from 1", "say of what ranks are multiples, 1 for any")
    inputs = example if isinstance(example, tuple) else (example,)
    found = places(model, example, **which)
    for place in found:
        require_finite(
            place.weight, f"the energy of the layer {place.name!r}", "give trained weights, or leave it out by ignore="
        )
    offers = {p: [c for form in forms_of(p, formats) for c in candidates(p, form, multiple)] for p in found}
    if what == "latency":
        table: Mapping[Place, Costs] = timed(offers, repeats=repeats, threads=threads)
        dense = latency(model, *inputs, repeats=max(repeats, 5), threads=threads)
    else:
        table = {p: counted(p, offers[p], what) for p in found}
        dense = float(getattr(facts(model, *inputs), what))
    layers = sum(table[p][None] for p in found)
    dense = max(dense, layers)  # timed one by one, layers may take longer than the network does
    rest = dense - layers
    cheaper = {p: [offer for offer in offers[p] if table[p][offer] < table[p][None]] for p in found}
    kept = _kept(model, cheaper, batches, limit, sample)
    options = [
        [(None, table[p][None], 1.0), *((o, table[p][o], kept[p, o.format](o.ranks)) for o in cheaper[p])] for p in found
    ]
    budget = share * dense - rest
    chosen = knapsack([[(cost, log(kept)) for _, cost, kept in row] for row in options], budget)
    if chosen is None:
        least = (rest + sum(min(cost for _, cost, _ in row) for row in options)) / dense
        do = "ask for at least that, or allow more formats or a smaller multiple"
        raise SecateurError(f"keep={{{what!r}: {share!r}}}", f"that {least:.4f} is the least possible share", do)
    picked = [row[place][0] for row, place in zip(options, chosen, strict=True)]
    return factor(fingerprint(model), [product for product in picked if product is not None])


def _kept(
    model: nn.Module, offers: Mapping[Place, Sequence[Product]], batches: Batches | None, limit: int | None, sample: int | None
) -> dict[tuple[Place, Format], Kept]:
    """The share of energy each layer keeps at given ranks, by format; a covariance is let go when its layer is done."""
    wanted = {place.name: place for place, products in offers.items() if products}
    pairs: Iterable[tuple[str, Tensor | None]] = ((name, None) for name in wanted)
    if batches is not None:
        each = moments_of_each(model, list(wanted), batches, limit, sample=sample)
        pairs = ((name, moments.centred().xx) for name, moments in each)
    return {
        (wanted[name], form): kept_by(wanted[name], form, covariance)
        for name, covariance in pairs
        for form in dict.fromkeys(product.format for product in offers[wanted[name]])
    }


def _one(keep: Mapping[str, float]) -> tuple[str, float]:
    """The one quantity of a budget, and its share."""
    if not isinstance(keep, Mapping) or len(keep) != 1:
        raise SecateurError(f"keep={keep!r}", "not one quantity", 'give for instance {"latency": 0.5}')
    what, share = next(iter(keep.items()))
    if what not in QUANTITIES:
        raise SecateurError(f"keep={dict(keep)!r}", f"no quantity {what!r}", nearest(what, list(QUANTITIES)))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise SecateurError(f"keep={dict(keep)!r}", f"{share!r}", "say what remains, as a share above 0 and at most 1")
    return what, float(share)
