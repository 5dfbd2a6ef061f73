"""How far the answers of a network move as it is cut and compensated: a judge that needs no labels, and scores by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.numeric import is_number
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Criterion
from secateur.core.running import call, device_of, evaluating, pairs, size_of, to_device
from secateur.criteria.features import readers
from secateur.criteria.loss_curves import loss_curves
from secateur.criteria.scoring.task import class_dim, divergence
from secateur.measure.moments import input_moments
from secateur.recipes.arguments import call_with
from secateur.recipes.schema import Prune, kinds
from secateur.repair.linked import linked
from secateur.repair.solve import least_error, restricted


def moved_answers(
    model: nn.Module, axes: Axes, batches: Batches, judged: Batches, *, heat: float = 4.0, sample: int | None = None
) -> Callable[[Plan], float]:
    """A judge of plans on `axes`: how far the outputs on `judged` move from those of `model` itself.

    Of logits the Kullback-Leibler divergence at temperature `heat`, of other outputs the relative mean square; of images a
    network was trained on it knows nearly all, so its labels say less than its answers. Plans are judged after compensation:
    the layers that read what is cut are fitted to the outputs they have in `model`, by moments that one pass over `batches`
    takes for all plans, at most `sample` rows of each. Where one axis alone is cut, that is least squares.
    """
    names = sorted({reader.name for axis in axes.free for reader in readers(model, axis)})
    known = input_moments(model, names, batches, sample=sample) if names else {}
    device = device_of(model)
    held: list[tuple[Any, Any]] = []
    with torch.no_grad(), evaluating(model):
        for inputs, _ in pairs(judged):
            inputs = to_device(inputs, device)
            held.append((inputs, call(model, inputs)))
    if not held:
        raise SecateurError("a judge of answers", "no batch", "give data that can be iterated anew for every pass")

    def judge(plan: Plan) -> float:
        small = plan.apply(model)
        for each in linked(model, small, [(held[0][0], None)], plan) if plan else ():
            if each.name in known:
                part = restricted(known[each.name], each.columns, each.rows)
                each.write_(*least_error(part, each.weight(), intercept=each.has_intercept, ridge=1e-6))
        total = count = 0.0
        with torch.no_grad(), evaluating(small):
            for inputs, answer in held:
                output = call(small, inputs)
                total += size_of(inputs) * float(divergence(output, answer, heat, class_dim(output)))
                count += size_of(inputs)
        return total / count

    return judge


BASES = tuple(name for name in get_args(kinds.Criterion) if name not in ("loss_curves", "scoring_net"))
"""Criteria that order the units of an axis whose curve is measured."""


def curves(
    model: nn.Module, axes: Axes, prune: Prune, batches: Batches, order: Callable[[str, Batches], Criterion], *, sample: int
) -> Criterion:
    """`criteria.loss_curves` for [prune] of a recipe, the loss being how the answers move after compensation.

    Of the arguments of `prune`, `base` names the criterion that orders the units, which `order` makes of batches; `heat` is
    that of `moved_answers`. The first two batches are judged on, where there are more; the others tell how to compensate.
    """
    args = dict(prune.args)
    base, heat = args.pop("base", "elimination"), args.pop("heat", 4.0)
    if base not in BASES:
        raise SecateurError(f"prune.args with base={base!r}", "no criterion to order units by", nearest(str(base), BASES))
    if not is_number(heat) or not 0 < heat < math.inf:
        raise SecateurError(f"prune.args with heat={heat!r}", "no temperature", "give a number above 0")
    held = list(batches)
    fitted = held[2:] or held
    judge = moved_answers(model, axes, fitted, held[:2], heat=heat, sample=sample)
    cost = "params" if "macs" not in prune.keep and {"params", "bytes"} & set(prune.keep) else "macs"
    return call_with("prune", args, loss_curves, axes, order(base, fitted), judge, **{"cost": cost} | args)
