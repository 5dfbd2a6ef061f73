"""What a search over the widths of all axes holds between trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from copy import copy
from typing import Any

import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.search.settings import AdaptiveSettings, Status

SLACK = 1e-9
"""Losses that are shares of images differ from their limit by rounding."""
Costs = Mapping[str, Callable[[Mapping[str, int]], float]]
"""What `keep` names beyond counts, as functions of what each axis keeps: those of `allocate.costs`."""
Rank = Scores | Callable[[Plan], Scores]
"""Scores of all units of the dense model, or a function that gives them anew for what a plan leaves."""


def require_scores(axes: Axes, scores: Scores, left: Mapping[str, list[int]] | None = None) -> None:
    """Raises `SecateurError` for a free axis without scores, and for scores that are not one finite number per unit.

    `left`: the units of each axis that still have a score; without, all of them.
    """
    for axis in axes.free:
        asked = f"a search over axis {axis.name!r}"
        if axis.name not in scores:
            raise SecateurError(asked, "no scores for it", "score every free axis, or ignore this one")
        values = torch.as_tensor(scores[axis.name])
        if values.shape != (axis.units,):
            do = f"give one score for each of its {axis.units} units"
            raise SecateurError(asked, f"scores of shape {list(values.shape)}", do)
        if not torch.isfinite(values[left[axis.name]] if left is not None else values).all():
            do = "look for weights or losses that are infinite or not a number"
            raise SecateurError(asked, "scores that are infinite or not a number", do)


def require_loss(loss: float) -> float:
    """The loss of a model before anything is cut. Raises `SecateurError` where it is no finite number."""
    if not math.isfinite(loss):
        do = "look at the weights, the data and the judge"
        raise SecateurError("a search", f"a loss of {loss} of the model before anything is cut", do)
    return loss


class State:
    """What is accepted of every axis, how large its next step is, and which axes are settled."""

    def __init__(
        self,
        axes: Axes,
        scores: Rank,
        settings: AdaptiveSettings,
        report: Callable[[Status], None] | None,
        costs: Costs | None = None,
    ) -> None:
        self.costs = dict(costs or {})
        self.axes, self.scores, self.settings, self.report = axes, scores, settings, report
        self.kept = {axis.name: list(range(axis.units)) for axis in axes.free}
        self.scale = dict.fromkeys(self.kept, 1.0)
        self.settled: set[str] = set()
        self.known: dict[tuple[tuple[str, tuple[int, ...]], ...], float] = {}
        self.dense = self.loss = self.recovered = 0.0
        self.sweep = 0
        if isinstance(scores, Mapping):
            require_scores(axes, scores)
        for what in settings.keep:
            self.amount(what, {})

    def plan(self, change: Mapping[str, list[int]] | None = None) -> Plan:
        """What is accepted, with a change."""
        return self.axes.plan({**self.kept, **(change or {})})

    def ask(self, *changes: Mapping[str, list[int]]) -> Generator[tuple[Plan, ...], Any, list[float]]:
        """The losses of what is accepted with one change or another; yields those that are not known, all at once."""
        keys = [tuple((name, tuple(units)) for name, units in {**self.kept, **change}.items()) for change in changes]
        new = {key: self.plan(change) for key, change in zip(keys, changes, strict=True) if key not in self.known}
        if new:
            losses = yield tuple(new.values())
            self.known |= dict(zip(new, losses, strict=True))
        return [self.known[key] for key in keys]

    def fork(self) -> State:
        """The same state, to take steps on that nobody has judged."""
        other = copy(self)
        other.kept = dict(self.kept)
        return other

    def begin(self) -> Generator[tuple[Plan, ...], Any, None]:
        """Ask for the loss of the dense model. Raises `SecateurError` where it is no finite number."""
        (loss,) = yield from self.ask({})
        self.dense = self.loss = self.recovered = require_loss(loss)

    def limit(self, before: float, allowed: float) -> float:
        """The loss that is `allowed` above another."""
        if self.settings.compare == "difference" or math.isinf(allowed):
            return before + allowed
        return before + allowed * abs(before)

    def above(self, after: float, before: float, allowed: float) -> bool:
        """Is a loss more than allowed above another?"""
        return not after <= self.limit(before, allowed) + SLACK

    def base(self, axis: Axis) -> float:
        """The unshrunk step of an axis in units."""
        settings, width = self.settings, len(self.kept[axis.name])
        if settings.unit in ("params", "macs"):
            widths = {name: len(units) for name, units in self.kept.items()}
            saved = self.axes.count(settings.unit, widths) - self.axes.count(settings.unit, {**widths, axis.name: width - 1})
            return settings.step * self.axes.count(settings.unit) / max(saved, 1)
        return settings.step * {"original": axis.units, "current": width, "units": 1}[settings.unit]

    def size(self, axis: Axis) -> int:
        """How many units the next step of an axis takes; 0 where none may go."""
        left, least = len(self.kept[axis.name]), self.settings.least
        room = min(left - axis.fewest, int(self.settings.max_rate * axis.units + SLACK) - (axis.units - left))
        wanted = int(min(max(least, self.base(axis) * self.scale[axis.name] + 0.5), room))
        return wanted if wanted >= least else 0

    def step(self, axis: Axis, size: int) -> list[int]:
        """What an axis keeps after a step of `size` units: those of lowest scores go, of equal ones the last."""
        scores = self.scores
        if callable(scores):
            require_scores(self.axes, scores := scores(self.plan()), self.kept)
        kept = torch.tensor(self.kept[axis.name])
        order = torch.as_tensor(scores[axis.name])[kept].argsort(descending=True, stable=True)
        return sorted(kept[order[: len(kept) - size]].tolist())

    def params(self, change: Mapping[str, list[int]] | None = None) -> int:
        """Parameters of what is accepted, with a change; 0 where they were not counted."""
        widths = {name: len(units) for name, units in {**self.kept, **(change or {})}.items()}
        return self.axes.count("params", widths) if "params" in self.axes.terms else 0

    def saved(self, what: str, axis: Axis, kept: list[int]) -> float:
        """The share of the dense model's count that goes where an axis keeps those units."""
        widths = {name: len(units) for name, units in self.kept.items()}
        less = self.axes.count(what, widths) - self.axes.count(what, {**widths, axis.name: len(kept)})
        return max(less, 1) / max(self.axes.count(what), 1)

    def shrink(self, axis: Axis) -> bool:
        """Make the step of an axis smaller, or settle it; False where it is only skipped for this sweep."""
        least, scale = self.settings.least, self.scale[axis.name] * self.settings.shrink
        if self.size(axis) > least and self.base(axis) * scale + 0.5 >= least:
            self.scale[axis.name] = scale
        elif self.settings.skip == "settle":
            self.settled.add(axis.name)
        else:
            return False
        return True

    def amount(self, what: str, widths: Mapping[str, int]) -> float:
        """A count, or a cost, of a network of those widths."""
        return self.costs[what](widths) if what in self.costs else self.axes.count(what, widths)

    def done(self) -> bool:
        """Is what remains within every share of the target?"""
        widths = {name: len(units) for name, units in self.kept.items()}
        counts = {what: (self.amount(what, widths), self.amount(what, {})) for what in self.settings.keep}
        return bool(counts) and all(counts[what][0] <= share * counts[what][1] for what, share in self.settings.keep.items())

    def tell(self) -> None:
        """Say how far the search is."""
        if self.report is not None:
            share = self.params() / max(self.axes.count("params"), 1) if "params" in self.axes.terms else 1.0
            self.report(Status(self.sweep, len(self.settled), len(self.kept), self.loss, share))
