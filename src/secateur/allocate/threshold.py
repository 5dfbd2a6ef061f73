"""Every unit above a score."""

from __future__ import annotations

from secateur.allocate.ladder import chosen, ladders
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Scores


def threshold(axes: Axes, scores: Scores, above: float, *, floor: float = 0.0, multiple: int = 1) -> Plan:
    """The plan that keeps the units whose score is above `above`, and so decides the width of each axis by itself.

    Each axis keeps at least the share `floor` of its units and one; widths are rounded up to multiples of `multiple` or
    the whole axis. For scores with a scale of their own: `criteria.rfp` at a similarity t is ``above=1 - t``.
    """
    rungs = ladders(axes, scores, floor=floor, multiple=multiple)
    wanted = [int((scores[ladder.axis] > above).sum()) for ladder in rungs]
    widths = [int(ladder.widths[ladder.widths >= n][0]) for ladder, n in zip(rungs, wanted, strict=True)]
    return axes.plan(chosen(rungs, widths))
