"""The same share of every axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.allocate.budget import budget
from secateur.allocate.ladder import chosen, ladders
from secateur.allocate.share import limit
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Budget, Scores


def uniform(axes: Axes, scores: Scores, keep: float | Budget = 0.5, *, multiple: int = 1) -> Plan:
    """The plan that keeps the same share of every free axis, the dearest units of each.

    With a number for `keep`, each width is the allowed one nearest to that share, the wider of two as near. With a budget
    such as {"macs": 0.5} it is the share that spends it, and then single units until none more fits. Widths are multiples
    of `multiple` (not of heads and groups) or the whole axis, and at least one unit. Equal scores go by index.
    Raises `SecateurError` for a share out of range, a budget that is impossible, or scores that do not fit.

    Source: Li et al., 2017, section 3.2, with one rate for all layers.
    """
    if isinstance(keep, Mapping):
        return budget(axes, scores, keep, normalise="rank", floor=0.0, multiple=multiple)
    limit(keep, 1, f"keep={keep!r}")
    rungs = ladders(axes, scores, multiple=multiple)
    return axes.plan(chosen(rungs, [_nearest(ladder.widths, keep) for ladder in rungs]))


def _nearest(widths: np.ndarray, keep: float) -> int:
    distance = np.abs(widths - keep * widths[-1])
    return int(widths[np.flatnonzero(distance <= distance.min() + 1e-9)[-1]])
