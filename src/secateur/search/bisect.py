"""Binary structural search with a step constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Scores, Searcher
from secateur.search.state import require_loss, require_scores


def bisect(
    axes: Axes,
    scores: Scores,
    *,
    fall: float = 0.01,
    tries: int = 7,
    max_rate: float = 0.95,
    order: Sequence[str] | None = None,
) -> Searcher:
    """A search for the largest rate of each axis in turn whose loss stays below a limit that rises from axis to axis.

    The first candidate is the empty plan. Of L axes, the k-th (in forward order, or in that of the names in `order`)
    may bring the loss to that of the empty plan plus ``k * fall / L``; `tries` bisections of [0, `max_rate`] find its
    rate, and ``int(rate * units)`` units of the lowest scores go. Numbers of units that were judged before are not yielded
    again. A judge that cannot compute a candidate returns infinity.

    Source: Xie et al., 2021 (CaP), `bottomup_search` of the authors' code, which compensates before each judgement: give a
    judge that does. There the rate of an axis goes to 0 where the compensation fails; here only to what was accepted.
    """
    require_bisection(fall, tries, max_rate, order)
    chosen = [axes[name] for name in order] if order is not None else list(axes.free)
    if fixed := next((axis for axis in chosen if axis.fixed), None):
        raise SecateurError(f"a binary search over axis {fixed.name!r}", fixed.fixed or "", "name free axes")
    kept: dict[str, list[int]] = {}
    require_scores(axes, scores)
    limit = require_loss((yield axes.plan(kept)))
    for axis in chosen:
        limit += fall / len(chosen)
        low, high, known = 0.0, max_rate, {0: True}
        for _ in range(tries):
            rate = (low + high) / 2
            drop = min(int(axis.units * rate), max(axis.units - axis.fewest, 0))
            if drop not in known:
                loss = yield axes.plan({**kept, axis.name: dearest(axis, scores, axis.units - drop)})
                known[drop] = loss <= limit
            low, high = (rate, high) if known[drop] else (low, rate)
        drop = max(n for n, good in known.items() if good)
        if drop:
            kept[axis.name] = dearest(axis, scores, axis.units - drop)
    return axes.plan(kept)


def require_bisection(fall: Any = 0.01, tries: Any = 7, max_rate: Any = 0.95, order: Any = None) -> None:
    """Raises `SecateurError` for numbers `bisect` does not take, and for an order that is no list of names, each once."""
    numbers = type(tries) is int and all(isinstance(value, (int, float)) for value in (fall, max_rate))
    if not numbers or tries < 1 or not 0 <= fall < math.inf or not 0 <= max_rate < 1:
        found = f"tries={tries}, fall={fall}, max_rate={max_rate}"
        raise SecateurError("a binary search", found, "give tries from 1, fall from 0, max_rate from 0 and below 1")
    listed = isinstance(order, (list, tuple)) and all(isinstance(name, str) for name in order)
    if order is not None and (not listed or len(set(order)) < len(order)):
        do = "give the names of axes, each once, in the order to search them"
        raise SecateurError("a binary search", f"order={order!r}", do)


def dearest(axis: Axis, scores: Scores, width: int) -> list[int]:
    """The `width` units of the highest scores, ascending; equal scores by index."""
    order = torch.as_tensor(scores[axis.name]).argsort(descending=True, stable=True)
    return sorted(order[:width].tolist())
