"""A budget on what a network costs, spent on the dearest units of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secateur.allocate.climb import climb, lowest
from secateur.allocate.cost import cost
from secateur.allocate.costs import CostOf
from secateur.allocate.ladder import Floor, Normalise, chosen, ladders
from secateur.allocate.share import at_least, limit
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Budget, Scores


def budget(
    axes: Axes,
    scores: Scores,
    keep: Budget,
    *,
    normalise: Normalise = "mean",
    floor: Floor = 0.1,
    multiple: int = 1,
    costs: Mapping[str, CostOf] | None = None,
) -> Plan:
    """The plan that keeps the dearest units of all axes together within every share of `keep`.

    `keep`: {"macs": 0.5}, {"params": 0.3} or several, shares of the dense model's counts. The cut model has at most so
    many, and adding back any single unit (or `multiple` of them) would be too many. `costs`: other quantities that `keep`
    names, as functions of what each axis keeps: `allocate.file_bytes`, `activation_bytes`, `latency_ms`, or one's own,
    which must not fall where an axis keeps more.

    Scores of one axis are divided by their mean absolute value, "max", "sum" or "l2" norm, or taken as they are
    ("none"); "energy" takes their squares by the mean square, which for norms leaves more to an axis whose units differ
    little; "rank" replaces them by their rank, which cuts all axes alike. Each axis keeps at least the share `floor`
    of its units and one; `floor` may name a share for each axis. Widths are multiples of `multiple` or stay whole; heads and
    groups are not rounded. Equal scores go by axis, then by index. Raises `SecateurError` where the budget is impossible,
    saying the least possible share.
    """
    if not keep:
        raise SecateurError("a budget", "no count in it", 'give for instance {"macs": 0.5}')
    rungs = ladders(axes, scores, normalise=normalise, floor=floor, multiple=multiple)
    amounts = {what: _amount(axes, what, costs or {}) for what in keep}
    floors = "the floors" if isinstance(floor, Mapping) else f"floor={floor}"
    full, least = np.array([axis.units for axis in axes.free], dtype=np.int64), lowest(rungs)
    limits = {what: _limit(share, amounts[what](full), what) for what, share in keep.items()}
    for what, share in keep.items():
        if amounts[what](least) > limits[what]:
            if not axes.free:
                do = "ignore less, or see in `secateur inspect` what would free one"
                raise SecateurError(f"keep={{{what!r}: {share!r}}}", "no axis that can be cut", do)
            whole = int(amounts[what](full) * 1e6)  # milliseconds of a small network are a few tenths
            possible = at_least(min(int(np.ceil(amounts[what](least) * 1e6)), whole), whole)
            possible = at_least(int(amounts[what](least)), axes.count(what)) if what in axes.terms else possible
            do = f"ask for at least that, or lower {floors} or multiple={multiple}"
            raise SecateurError(f"keep={{{what!r}: {share!r}}}", f"that {possible} is the least possible share", do)
    widths = climb(rungs, lambda widths: all(amounts[what](widths) <= limits[what] for what in keep))
    return axes.plan(chosen(rungs, widths))


def _amount(axes: Axes, what: str, costs: Mapping[str, CostOf]) -> Callable[[np.ndarray], float]:
    """A quantity as a function of the widths of the free axes."""
    if what not in costs:
        return cost(axes, what)
    names, of = [axis.name for axis in axes.free], costs[what]
    return lambda widths: of(dict(zip(names, widths.tolist(), strict=True)))


def _limit(share: float, whole: float, what: str) -> float:
    """The most that is allowed; counts are whole numbers."""
    asked = f"keep={{{what!r}: {share!r}}}"
    if float(whole).is_integer():
        return limit(share, int(whole), asked)
    limit(share, 1, asked)  # says what is wrong with a share
    return share * whole
