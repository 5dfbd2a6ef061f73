"""Cuts of every free axis at once, for verification to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd

from torch import nn

from secateur.core.plan import Cut, Plan, keep
from secateur.graph import dims as d
from secateur.graph.collect import find, name_axes
from secateur.graph.dims import Expr
from secateur.graph.state import State
from secateur.surgery import fingerprint


@dataclass
class Trial:
    """One cut of every free axis: how many units each variable keeps, and the plan."""

    kept: dict[int, int]
    plan: Plan

    def size(self, expr: Expr) -> int:
        """The length of `expr` after the cut."""
        total = 0
        for term in d.normal(expr):
            product = 1
            for var in term:
                product *= self.size(var.link) if var.link is not None else self.kept.get(id(var), var.size)  # type: ignore[arg-type]
            total += product
        return total


def apart(model: nn.Module, state: State, attributes: Mapping[str, Expr], *, again: bool = False) -> Trial:
    """Axes keep different numbers of units, so that sizes do not agree by chance; `again`, other numbers.

    They begin at half the units and are spread: a share or a threshold that a forward writes then shows.
    """
    seen: dict[int, int] = {}

    def left(units: int) -> int:
        turn = seen[units] = seen.get(units, -1) + 1
        turn += list(seen).index(units) * (2 if again else 1) + again
        if units < 5:
            return units - 1 - turn % (units - 1)
        low = max(2, units // 8)
        room = units - low
        return low + (units // 2 - low + turn * _stride(room)) % room

    return _trial(model, state, attributes, left)


def level(model: nn.Module, state: State, attributes: Mapping[str, Expr]) -> Trial:
    """Axes keep three units each where they can, so that comparing sizes, or asking whether one is odd, shows."""
    return _trial(model, state, attributes, lambda units: min(3, units - 1))


def _stride(room: int) -> int:
    """A step through `room` places that visits all of them and lands far from the last ones."""
    step = max(round(0.618 * room), 1)
    while gcd(step, room) > 1:
        step += 1
    return step


def _trial(model: nn.Module, state: State, attributes: Mapping[str, Expr], left: Callable[[int], int]) -> Trial:
    found = find(model, state, attributes)
    kept, cuts = {}, []
    for item, axis in zip(found, name_axes(found, model), strict=True):
        if axis.fixed is None:
            kept[id(item.var)] = count = left(axis.units)
            cuts.append(Cut(axis.name, axis.units, tuple(range(count)), axis.slots, axis.exact, axis.gate))
    return Trial(kept, keep(fingerprint(model), cuts))
