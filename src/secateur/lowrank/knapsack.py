"""One option per layer, worth most together within a limit: the multiple-choice knapsack, by dynamic programming.

Shape legend: L layers, K options of one, B bins of the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 10_000


def knapsack(options: Sequence[Sequence[tuple[float, float]]], limit: float, *, bins: int = BINS) -> list[int] | None:
    """The place of one (cost, worth) in each of `options` so that the worths add up to most and the costs to at most `limit`.

    None where even the cheapest do not fit; where only these fit, they are it, as are the worthiest where all of those fit.
    Costs are rounded up to a `bins`-th of the limit, so the limit holds; the answer is optimal for the rounded costs. Equal
    worths go to the option listed first. O(L * K * B).

    >>> knapsack([[(4, 0.0), (2, -1.0)], [(4, 0.0), (1, -0.5)]], 6)
    [0, 1]
    """
    if limit <= 0 or not options:
        return None if options else []
    favourites = [max(range(len(row)), key=lambda place: row[place][1]) for row in options]
    if sum(row[place][0] for row, place in zip(options, favourites, strict=True)) <= limit * (1 + 1e-9):
        return favourites  # rounded up, these might not fit
    best = np.zeros(bins + 1)  # most worth of the layers so far, at each cost or less
    taken = []
    for row in options:
        offers = np.full((len(row), bins + 1), -np.inf)
        for place, (cost, worth) in enumerate(row):
            size = int(np.ceil(max(cost, 0.0) / limit * bins - 1e-9))
            if size <= bins:
                offers[place, size:] = best[: bins + 1 - size] + worth
        taken.append(offers.argmax(0))
        best = offers.max(0)
    if not np.isfinite(best[bins]):  # what is rounded up may not fit where the costs themselves do
        cheapest = [min(range(len(row)), key=lambda place: row[place][0]) for row in options]
        least = sum(row[place][0] for row, place in zip(options, cheapest, strict=True))
        return cheapest if least <= limit * (1 + 1e-9) else None
    at, chosen = bins, []
    for row, places in zip(reversed(options), reversed(taken), strict=True):
        place = int(places[at])
        chosen.append(place)
        at -= int(np.ceil(max(row[place][0], 0.0) / limit * bins - 1e-9))
    return chosen[::-1]
