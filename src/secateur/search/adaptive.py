"""Adaptive channel pruning rate: each axis takes steps of its own for as long as the loss allows.

The abstract of the paper leaves most decisions open. Each is a field of `AdaptiveSettings`, with an untested default.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores, Searcher

SLACK = 1e-9
"""Losses that are shares of images differ from their limit by rounding."""


@dataclass(frozen=True)
class AdaptiveSettings:
    """How `adaptive` goes about it.

    `step`: the first step, in `unit`: a share of the axis' "original" or "current" width, a number of "units", or a share of
    the dense model's "params" or "macs". A step that fails is multiplied by `shrink`; an axis settles where it falls below
    `least` units (`shrink=0`: at its first failure, "skip only"). `skip="sweep"` tries it again in the next sweep instead.
    A trial may raise the loss by `trial` above that before it, and by `running` above the dense model's: a "difference", or
    a share of it where `compare="ratio"`. `guard`: "running" allows the whole of `running` at once, "linear" a part that grows
    with the axes settled, "none" all. An axis loses at most `max_rate` of its units, and keeps one.
    `schedule`: "sweeps" tries one step of every axis in turn, "sequential" exhausts one axis before the next. `order` of a
    sweep: "forward", "backward", or by "sensitivity", the rise of the loss when the axis alone takes its step, measured at
    the start of each sweep, equal ones by parameters saved. The search ends after `sweeps`, where what remains is within
    every share of `keep`, or where two recoveries in a row leave the loss more than `collapse` above the dense model's.
    """

    step: float = 0.1
    unit: Literal["original", "current", "units", "params", "macs"] = "original"
    shrink: float = 0.5
    least: int = 1
    skip: Literal["settle", "sweep"] = "settle"
    trial: float = 0.005
    running: float = 0.03
    compare: Literal["difference", "ratio"] = "difference"
    guard: Literal["running", "linear", "none"] = "running"
    max_rate: float = 0.95
    schedule: Literal["sweeps", "sequential"] = "sweeps"
    order: Literal["sensitivity", "forward", "backward"] = "sensitivity"
    sweeps: int = 60
    keep: Mapping[str, float] = field(default_factory=dict)
    collapse: float = 0.01

    def __post_init__(self) -> None:
        bad = None
        if not self.step > 0 or not 0 <= self.shrink < 1 or self.least < 1:
            bad = f"step={self.step}, shrink={self.shrink}, least={self.least}"
        elif not 0 <= self.max_rate < 1 or self.trial < 0 or self.running < 0 or self.sweeps < 1:
            bad = f"max_rate={self.max_rate}, trial={self.trial}, running={self.running}, sweeps={self.sweeps}"
        if bad:
            do = "give step above 0, shrink and max_rate from 0 and below 1, least and sweeps from 1, limits from 0"
            raise SecateurError("an adaptive search", bad, do)


@dataclass(frozen=True)
class Status:
    """How far a search is: its sweep, axes settled of all, the loss of what is accepted, and what remains of the parameters."""

    sweep: int
    settled: int
    axes: int
    loss: float
    params: float


Rank = Scores | Callable[[Plan], Scores]
"""Scores of all units of the dense model, or a function that gives them anew for what a plan leaves."""


def adaptive(
    axes: Axes,
    scores: Rank,
    settings: AdaptiveSettings | None = None,
    *,
    recover: Callable[[Plan], None] | None = None,
    report: Callable[[Status], None] | None = None,
) -> Searcher:
    """A search for the pruning rate of every axis: steps while the loss allows them, smaller steps or none where it does not.

    Candidates are cumulative; the first is the empty plan. `recover(plan)` is called after each sweep that accepted a
    step, to train the weights that the judge sees; a replay calls it again. `report` hears of each accepted step.
    Every trial takes a unit, shrinks a step or ends the sweep, so the search is finite.

    Source: the abstract of "A Pruning Method with Adaptive Adjustment of Channel Pruning Rate", PRML 2023 (the full text
    could not be had): "iterative pruning under the supervision of loss constraint", "reduce the pruning step or skip".
    """
    search = _Search(axes, scores, settings or AdaptiveSettings(), report)
    search.dense = search.loss = yield from search.ask({})
    sequential = search.settings.schedule == "sequential"
    poor = 0
    for number in range(1, search.settings.sweeps + 1):
        search.sweep = number
        active = yield from search.ordered()
        if not active or search.done():
            break
        accepted, guarded, moved = yield from (search.exhaust(active) if sequential else search.sweep_over(active))
        if sequential or search.done() or (guarded and not accepted) or not (accepted or moved):
            break
        if recover is not None and accepted:
            recover(search.plan())
            search.known.clear()
            search.loss = yield from search.ask({})
            poor = poor + 1 if search.above(search.loss, search.dense, search.settings.collapse) else 0
            if poor == 2:
                break
    return search.plan()


class _Search:
    """What an adaptive search holds between trials."""

    def __init__(self, axes: Axes, scores: Rank, settings: AdaptiveSettings, report: Callable[[Status], None] | None) -> None:
        self.axes, self.scores, self.settings, self.report = axes, scores, settings, report
        self.kept = {axis.name: list(range(axis.units)) for axis in axes.free}
        self.scale = dict.fromkeys(self.kept, 1.0)
        self.settled: set[str] = set()
        self.known: dict[tuple[tuple[str, tuple[int, ...]], ...], float] = {}
        self.dense = self.loss = 0.0
        self.sweep = 0

    def plan(self, change: Mapping[str, list[int]] | None = None) -> Plan:
        """What is accepted, with a change."""
        return self.axes.plan({**self.kept, **(change or {})})

    def ask(self, change: Mapping[str, list[int]]) -> Generator[Plan, float, float]:
        """The loss of what is accepted with a change; yields unless it is known."""
        key = tuple((name, tuple(units)) for name, units in {**self.kept, **change}.items())
        if key not in self.known:
            self.known[key] = yield self.plan(change)
        return self.known[key]

    def above(self, after: float, before: float, allowed: float) -> bool:
        """Is a loss more than allowed above another?"""
        limit = before * (1 + allowed) if self.settings.compare == "ratio" else before + allowed
        return not after <= limit + SLACK

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
        room = min(left - 1, int(self.settings.max_rate * axis.units + SLACK) - (axis.units - left))
        wanted = min(max(least, int(self.base(axis) * self.scale[axis.name] + 0.5)), room)
        return wanted if wanted >= least else 0

    def step(self, axis: Axis) -> list[int]:
        """What an axis keeps after its next step: its units of lowest scores go, of equal ones the last."""
        scores = self.scores(self.plan()) if callable(self.scores) else self.scores
        kept = torch.tensor(self.kept[axis.name])
        order = torch.as_tensor(scores[axis.name])[kept].argsort(descending=True, stable=True)
        return sorted(kept[order[: len(kept) - self.size(axis)]].tolist())

    def ordered(self) -> Generator[Plan, float, list[Axis]]:
        """The axes that may still move, in the order of the sweep; those without room settle."""
        active = [axis for axis in self.axes.free if axis.name not in self.settled]
        self.settled |= {axis.name for axis in active if not self.size(axis)}
        active = [axis for axis in active if axis.name not in self.settled]
        if self.settings.order == "sensitivity":
            keys = {}
            for axis in active:
                kept = self.step(axis)
                loss = yield from self.ask({axis.name: kept})
                keys[axis.name] = (loss, self.params({axis.name: kept}))
            active.sort(key=lambda axis: keys[axis.name])
        return active[::-1] if self.settings.order == "backward" else active

    def params(self, change: Mapping[str, list[int]] | None = None) -> int:
        """Parameters of what is accepted, with a change; 0 where they were not counted."""
        widths = {name: len(units) for name, units in {**self.kept, **(change or {})}.items()}
        return self.axes.count("params", widths) if "params" in self.axes.terms else 0

    def guard(self, axis: Axis) -> float:
        """How far above the dense model's the loss may be."""
        if self.settings.guard == "none":
            return float("inf")
        share = (len(self.settled - {axis.name}) + 1) / len(self.kept) if self.settings.guard == "linear" else 1.0
        return self.settings.running * share

    def try_step(self, axis: Axis) -> Generator[Plan, float, str]:
        """Judge one step of an axis: "accept", "reject", or "guard" where only the running limit is broken."""
        kept = self.step(axis)
        loss = yield from self.ask({axis.name: kept})
        if self.above(loss, self.loss, self.settings.trial):
            return "reject"
        if self.above(loss, self.dense, self.guard(axis)):
            return "guard"
        self.kept[axis.name], self.loss = kept, loss
        if self.report is not None:
            share = self.params() / max(self.axes.count("params"), 1) if "params" in self.axes.terms else 1.0
            self.report(Status(self.sweep, len(self.settled), len(self.kept), loss, share))
        return "accept"

    def shrink(self, axis: Axis) -> bool:
        """Make the step of an axis smaller, or settle it; False where it is only skipped for this sweep."""
        least, scale = self.settings.least, self.scale[axis.name] * self.settings.shrink
        if self.size(axis) > least and int(self.base(axis) * scale + 0.5) >= least:
            self.scale[axis.name] = scale
        elif self.settings.skip == "settle":
            self.settled.add(axis.name)
        else:
            return False
        return True

    def sweep_over(self, active: list[Axis]) -> Generator[Plan, float, tuple[bool, bool, bool]]:
        """One step of each axis: (was one accepted, did the running limit end it, did a step shrink or an axis settle)."""
        accepted = moved = False
        for axis in active:
            if not self.size(axis):
                continue
            verdict = yield from self.try_step(axis)
            if verdict == "guard":
                return accepted, True, moved
            accepted = accepted or verdict == "accept"
            moved = (verdict == "reject" and self.shrink(axis)) or moved
            if self.done():
                break
        return accepted, False, moved

    def exhaust(self, active: list[Axis]) -> Generator[Plan, float, tuple[bool, bool, bool]]:
        """Steps of each axis until it settles; a broken running limit shrinks the step like any other."""
        for axis in active:
            while axis.name not in self.settled and self.size(axis) and not self.done():
                if (yield from self.try_step(axis)) != "accept" and not self.shrink(axis):
                    break
            self.settled.add(axis.name)
        return True, False, True

    def done(self) -> bool:
        """Is what remains within every share of the target?"""
        widths = {name: len(units) for name, units in self.kept.items()}
        counts = {what: (self.axes.count(what, widths), self.axes.count(what)) for what in self.settings.keep}
        return bool(counts) and all(counts[what][0] <= share * counts[what][1] for what, share in self.settings.keep.items())
