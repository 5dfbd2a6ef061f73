"""One share of all units, ranked across the network."""

from __future__ import annotations

from secateur.allocate.climb import climb, lowest
from secateur.allocate.ladder import Normalise, chosen, ladders
from secateur.allocate.share import at_least, limit
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores


def global_(
    axes: Axes, scores: Scores, keep: float = 0.5, *, normalise: Normalise = "mean", floor: float = 0.1, multiple: int = 1
) -> Plan:
    """The plan that keeps the dearest share `keep` of all units, whatever axis they are of.

    Units count alike, however many parameters they have; `budget` counts those. The other arguments are those of
    `budget`. Raises `SecateurError` where `floor` and `multiple` hold more units than that, saying the least possible share.
    """
    rungs = ladders(axes, scores, normalise=normalise, floor=floor, multiple=multiple)
    units = sum(axis.units for axis in axes.free)
    most, least = limit(keep, units, f"keep={keep!r}"), int(lowest(rungs).sum())
    if least > most:
        found = f"that {at_least(least, units)} is the least possible share"
        do = f"ask for at least that, or lower floor={floor} or multiple={multiple}"
        raise SecateurError(f"keep={keep!r} of all units", found, do)
    return axes.plan(chosen(rungs, climb(rungs, lambda widths: int(widths.sum()) <= most)))
