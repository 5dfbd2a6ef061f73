"""How much each axis hurts when it alone is cut."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.search.bisect import dearest

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Curve = tuple[tuple[float, float], ...]
"""(rate, loss) pairs; rate is the share that is cut."""


def sensitivity(axes: Axes, scores: Scores, rates: Sequence[float] = RATES) -> Generator[Plan, float, dict[str, Curve]]:
    """A search that returns axis name to (rate, loss) at 0 and at each of `rates`, every other axis being whole.

    Units of the lowest scores go, at least one stays; rates that leave the same units are judged once.

    Source: Li et al., 2017, section 3.2, figure 2b.
    """
    dense = yield axes.plan({})
    curves: dict[str, Curve] = {}
    for axis in axes.free:
        known = {axis.units: dense}
        curve = [(0.0, dense)]
        for rate in rates:
            width = max(1, axis.units - int(rate * axis.units + 1e-9))
            if width not in known:
                known[width] = yield axes.plan({axis.name: dearest(axis, scores, width)})
            curve.append((rate, known[width]))
        curves[axis.name] = tuple(curve)
    return curves
