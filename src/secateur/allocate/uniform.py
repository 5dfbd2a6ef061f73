"""The same share of every axis."""

from __future__ import annotations

import numpy as np

from secateur.allocate.ladder import chosen, ladders
from secateur.allocate.share import limit
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Scores


def uniform(axes: Axes, scores: Scores, keep: float = 0.5, *, multiple: int = 1) -> Plan:
    """The plan that keeps the dearest share `keep` of the units of every free axis.

    Each width is the nearest allowed one, the wider of two as near: at least one unit, and a multiple of `multiple` (not
    for heads and groups) or the whole axis. Equal scores go by index. Raises `SecateurError` for a share out of range or
    scores that do not fit.

    Source: Li et al., 2017, section 3.2, with one rate for all layers.
    """
    limit(keep, 1, f"keep={keep!r}")
    rungs = ladders(axes, scores, multiple=multiple)
    return axes.plan(chosen(rungs, [_nearest(ladder.widths, keep) for ladder in rungs]))


def _nearest(widths: np.ndarray, keep: float) -> int:
    distance = np.abs(widths - keep * widths[-1])
    return int(widths[np.flatnonzero(distance <= distance.min() + 1e-9)[-1]])
