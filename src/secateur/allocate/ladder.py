"""The widths an axis may take, as rungs to climb from the narrowest up.

Shape legend: N units, R rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Scores

Normalise = Literal["mean", "max", "sum", "l2", "energy", "rank", "none"]

Floor = float | Mapping[str, float]
"""The share of its units an axis keeps at least, one for all or by axis; 0 where an axis is not named."""

DIVISORS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda sizes: float(sizes.mean()),
    "max": lambda sizes: float(sizes.max()),
    "sum": lambda sizes: float(sizes.sum()),
    "l2": lambda sizes: float(np.linalg.norm(sizes)),
    "none": lambda sizes: 1.0,
}
"""What divides the scores of an axis, from their absolute values; "energy" and "rank" change the scores themselves."""

BLOCKS = ("head", "group")
"""Kinds whose units are blocks of channels already, so that no width of theirs is rounded."""


@dataclass(frozen=True)
class Ladder:
    """Units of one axis, dearest first, and the widths it may take.

    `order` (N,) units by falling score, equal ones by index. `widths` (R + 1,) ascending, the last is N. `worth` (R,), falling:
    the mean normalised score of the units that each rung adds.
    """

    axis: str
    order: np.ndarray
    widths: np.ndarray
    worth: np.ndarray

    def units(self, width: int) -> list[int]:
        """The `width` dearest units, ascending."""
        return sorted(self.order[:width].tolist())


def ladders(axes: Axes, scores: Scores, *, normalise: str = "none", floor: Floor = 0.0, multiple: int = 1) -> list[Ladder]:
    """One ladder per free axis, in the order of `axes.free`.

    Raises `SecateurError` for scores that are missing, misnamed, too few, too many or not finite, for an unknown
    `normalise`, a `floor` that is no share and a `multiple` below 1.
    """
    known = get_args(Normalise)
    if normalise not in known:
        raise SecateurError(f"normalise={normalise!r}", "no such normalisation", nearest(normalise, known))
    floors = floor if isinstance(floor, Mapping) else {axis.name: floor for axis in axes.free}
    if not all(0 <= share <= 1 for share in (floors.values() if isinstance(floor, Mapping) else [floor])):
        raise SecateurError(f"floor={floor!r}", "no share", "give the share of its units each axis keeps at least, 0 to 1")
    if multiple < 1 or multiple != int(multiple):
        raise SecateurError(f"multiple={multiple!r}", "no width to round to", "give a whole number from 1 up")
    for name in scores:
        axes[name]  # a misspelt name is an error, not a missing score
    widths = {axis.name: allowed(axis, floors.get(axis.name, 0.0), int(multiple)) for axis in axes.free}
    return [_ladder(axis, _values(axis, scores), normalise, widths[axis.name]) for axis in axes.free]


def allowed(axis: Axis, floor: float, multiple: int) -> np.ndarray:
    """Every width `axis` may take, ascending: multiples of `multiple`, at least `fewest` and `floor` of all, or all."""
    step = 1 if axis.kind in BLOCKS else multiple
    least = max(min(axis.fewest, axis.units), int(np.ceil(floor * axis.units - 1e-9)))  # 0.07 * 100 is 7.000000000000001
    first = -(-least // step) * step
    return np.append(np.arange(first, axis.units, step), axis.units)


def _values(axis: Axis, scores: Scores) -> np.ndarray:
    if axis.name not in scores:
        raise SecateurError(f"a plan for axis {axis.name!r}", "no scores for it", "score every free axis, or ignore this one")
    values = torch.as_tensor(scores[axis.name]).detach().double().cpu().numpy()
    if values.shape != (axis.units,):
        found = f"scores of shape {list(values.shape)}"
        raise SecateurError(f"a plan for axis {axis.name!r}", found, f"give one score for each of its {axis.units} units")
    if not np.isfinite(values).all():
        do = "look for weights or losses that are infinite or not a number"
        raise SecateurError(f"a plan for axis {axis.name!r}", "scores that are infinite or not a number", do)
    return values


def _ladder(axis: Axis, scores: np.ndarray, normalise: str, widths: np.ndarray) -> Ladder:
    order = np.argsort(-scores, kind="stable")
    if normalise == "rank":
        ranked = 1 - (np.arange(len(scores)) + 0.5) / len(scores)
    else:
        squared = normalise == "energy"
        ranked = scores[order] * np.abs(scores[order]) if squared else scores[order]
        ranked = ranked / (DIVISORS["mean" if squared else normalise](np.abs(ranked)) or 1.0)
    if len(widths) == 1:
        return Ladder(axis.name, order, widths, np.empty(0))
    return Ladder(axis.name, order, widths, np.add.reduceat(ranked, widths[:-1]) / np.diff(widths))


def chosen(ladders: Sequence[Ladder], widths: Sequence[int] | np.ndarray) -> dict[str, list[int]]:
    """Axis name to kept units, for `Axes.plan`."""
    return {ladder.axis: ladder.units(int(width)) for ladder, width in zip(ladders, widths, strict=True)}
