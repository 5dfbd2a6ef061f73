"""How much each axis hurts when it alone is cut."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.search.bisect import dearest
from secateur.search.state import require_loss, require_scores

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Curve = tuple[tuple[float, float], ...]
"""(rate, loss) pairs; rate is the share that is cut."""


def sensitivity(
    axes: Axes, scores: Scores, rates: Sequence[float] = RATES
) -> Generator[Plan | tuple[Plan, ...], Any, dict[str, Curve]]:
    """A search that returns axis name to (rate, loss) at 0 and at each of `rates`, every other axis being whole.

    Units of the lowest scores go, at least one stays; rates that leave the same units are judged once. The plans of one axis
    are yielded together. Raises `SecateurError` for a rate that is no share.

    Source: Li et al., 2017, section 3.2, figure 2b.
    """
    rates = tuple(rates)
    if bad := [rate for rate in rates if not is_number(rate) or not 0 <= rate <= 1]:
        raise SecateurError(f"sensitivity at rate {bad[0]!r}", "no share", "give rates from 0 to 1")
    require_scores(axes, scores)
    dense = require_loss((yield axes.plan({})))
    curves: dict[str, Curve] = {}
    for axis in axes.free:
        widths = [max(min(axis.fewest, axis.units), axis.units - int(rate * axis.units + 1e-9)) for rate in rates]
        tried = sorted({width for width in widths if width < axis.units}, reverse=True)
        losses = yield tuple(axes.plan({axis.name: dearest(axis, scores, width)}) for width in tried)
        known = {axis.units: dense, **dict(zip(tried, losses, strict=True))}
        curves[axis.name] = ((0.0, dense), *((rate, known[width]) for rate, width in zip(rates, widths, strict=True)))
    return curves
