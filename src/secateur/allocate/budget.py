"""A budget on parameters and MACs, spent on the dearest units of the whole network."""

from __future__ import annotations

from secateur.allocate.climb import climb, lowest
from secateur.allocate.cost import cost
from secateur.allocate.ladder import Normalise, chosen, ladders
from secateur.allocate.share import at_least, limit
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Budget, Scores


def budget(
    axes: Axes, scores: Scores, keep: Budget, *, normalise: Normalise = "mean", floor: float = 0.1, multiple: int = 1
) -> Plan:
    """The plan that keeps the dearest units of all axes together within every share of `keep`.

    `keep`: {"macs": 0.5}, {"params": 0.3} or both, shares of the dense model's counts. The cut model has at most so
    many, and adding back any single unit (or `multiple` of them) would be too many.

    Scores of one axis are divided by their mean absolute value, "max", "sum" or "l2" norm, or taken as they are
    ("none"); "rank" replaces them by their rank, which cuts all axes alike. Each axis keeps at least the share `floor`
    of its units and one. Widths are multiples of `multiple` or stay whole; heads and groups are not rounded. Equal scores
    go by axis, then by index. Raises `SecateurError` where the budget is impossible, saying the least possible share.
    """
    if not keep:
        raise SecateurError("a budget", "no count in it", 'give for instance {"macs": 0.5}')
    rungs = ladders(axes, scores, normalise=normalise, floor=floor, multiple=multiple)
    costs = {what: cost(axes, what) for what in keep}
    limits = {what: limit(share, axes.count(what), f"keep={{{what!r}: {share!r}}}") for what, share in keep.items()}
    least = lowest(rungs)
    for what, share in keep.items():
        if costs[what](least) > limits[what]:
            if not axes.free:
                do = "ignore less, or see in `secateur inspect` what would free one"
                raise SecateurError(f"keep={{{what!r}: {share!r}}}", "no axis that can be cut", do)
            found = f"that {at_least(costs[what](least), axes.count(what))} is the least possible share"
            do = f"ask for at least that, or lower floor={floor} or multiple={multiple}"
            raise SecateurError(f"keep={{{what!r}: {share!r}}}", found, do)
    widths = climb(rungs, lambda widths: all(costs[what](widths) <= limits[what] for what in keep))
    return axes.plan(chosen(rungs, widths))
