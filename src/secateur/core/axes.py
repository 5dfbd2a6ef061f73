"""What a trace returns: the axes of a model, and exact counts as a function of what each axis keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from secateur.core.axis import Axis, Slot
from secateur.core.declare import check, overlaps, params_terms, without
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Cut, Plan, Shapes, keep
from secateur.core.size import Term, count, terms_of

if TYPE_CHECKING:
    from torch import nn

Kept = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Axes(Sequence[Axis]):
    """Every axis of a model in forward order, with the fingerprint a plan needs and the counts a budget needs.

    Iterating yields all axes; `free` only those that can be cut. `params` and `macs` are polynomials in the number of
    kept units: `axes.count({"macs": ...})` is exact for any plan before it is applied.
    """

    axes: tuple[Axis, ...]
    fingerprint: Shapes
    terms: Mapping[str, tuple[Term, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {axis.name: i for i, axis in enumerate(self.axes)})

    def __len__(self) -> int:
        return len(self.axes)

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    def __getitem__(self, key):  # type: ignore[no-untyped-def, override]
        """An axis by position or by name."""
        if not isinstance(key, str):
            return self.axes[key]
        position = self._index.get(key)  # type: ignore[attr-defined]
        if position is None:
            raise SecateurError(f"axis {key!r}", "no axis of that name", nearest(key, [axis.name for axis in self.axes]))
        return self.axes[position]

    @property
    def free(self) -> tuple[Axis, ...]:
        """The axes that can be cut."""
        return tuple(axis for axis in self.axes if axis.fixed is None)

    def count(self, what: str, kept: Mapping[str, int] | None = None) -> int:
        """`what` ("params" or "macs") when each named axis keeps that many units and the others keep all.

        Raises `SecateurError` where that was not counted in the trace.
        """
        terms, kept = terms_of(self.terms, what), kept or {}
        return count(terms, [kept.get(axis.name, axis.units) for axis in self.axes])

    def plan(self, kept: Kept) -> Plan:
        """The plan in which each named axis keeps those units (ascending) and every other axis keeps all.

        Raises `SecateurError` for an unknown or a fixed axis, and for units out of range, repeated or missing.
        """
        for name in kept:
            axis = self[name]
            if axis.fixed and len(kept[name]) < axis.units:
                raise SecateurError(f"a cut of axis {name!r}", f"a fixed axis ({axis.fixed})", "leave it whole")
            if 0 < len(kept[name]) < min(axis.fewest, axis.units):
                found = f"{len(kept[name])} of {axis.units} units, with which the model does not run"
                raise SecateurError(f"a cut of axis {name!r}", found, f"keep {axis.fewest} or more")
        cuts = [
            Cut(
                axis.name,
                axis.units,
                tuple(_unit(u, axis) for u in kept.get(axis.name, range(axis.units))),
                axis.slots,
                axis.exact,
                axis.gate,
            )
            for axis in self.free
        ]
        return keep(self.fingerprint, cuts) if any(len(cut.kept) < cut.units for cut in cuts) else Plan(self.fingerprint)

    def ignore(self, *patterns: str) -> Axes:
        """The same axes with those fixed whose name, or a tensor of which, matches a shell pattern ("head*", "*.fc")."""
        axes = []
        for axis in self.axes:
            names = [axis.name, *{slot.tensor for slot in axis.slots}, *{slot.tensor.rpartition(".")[0] for slot in axis.slots}]
            hit = next((p for p in patterns if any(fnmatchcase(name, p) for name in names)), None)
            axes.append(axis.freeze(f"you asked to ignore {hit!r}") if hit else axis)
        return Axes(tuple(axes), self.fingerprint, self.terms, self.notes)

    def declare(
        self, name: str, units: int, slots: Sequence[Slot], *, model: nn.Module | None = None, exact: bool = True
    ) -> Axes:
        """The same axes and one more, which a trace could not see: `slots` say where each unit lives.

        With `model`, the count of parameters stays exact for it. MACs never are: a cut of this axis saves some that
        `count` leaves out, as the notes then say. `exact=False` where a normalisation reduces over the units. Whether the
        model still runs is yours to know: check `plan.preview(model)` against `plan.apply(model)`.

        Raises `SecateurError` for a name that is taken, slots outside their tensors, and entries of a free axis.
        """
        if name in self._index:  # type: ignore[attr-defined]
            raise SecateurError(f"an axis {name!r} declared by hand", "an axis of that name", "give it another name")
        check(name, units, slots, self.fingerprint)
        axes = []
        for axis in self.axes:
            tensor = overlaps(slots, units, axis)
            if tensor and axis.fixed is None:
                found = f"entries of {tensor} that belong to {axis.name!r}, which can be cut already"
                raise SecateurError(f"an axis {name!r} declared by hand", found, f"cut {axis.name!r}, or ignore it first")
            axes.append(without(axis, name) if tensor else axis)
        axes.append(Axis(name, "channel", units, tuple(slots), exact=exact))
        terms = dict(self.terms)
        known = {key: tuple(p.shape) for key, p in model.named_parameters()} if model is not None else None
        gained = params_terms(axes, len(axes) - 1, known) if known is not None else None
        if "params" in terms and gained is not None:
            terms["params"] = (*terms["params"], *gained)
        missing = " or ".join(["MACs"] if gained is not None else ["parameters", "MACs"])
        note = f"counts do not include the {missing} that a cut of {name!r}, declared by hand, saves"
        return Axes(tuple(axes), self.fingerprint, terms, (*self.notes, note))

    def free_share(self) -> float:
        """Share of all parameters that lie in a tensor some free axis can cut."""
        total = sum(int(np.prod(shape)) for shape in self.fingerprint.values())
        free = {slot.tensor for axis in self.free for slot in axis.slots if slot.dim >= 0}
        return sum(int(np.prod(self.fingerprint[name])) for name in free if name in self.fingerprint) / max(total, 1)


def _unit(number: object, axis: Axis) -> int:
    with suppress(TypeError):
        if not isinstance(number, bool):
            return index(number)  # type: ignore[arg-type]
    do = f"name at least one of the units 0 to {axis.units - 1}, ascending, each once"
    raise SecateurError(f"a cut of axis {axis.name!r}", f"unit {number!r}", do)
