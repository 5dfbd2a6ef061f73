"""Least squares on both sides of a cut: of the layers that read what is left, and of those that write it.

Shape legend: O outputs of the reader, H units between writer and reader, D inputs of one output, M rows (samples times
positions).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import repeatable
from secateur.measure.layers import matrix
from secateur.measure.moments import drawn
from secateur.measure.shortcuts import Seen, goals, scale_behind, seen
from secateur.repair.blocks import unrolled
from secateur.repair.least_squares import fit_, of_layers, outlet_of, targets_of
from secateur.repair.linked import Linked, linked
from secateur.repair.straight import Pair, solution, straight, writers

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of a solution, tried in turn: what is between writer and reader is not as straight as it was taken for."""


@dataclass(frozen=True)
class _How:
    """The options of `two_sided`."""

    ridge: float
    sample: int | None
    rounds: int
    iterations: int
    damping: float

    def __post_init__(self) -> None:
        for name in ("rounds", "iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise SecateurError(f"a fit of both sides with {name}={value!r}", "no count", "give a whole number from 0")
        if not is_number(self.damping) or not 0 < self.damping < math.inf:
            do = "give a number above 0, a share of the mean variance"
            raise SecateurError(f"a fit of both sides with damping={self.damping!r}", "no share above 0", do)


def two_sided(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan | None = None,
    limit: int | None = None,
    ridge: float = 1e-8,
    sample: int | None = None,
    rounds: int = 1,
    iterations: int = 8,
    damping: float = 1e-3,
    layers: Collection[str] | None = None,
) -> None:
    """Set each layer of `after` that lost inputs, and the layer that writes them, so that the first writes what it wrote.

    From shallow to deep each reader is fitted as `least_squares` does, to its outputs in `before` and the error of its
    shortcut. Where one layer alone writes what it reads, with elementwise functions between, both are then fitted together,
    `rounds` times: with X what the writer reads, s the slope of what is between, H what the reader reads and R what it
    lacks, the changes V of the writer and U of the reader solve the linear least squares
    ``|R - H U - (s * X V) W|^2``, by `iterations` of conjugate gradients from zero. Of `SHARES` of the solution the first that
    lowers the true error is taken, and the reader is fitted once more. `damping`: added to the covariance of what each of
    both reads, a share of its mean variance.

    `layers`: the names of the readers to fit, with their writers; all others stay. Errors count as they stand behind the batch
    norm that takes the reader's output. On `batches` a layer's error is so never above that of the plain fit in its turn. What
    a pair reads of all `batches` (at most `limit`) is held in memory while it is fitted, and so is what the reader wrote;
    `sample` is for the plain fits. All weights are solutions of linear systems; no loss of the network is descended. Only a
    `plan` tells of writers: without one, this is `least_squares`. Ours, without a paper.

    Source: He et al., 2017 (Channel Pruning), section 3.3, for the targets; linearised as by Gauss and Newton, damped as by
    Levenberg, 1944.
    """
    how = _How(ridge, sample, rounds, iterations, damping)
    batches = repeatable(batches, limit)
    with restoring(after), unrolled(after) as whole:
        chosen = of_layers(linked(before, whole, batches, plan), after, layers)
        targets = targets_of(chosen, before, batches, limit=limit, sample=None, residual=True)
        found = writers(plan, whole, batches) if plan is not None else {}
        for each in chosen:
            held = list(targets(each))
            part = [(inputs, _some(then, sample)) for inputs, then in held]
            fit_(whole, each, part, ridge=ridge, sample=sample)
            if each.name in found and _plain(each) and all(len(then.rows) == 1 for _, then in held):
                _refine_(whole, Pair(found[each.name], each), held, part, how=how)


Held = list[tuple[Any, Seen]]
"""The inputs of each batch and what a layer wrote before."""


def _plain(each: Linked) -> bool:
    """Does the layer read with all of its weights, and none beside?"""
    return each.head is None and each.support is None and len(each.own) == matrix(each.layer).shape[1]


def _some(then: Seen, sample: int | None) -> Seen:
    """At most `sample` rows of each call, those that fits draw."""

    def few(value: Tensor) -> Tensor:
        pick = drawn(len(value), sample)
        return value if pick is None else value[pick.to(value.device)]

    return Seen([few(value) for value in then.rows], None if then.added is None else few(then.added))


def _refine_(whole: nn.Module, pair: Pair, held: Held, part: Held, *, how: _How) -> None:
    """Fit both layers of `pair` together, as long as it lowers the error."""
    lacking = _lacking(whole, pair, held)
    for _ in range(how.rounds):
        seen_by = [straight(whole, pair, inputs) for inputs, _ in held]
        known = [one for one in seen_by if one is not None]
        if len(known) < len(seen_by):
            return
        change = solution(pair, known, lacking, iterations=how.iterations, damping=how.damping, sample=how.sample)
        least, before = _error(lacking), pair.values()
        for share in SHARES:
            pair.move_(change, share)
            lacking = _lacking(whole, pair, held)
            if _error(lacking) < least:
                break
            pair.set_(before)
        else:
            return
        moved = pair.values()
        fit_(whole, pair.reader, part, ridge=how.ridge, sample=how.sample)
        again = _lacking(whole, pair, held)
        if _error(again) < _error(lacking):
            lacking = again
        else:  # rows that were drawn, or a ridge
            pair.set_(moved)


def _lacking(whole: nn.Module, pair: Pair, held: Held) -> list[Tensor]:
    """Of each batch, what a reader shall write less what it writes with its constant, behind its norm; (M, O) float64."""
    each, outlet = pair.reader, outlet_of(pair.reader)
    behind = pair.scale()
    scale, constant = scale_behind(whole, each.name, outlet), each.constant_behind()
    found = []
    for inputs, then in held:
        summand = {each.name: outlet if then.added is not None else None}
        now = seen(whole, summand, inputs, "writes", until={each.name: then})[each.name]
        (goal,) = goals(then, now, each.rows, scale)
        found.append((goal - now.rows[0].double() - constant.to(goal.device)) * behind.to(goal.device))
    return found


def _error(lacking: list[Tensor]) -> float:
    """The mean square over all rows; infinite where it is no number."""
    error = sum(float(part.square().sum()) for part in lacking) / max(sum(len(part) for part in lacking), 1)
    return error if math.isfinite(error) else math.inf
