"""An axis written by hand, checked against the shapes it names and the axes a trace found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Shapes
from secateur.core.size import Size, Term, constant

Sizes = tuple[Size, ...]


def check(name: str, units: int, slots: Sequence[Slot], shapes: Shapes) -> None:
    """Raise `SecateurError` unless every slot lies in its tensor, and no entry belongs to two units."""
    asked = f"an axis {name!r} declared by hand"
    if units < 2 or not slots:
        raise SecateurError(asked, f"{units} units in {len(slots)} slots", "give at least two units and one slot")
    for slot in slots:
        if slot.dim < 0:
            continue
        if slot.tensor not in shapes:
            raise SecateurError(asked, f"no tensor {slot.tensor!r}", nearest(slot.tensor, list(shapes)))
        shape = list(shapes[slot.tensor])
        if slot.dim >= len(shape):
            raise SecateurError(asked, f"dim {slot.dim} of {slot.tensor}, which has shape {shape}", "count dims from 0")
        entries = slot.of(np.arange(units)).reshape(-1)
        if entries.min() < 0 or entries.max() >= shape[slot.dim]:
            found = f"entries {entries.min()} to {entries.max()} of dim {slot.dim} of {slot.tensor}, shape {shape}"
            raise SecateurError(asked, found, "mend start, step or loops of the slot")
        if len(np.unique(entries)) < len(entries):
            raise SecateurError(asked, f"units that share entries of {slot.tensor}", "mend start, step or loops of the slot")


def overlaps(slots: Sequence[Slot], units: int, other: Axis) -> str | None:
    """The first tensor of which both axes own an entry of one dim."""
    for one in slots:
        for two in other.slots:
            if (one.tensor, one.dim) == (two.tensor, two.dim) and one.dim >= 0:
                mine, theirs = one.of(np.arange(units)), two.of(np.arange(other.units))
                if np.intersect1d(mine.reshape(-1), theirs.reshape(-1)).size:
                    return one.tensor
    return None


def without(axis: Axis, name: str) -> Axis:
    """A fixed axis of the trace, told that another one now stands for some of its entries."""
    return replace(axis, fixed=f"{axis.fixed}; declared by hand as {name!r}")


def params_terms(axes: Sequence[Axis], position: int, parameters: Mapping[str, tuple[int, ...]]) -> list[Term] | None:
    """What the count of parameters gains by axis `position`, declared by hand: new product of sizes less the old one.

    None where another free axis multiplies with it inside one dim, which this does not resolve.
    """
    terms: list[Term] = []
    touched = {slot.tensor for slot in axes[position].slots if slot.dim >= 0}
    for name in sorted(touched & set(parameters)):
        sizes = [_sizes(axes, position, name, dim, n) for dim, n in enumerate(parameters[name])]
        if any(pair is None for pair in sizes):
            return None
        old = tuple(pair[0] for pair in sizes if pair)
        terms += [tuple(pair[1] for pair in sizes if pair), (constant(-1), *old)]
    return terms


def _sizes(axes: Sequence[Axis], position: int, name: str, dim: int, length: int) -> Sizes | None:
    """The length of one dim as a polynomial, without and with the declared axis."""
    owned: list[tuple[int, np.ndarray]] = []
    for number, axis in enumerate(axes):
        if axis.fixed is None:
            entries = [s.of(np.arange(axis.units)).reshape(-1) for s in axis.slots if (s.tensor, s.dim) == (name, dim)]
            owned += [(number, np.concatenate(entries))] if entries else []
    together = np.concatenate([entries for _, entries in owned]) if owned else np.zeros(0, dtype=np.int64)
    if len(np.unique(together)) < len(together):
        return None
    both = []
    for known in ([(n, e) for n, e in owned if n != position], owned):
        rest = length - sum(len(entries) for _, entries in known)
        both.append((*constant(rest), *((len(entries) // axes[n].units, (n,)) for n, entries in known)))
    return tuple(both)
