"""From a model to a plan: trace, score, allocate, once or in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from secateur import allocate, criteria
from secateur.allocate.costs import CostOf
from secateur.allocate.ladder import Floor
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.core.strict import parse
from secateur.criteria.score import score
from secateur.criteria.scoring import Allocate, Task, Weighed, weighed
from secateur.criteria.scoring_net import OnTrained
from secateur.graph import trace
from secateur.io.files import read_text
from secateur.io.scorer import load_scorer
from secateur.measure import compare
from secateur.measure.table import LatencyTable, from_json, measure_table
from secateur.recipes.answers import curves
from secateur.recipes.arguments import call_with
from secateur.recipes.progress import Progress, silent
from secateur.recipes.reconstruct import reselected
from secateur.recipes.schema import Prune
from secateur.recipes.scoring import learned
from secateur.repair import batchnorm

BY_GRADIENT = ("taylor", "group_fisher", "obd", "snip", "grasp", "three_sp")
"""Criteria of batches and a loss."""
BY_FEATURE = ("hrank", "chip", "apoz", "thinet", "lasso", "cap", "elimination")
"""Criteria of batches alone; axes without features of that kind are scored by L2."""
AT_START = ("snip", "grasp", "synflow", "three_sp")
"""Criteria for networks that were not trained yet; axes that no parameter reads are scored by L2."""
COMPARES_AXES = ("scoring_net", "three_sp", "flows", "loss_curves")
"""Criteria whose scores compare across axes as they are; `prune.normalise` is of no effect on them."""
NORMALISE: dict[str, Any] = {
    "l1": "energy",
    "l2": "energy",
    "fpgm": "energy",
    "taylor": "energy",
    "cap": "none",
    "elimination": "none",
}
"""How the scores of a criterion are best compared across axes; by their "mean" where it is not said."""
DATA_DRIVEN = (*BY_GRADIENT, *BY_FEATURE, "flows", "loss_curves")
SAMPLE = 4096
"""Rows of each batch that fits take where there are many of them."""


def choose(
    model: nn.Module,
    example: Any,
    prune: Prune,
    *,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Progress = silent,
    on_trained: OnTrained | None = None,
) -> tuple[Axes, Plan]:
    """The axes of `model` as it is, and the plan that leaves what `prune.keep` says of it.

    With `prune.rounds` r above 1 each round leaves the r-th root of the share, on a copy whose batch norms are
    re-estimated on `batches` before it is scored anew, unless the criterion is one for networks before training, which asks
    for none. The rounds compose into one plan for `model`; `prune.floor` is a share of the units of `model` in every round.
    `on_trained` is told the Scoring Net and its records where one is trained, in every round anew.
    Raises `SecateurError` where the criterion needs data and there is none, and for a budget that cannot be met.
    """
    require_reselect(prune, batches is not None)
    first = axes = trace(model, example).ignore(*prune.ignore)
    plan = Plan(axes.fingerprint)
    shares = cast(dict[str, float], prune.keep)
    current, costs = model, costs_of(model, axes, example, prune)
    known: dict[str, Any] = {"batches": batches, "loss": loss, "seed": seed, "on_trained": on_trained}
    dense = {what: amount(axes, costs, what) for what in shares}
    for number in range(1, prune.rounds + 1):
        progress("prune", number - 1, prune.rounds, "trace, score, allocate")
        keep = shares
        if prune.rounds > 1:  # of what the rounds before have left
            now = {what: amount(axes, costs, what) for what in shares}
            keep = {what: min(1.0, s ** (number / prune.rounds) * dense[what] / now[what]) for what, s in shares.items()}
        floor = floors(prune, first, axes)
        judged = criterion(current, prune, example, axes=axes, costs=costs, floor=floor, **known)
        scores = score(axes, criteria.isomorphic(current, axes, judged) if prune.isomorphic else judged)
        if number == prune.rounds and "latency" in keep and not prune.table:
            plan = plan.then(_by_the_clock(current, (axes, scores), prune, keep, costs, example=example, floor=floor))
        else:
            plan = plan.then(allocated(axes, scores, prune, keep, costs, floor=floor))
        if number < prune.rounds:
            current = plan.apply(model)
            if batches is not None and prune.criterion not in AT_START:
                batchnorm(model, current, batches)
            axes = trace(current, example).ignore(*prune.ignore)
            costs = costs_of(current, axes, example, prune)
    if prune.reselect != "none" and batches is not None:
        plan = reselected(model, first, plan, prune.reselect, batches, sample=SAMPLE)
    progress("prune", prune.rounds, prune.rounds, "")
    return first, plan


def criterion(
    model: nn.Module,
    prune: Prune,
    example: Any,
    *,
    axes: Axes,
    batches: Batches | None,
    loss: Loss | None,
    seed: int,
    costs: Mapping[str, CostOf] | None = None,
    floor: Floor | None = None,
    on_trained: OnTrained | None = None,
) -> Criterion:
    """The criterion `prune` names, made for `model`. Raises `SecateurError` where it needs data and there is none.

    A Scoring Net wants the `costs` of `costs_of` where the budget is on one, and the `floor` of `allocated`.
    """
    if prune.criterion == "scoring_net":
        share, by_share = _judging(prune, costs or {}, floor)
        how: dict[str, Any] = {"allocate": by_share, "share": share, "seed": seed, "on_trained": on_trained}
        return learned(model, axes, batches, loss, prune.args, **how)
    if prune.criterion in DATA_DRIVEN and batches is None:
        others = "l2, bn_scale or fpgm"
        raise SecateurError(f"criterion {prune.criterion!r}", "no data to run on", f"give data, or take {others}")
    if prune.criterion == "loss_curves":

        def order(base: str, some: Batches) -> Criterion:
            how: dict[str, Any] = {"sample": SAMPLE} if base in ("cap", "lasso", "elimination") else {}
            inner = replace(prune, criterion=cast(Any, base), args=how)
            return criterion(model, inner, example, axes=axes, batches=some, loss=loss, seed=seed)

        return curves(model, axes, prune, cast(Batches, batches), order, sample=SAMPLE)
    make = getattr(criteria, prune.criterion)
    given: tuple[Any, ...] = (model, batches, loss) if prune.criterion in BY_GRADIENT else (model,)
    given = (model, batches) if prune.criterion in BY_FEATURE else given
    given = (model, axes) if prune.criterion == "nisp" else given
    given = (model, axes, batches) if prune.criterion == "flows" else given
    given = (model, axes, batches, loss) if prune.criterion == "three_sp" else given
    given = (model, example) if prune.criterion == "synflow" else given
    named: dict[str, Any] = {"seed": seed} if prune.criterion == "random" else {}
    named |= {"default": criteria.l2(model)} if prune.criterion in (*BY_FEATURE, *AT_START, "group_fisher") else {}
    named |= prune.args
    return call_with("prune", prune.args, make, *given, **named)


def weighing(model: nn.Module, prune: Prune, *, axes: Axes, batches: Batches, loss: Loss) -> Weighed:
    """How far `batches` bear out the Scoring Net in the file of `prune.args`, at the first budget of `prune.keep`, a count."""
    net = load_scorer(prune.args["file"])
    (count, share), by_share = _judging(prune, {}, None)
    return weighed(net.on(model, axes, batches, loss), Task(model, axes, batches, loss, by_share, count), share)


def require_normalise(prune: Prune) -> None:
    """Raise `SecateurError` where `prune.normalise` asks for what would be of no effect on the criterion."""
    if prune.criterion in COMPARES_AXES and prune.normalise not in ("auto", "none"):
        found = f"criterion {prune.criterion!r}, whose scores compare across axes as they are"
        raise SecateurError(f"prune.normalise = {prune.normalise!r}", found, "leave normalise out, or take another criterion")


def require_reselect(prune: Prune, has_data: bool = True) -> None:
    """Raise `SecateurError` where units cannot be selected once more."""
    if prune.reselect == "none":
        return
    asked = f"prune.reselect = {prune.reselect!r}"
    if prune.rounds > 1:
        raise SecateurError(asked, f"{prune.rounds} rounds", "take one round: units are selected from those of one network")
    if not has_data:
        raise SecateurError(asked, "no data to run on", "give data, or leave it out")


def _judging(prune: Prune, costs: Mapping[str, CostOf], floor: Floor | None) -> tuple[tuple[str, float], Allocate]:
    """((count, share), allocator) a Scoring Net is trained by: the plans of `prune` on the first part of its budget.

    What has no slope by widths lends that of a count beside it: parameters for bytes, MACs for memory and latency.
    """
    what, share = next(iter(cast(dict[str, float], prune.keep).items()))

    def by_share(axes: Axes, scores: Mapping[str, torch.Tensor], keep: float) -> Plan:
        return allocated(axes, scores, prune, {what: keep}, costs, floor=floor)

    beside = "params" if what == "bytes" else "macs"
    return (beside if what in costs else what, share), by_share


def costs_of(model: nn.Module, axes: Axes, example: Any, prune: Prune) -> dict[str, CostOf]:
    """The costs `prune.keep` names beyond counts, for `model`. Raises `SecateurError` for a table that does not fit."""
    made: dict[str, CostOf] = {}
    if "bytes" in prune.keep:
        made["bytes"] = allocate.file_bytes(model, axes)
    if "memory" in prune.keep:
        made["memory"] = allocate.activation_bytes(model, axes, example)
    if "latency" in prune.keep:
        known = table_of(prune.table) if prune.table else measure_table(model, example)
        made["latency"] = allocate.latency_ms(model, axes, example, known)
    return made


def table_of(path: str) -> LatencyTable:
    """The latency table in a file. Raises `SecateurError` where there is none."""
    return from_json(parse(read_text(path, "latency table"), f"reading {path}"))


def _by_the_clock(
    model: nn.Module,
    ranked: tuple[Axes, Mapping[str, torch.Tensor]],
    prune: Prune,
    keep: Mapping[str, float],
    costs: Mapping[str, CostOf],
    *,
    example: Any,
    floor: Floor | None = None,
) -> Plan:
    """The plan whose network takes at most the share of milliseconds that `keep` says, measured here."""

    def by_table(share: float) -> Plan:
        return allocated(*ranked, prune, {**keep, "latency": share}, costs, floor=floor)

    return allocate.measured(by_table, keep["latency"], lambda plan: measured_share(model, plan, example))


def measured_share(model: nn.Module, plan: Plan, example: Any) -> float:
    """What share of the milliseconds of `model` remains after `plan`, both timed in turns."""
    taken = compare({"dense": model, "small": plan.apply(model)}, example, repeats=20, pick=min)
    return taken["small"] / taken["dense"]


def amount(axes: Axes, costs: Mapping[str, CostOf], what: str, widths: Mapping[str, int] | None = None) -> float:
    """What a network of those widths costs."""
    return costs[what](widths or {}) if what in costs else axes.count(what, widths)


def floors(prune: Prune, dense: Axes, axes: Axes) -> dict[str, float]:
    """What share of its units each of `axes` keeps at least, for `prune.floor` to hold of those of `dense`."""
    units = {axis.name: axis.units for axis in dense}
    return {axis.name: min(1.0, prune.floor * units.get(axis.name, axis.units) / axis.units) for axis in axes}


def allocated(
    axes: Axes,
    scores: Mapping[str, torch.Tensor],
    prune: Prune,
    keep: Mapping[str, float],
    costs: Mapping[str, CostOf],
    *,
    floor: Floor | None = None,
) -> Plan:
    """The plan `prune.allocator` makes: "budget" trades axes against each other, "uniform" leaves the same share of each.

    `floor` stands in for `prune.floor` where a network was cut before.
    """
    if prune.allocator == "budget":
        own = prune.isomorphic or prune.criterion in COMPARES_AXES
        known = NORMALISE.get(prune.criterion, "mean") if prune.normalise == "auto" else prune.normalise
        how = "none" if own else known
        least = prune.floor if floor is None else floor
        return allocate.budget(axes, scores, keep, normalise=how, floor=least, multiple=prune.multiple, costs=costs)
    return _uniform(axes, scores, prune, keep, costs)


def _uniform(
    axes: Axes, scores: Mapping[str, torch.Tensor], prune: Prune, keep: Mapping[str, float], costs: Mapping[str, CostOf]
) -> Plan:
    """The largest equal share of every axis that meets `keep`, by bisection to a thousandth."""
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        plan = allocate.uniform(axes, scores, middle / 1000, multiple=prune.multiple)
        widths = {name: after for name, (_, after) in plan.widths().items()}
        if all(amount(axes, costs, w, widths) <= share * amount(axes, costs, w) for w, share in keep.items()):
            low = middle
        else:
            high = middle - 1
    if not low:
        asked = f"keep = {dict(keep)!r} with the uniform allocator"
        raise SecateurError(asked, "no share that meets it", "ask for more to remain")
    return allocate.uniform(axes, scores, low / 1000, multiple=prune.multiple)
