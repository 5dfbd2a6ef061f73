"""Adaptive channel pruning rate: each axis takes steps of its own for as long as the loss allows.

The abstract of the paper leaves most decisions open. Each is a field of `AdaptiveSettings`, with an untested default.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.plan import Plan
from secateur.core.protocols import Searcher
from secateur.search.settings import AdaptiveSettings, Status
from secateur.search.state import Costs, Rank, State


def adaptive(
    axes: Axes,
    scores: Rank,
    settings: AdaptiveSettings | None = None,
    *,
    costs: Costs | None = None,
    recover: Callable[[Plan], None] | None = None,
    report: Callable[[Status], None] | None = None,
) -> Searcher:
    """A search for the pruning rate of every axis: steps while the loss allows them, smaller steps or none where it does not.

    Candidates are cumulative; the first is the empty plan. `scores` given as a function are asked anew before every step.
    `costs`: what `settings.keep` names beyond parameters and MACs, as `allocate.file_bytes`. `recover(plan)` is called after
    each sweep that accepted a step, to train the weights that the judge sees; a replay calls it again. `report` hears
    after each trial. Every trial takes a unit, shrinks a step or ends the sweep, so the search is finite.
    Raises `SecateurError` where an axis has not one finite score per unit, or the whole model no finite loss.

    Source: the abstract of "A Pruning Method with Adaptive Adjustment of Channel Pruning Rate", PRML 2023 (the full text
    could not be had): "iterative pruning under the supervision of loss constraint", "reduce the pruning step or skip".
    """
    search = State(axes, scores, settings or AdaptiveSettings(), report, costs)
    yield from search.begin()
    sequential = search.settings.schedule == "sequential"
    poor = 0
    for number in range(1, search.settings.sweeps + 1):
        search.sweep = number
        active = yield from _ordered(search)
        if not active or search.done():
            break
        accepted, guarded, moved = yield from (_exhaust(search, active) if sequential else _sweep(search, active))
        if sequential or search.done() or (guarded and not accepted) or not (accepted or moved):
            break
        if recover is not None and accepted:
            recover(search.plan())
            search.known.clear()
            (search.loss,) = yield from search.ask({})
            search.recovered = search.loss
            search.tell()
            poor = poor + 1 if search.above(search.loss, search.dense, search.settings.collapse) else 0
            if poor == 2:
                break
    return search.plan()


def _ordered(search: State) -> Generator[tuple[Plan, ...], Any, list[Axis]]:
    """The axes that may still move, in the order of the sweep; those without room settle."""
    active = [axis for axis in search.axes.free if axis.name not in search.settled]
    search.settled |= {axis.name for axis in active if not search.size(axis)}
    active = [axis for axis in active if axis.name not in search.settled]
    greedy = search.settings.schedule == "greedy"
    if greedy or search.settings.order == "sensitivity":
        changes = [{axis.name: search.step(axis, search.size(axis))} for axis in active]
        losses = yield from search.ask(*changes)
        keys = {axis.name: (loss, search.params(change)) for axis, loss, change in zip(active, losses, changes, strict=True)}
        active.sort(key=lambda axis: keys[axis.name])
    return active[::-1] if search.settings.order == "backward" and not greedy else active


def _guard(search: State, axis: Axis) -> float:
    """How far above the dense model's the loss may be."""
    if search.settings.guard == "none":
        return float("inf")
    share = (len(search.settled - {axis.name}) + 1) / len(search.kept) if search.settings.guard == "linear" else 1.0
    return search.settings.running * share


def _try_step(search: State, axis: Axis) -> Generator[tuple[Plan, ...], Any, str]:
    """Judge one step of an axis: "accept", "reject", or "guard" where only the running limit is broken."""
    kept = search.step(axis, search.size(axis))
    (loss,) = yield from search.ask({axis.name: kept})
    reference = {"current": search.loss, "recovered": search.recovered, "dense": search.dense}[search.settings.reference]
    if search.above(loss, reference, search.settings.trial):
        return "reject"
    if search.above(loss, search.dense, _guard(search, axis)):
        return "guard"
    search.kept[axis.name], search.loss = kept, loss
    return "accept"


def _sweep(search: State, active: list[Axis]) -> Generator[tuple[Plan, ...], Any, tuple[bool, bool, bool]]:
    """One step of each axis: (was one accepted, did the running limit end it, did a step shrink or an axis settle).

    A "greedy" sweep ends with the first that is accepted.
    """
    accepted = moved = False
    for axis in active:
        if not search.size(axis):
            continue
        verdict = yield from _try_step(search, axis)
        if verdict == "guard":
            search.tell()
            return accepted, True, moved
        accepted = accepted or verdict == "accept"
        moved = (verdict == "reject" and search.shrink(axis)) or moved
        search.tell()
        if search.done() or (accepted and search.settings.schedule == "greedy"):
            break
    return accepted, False, moved


def _exhaust(search: State, active: list[Axis]) -> Generator[tuple[Plan, ...], Any, tuple[bool, bool, bool]]:
    """Steps of each axis until it settles; a broken running limit shrinks the step like any other."""
    for axis in active:
        while axis.name not in search.settled and search.size(axis) and not search.done():
            verdict = yield from _try_step(search, axis)
            if verdict != "accept" and not search.shrink(axis):
                break
            search.tell()
        search.settled.add(axis.name)
    search.tell()
    return True, False, True
