"""A search that predicts what a step will cost, tries many steps at once, and measures to verify.

The plain search pays one judgement for every step of every axis. Here cheap statistics say which steps are cheap; as many as
are predicted to fit go into one candidate, and the judge is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from numbers import Real
from typing import Any

import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores, Searcher
from secateur.search.settings import AdaptiveSettings, Status, require_kinds
from secateur.search.state import Costs, State

Predict = Callable[[Axis, Sequence[int]], float]
"""(axis, units that it keeps) to the rise of the loss, in any unit that is one for all axes."""


@dataclass(frozen=True)
class PredictedSettings:
    """How `predicted` goes about it, beside the `AdaptiveSettings` whose steps and running limit it takes.

    `room`: a candidate takes steps until their predicted rise reaches that share of what the running limit leaves.
    `doubt`: a step shrinks, or its axis settles, without a trial where it is predicted to take more than `doubt` times what
    is left; 0 tries every axis. `cost`: steps are ordered by predicted rise per share of this count that they save.
    """

    room: float = 0.5
    doubt: float = 2.0
    cost: str = "params"

    def __post_init__(self) -> None:
        require_kinds(self, "a predicted search")
        if not 0 < self.room <= 1 or self.doubt < 0:
            found = f"room={self.room}, doubt={self.doubt}"
            raise SecateurError("a predicted search", found, "give room above 0 and at most 1, doubt from 0")


def additive(scores: Scores) -> Predict:
    """A prediction that sums the scores of the units that go: for scores that are losses, as Taylor's and Fisher's are."""
    values = {name: torch.as_tensor(score).double().clamp_min(0) for name, score in scores.items()}

    def predict(axis: Axis, kept: Sequence[int]) -> float:
        if axis.name not in values:
            do = "score every free axis, or ignore this one"
            raise SecateurError(f"a prediction for axis {axis.name!r}", "no scores for it", do)
        return float(values[axis.name].sum() - values[axis.name][list(kept)].sum())

    return predict


def predicted(
    axes: Axes,
    scores: Scores,
    predict: Predict,
    settings: AdaptiveSettings | None = None,
    how: PredictedSettings | None = None,
    *,
    costs: Costs | None = None,
    report: Callable[[Status], None] | None = None,
) -> Searcher:
    """A search for the rate of every axis under the running limit of `adaptive`, with a fraction of its judgements.

    Each candidate adds the steps of lowest predicted rise per cost saved, of any axes, several of one axis too, until the
    prediction fills a share of what the limit leaves. The judge verifies: a candidate within the limit is accepted, and
    its measured rise over the predicted one scales the next predictions; of one that is not, half of the steps are tried.
    A single step that fails shrinks, or settles its axis. No candidate is accepted without having been judged. Raises
    `SecateurError` as `adaptive` does, and for a prediction that is no number.

    Every candidate takes a unit, halves what the next one takes, shrinks a step or settles an axis: the search is finite.
    Of `settings`, `trial`, `reference`, `guard`, `schedule`, `order`, `skip` and `sweeps` are not used. Ours, without a paper.
    """
    state, how = State(axes, scores, settings or AdaptiveSettings(), report, costs), how or PredictedSettings()
    axes.count(how.cost)
    yield from state.begin()
    yield from _descend(state, _sound(predict), how)
    return state.plan()


def _sound(predict: Predict) -> Predict:
    """`predict`; raises `SecateurError` where it returns what no step can be ordered by."""

    def told(axis: Axis, kept: Sequence[int]) -> float:
        rise = predict(axis, kept)
        if not isinstance(rise, (Real, torch.Tensor)) or isnan(rise):
            do = "return a number, how much the loss rises where the axis keeps those units"
            raise SecateurError(f"a prediction for axis {axis.name!r}", f"{rise!r}", do)
        return float(rise)

    return told


@dataclass(frozen=True)
class _Step:
    """One more step of an axis: what it then keeps, and the predicted rise of the loss."""

    axis: Axis
    kept: list[int]
    rise: float


def _descend(state: State, predict: Predict, how: PredictedSettings) -> Generator[tuple[Plan, ...], Any, None]:
    """Candidates of many steps until every axis is settled or the target is met."""
    scale: float | None = None  # measured over predicted rise; `seen` of the last candidate that was accepted
    seen: float | None = None
    most = len(state.kept)
    while not state.done():
        state.sweep += 1
        left = state.limit(state.dense, state.settings.running) - state.loss
        if seen and how.doubt:
            _skip(state, predict, how.doubt * left / seen)
        steps = _bundle(state, predict, how, None if scale is None else how.room * left / scale, most=most)
        if not steps:
            return
        change = {step.axis.name: step.kept for step in steps}
        (loss,) = yield from state.ask(change)
        expected = sum(step.rise for step in steps)
        ratio = max(loss - state.loss, 0.0) / expected if expected > 0 and isfinite(loss) else scale or 0.0
        if not state.above(loss, state.dense, state.settings.running):
            scale = seen = max(ratio, (scale or ratio) / 4)
            state.kept |= change
            state.loss, most = loss, 2 * most
        elif len(steps) > 1:
            scale = (scale * ratio) ** 0.5 if scale else ratio
            most = len(steps) // 2
        elif not state.shrink(steps[0].axis):
            state.settled.add(steps[0].axis.name)
        scale = scale or None
        state.tell()


def _bundle(state: State, predict: Predict, how: PredictedSettings, room: float | None, *, most: int) -> list[_Step]:
    """Steps of lowest predicted rise per share saved; the first always.

    They end where their rise is `room`, where they are `most`, or where the target is met.
    """
    trial = state.fork()
    before = {axis.name: predict(axis, trial.kept[axis.name]) for axis in state.axes.free}
    options: dict[str, tuple[float, _Step]] = {}
    steps: list[_Step] = []
    stale = list(state.axes.free)
    while len(steps) < most:
        for axis in stale:
            step = _next(trial, predict, axis, before[axis.name])
            options.pop(axis.name, None)
            if step is not None:
                options[axis.name] = (step.rise / trial.saved(how.cost, axis, step.kept), step)
        if not options:
            break
        _, best = min(options.values(), key=lambda option: (option[0], option[1].axis.name))
        if steps and room is not None and sum(step.rise for step in steps) + best.rise > room:
            break
        steps.append(best)
        trial.kept[best.axis.name] = best.kept
        if trial.done():  # enough for the target: more would overshoot it
            break
        before[best.axis.name] += best.rise
        stale = [best.axis]
        if room is None:  # nothing is known of the scale yet: one step of each axis at most
            del options[best.axis.name]
            stale = []
    return steps


def _next(state: State, predict: Predict, axis: Axis, before: float) -> _Step | None:
    """The next step of an axis, None where it has none."""
    size = state.size(axis)
    if axis.name in state.settled or not size:
        return None
    kept = state.step(axis, size)
    return _Step(axis, kept, max(predict(axis, kept) - before, 0.0))


def _skip(state: State, predict: Predict, limit: float) -> None:
    """Shrink steps that are predicted to take more than `limit`, and settle axes whose smallest step does."""
    for axis in state.axes.free:
        before = predict(axis, state.kept[axis.name])
        while (step := _next(state, predict, axis, before)) is not None and step.rise > limit:
            if not state.shrink(axis):
                state.settled.add(axis.name)
