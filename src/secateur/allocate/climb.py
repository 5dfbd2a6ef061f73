"""The one search all global allocators share: widen by falling score until nothing more fits.

Shape legend: A free axes, R rungs of all ladders together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from secateur.allocate.ladder import Ladder

Fits = Callable[[np.ndarray], bool]
"""Does a network of these widths (A,) stay within the limits? False for anything wider than what does not fit."""


def lowest(ladders: Sequence[Ladder]) -> np.ndarray:
    """The narrowest widths (A,)."""
    return np.array([ladder.widths[0] for ladder in ladders], dtype=np.int64)


def climb(ladders: Sequence[Ladder], fits: Fits) -> np.ndarray:
    """Widths (A,) that fit and of which none can take one rung more; the narrowest must fit.

    All rungs are taken by falling worth, equal ones by axis and width, for as long as they fit (found by bisection, the
    cost being monotone). Then the rest in the same order: an axis whose next rung does not fit is done, since no later
    widening makes room.
    """
    axis = np.repeat(np.arange(len(ladders)), [len(ladder.worth) for ladder in ladders])  # (R,)
    worth = np.concatenate([np.empty(0), *(ladder.worth for ladder in ladders)])
    axis = axis[np.argsort(-worth, kind="stable")]

    def after(taken: int) -> np.ndarray:
        rungs = np.bincount(axis[:taken], minlength=len(ladders))
        return np.array([ladder.widths[rung] for ladder, rung in zip(ladders, rungs, strict=True)], dtype=np.int64)

    low, high = 0, len(axis) + 1  # `low` rungs fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(after(middle)) else (low, middle)
    return _fill(ladders, axis[low:], after(low), fits)


def _fill(ladders: Sequence[Ladder], axis: np.ndarray, widths: np.ndarray, fits: Fits) -> np.ndarray:
    climbing = {index for index, ladder in enumerate(ladders) if widths[index] < ladder.widths[-1]}
    for index in axis.tolist():
        if index not in climbing:
            continue
        ladder, before = ladders[index], widths[index]
        widths[index] = ladder.widths[np.searchsorted(ladder.widths, before) + 1]
        if not fits(widths):
            widths[index] = before
            climbing.remove(index)
            if not climbing:
                break
    return widths
