"""From a recipe's [lowrank] section to a plan of products, and the network it is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import lowrank, repair
from secateur.core import codec
from secateur.core.plan import Plan
from secateur.core.protocols import Hook
from secateur.io import read_plan
from secateur.io.files import write_text
from secateur.recipes.arguments import call_with
from secateur.recipes.parts import Parts, limited
from secateur.recipes.schema import Recipe
from secateur.train import TRP, Force, holding

Train = Callable[[nn.Module, Sequence[Hook]], None]
"""(model, hooks): trains as [lowtrain] says, in place, going on from a checkpoint where there is one."""


def lowered(model: nn.Module, recipe: Recipe, parts: Parts, train: Train, chosen: Path) -> tuple[Plan, nn.Module]:
    """(plan, source): products for `source`, which is `model`, or with `lowrank.scratch` a fresh network, trained by `train`.

    What method "choose" chose before it trains lies at `chosen` and is taken from there by the same call.
    Raises `SecateurError` for arguments the method does not take, and for a budget that cannot be met.
    """
    section = recipe.lowrank
    deploy: dict[str, Any] = dict(section.deploy) or {str(what): share for what, share in recipe.prune.keep.items()}
    if section.method == "choose":
        trains = bool(recipe.lowtrain.epochs)
        plan = _held(model, recipe, parts, deploy, train, chosen) if trains else _chosen(model, recipe, parts, deploy)
        return plan, model
    if section.scratch:
        torch.manual_seed(recipe.seed)
        model = parts.model().to(parts.device)
    hook: TRP | Force
    if section.method == "trp":
        hook = call_with("lowrank", section.args, TRP, model, section.preset, ignore=recipe.prune.ignore, **section.args)
    else:
        hook = call_with("lowrank", section.args, Force, model, ignore=recipe.prune.ignore, **section.args)
    if recipe.lowtrain.epochs:
        train(model, [hook])
    return hook.plan(deploy, example=parts.example), model


def _chosen(model: nn.Module, recipe: Recipe, parts: Parts, deploy: dict[str, Any], **given: Any) -> Plan:
    """Formats and ranks by `lowrank.choose`; `given` yields to the recipe's own arguments."""
    section = recipe.lowrank
    batches = limited(parts.plain, recipe.prune.batches, parts.device) if section.responses else None
    given = {"batches": batches, "ignore": recipe.prune.ignore} | given | dict(section.args)
    return call_with("lowrank", section.args, lowrank.choose, model, parts.example, deploy, **given)


def _held(model: nn.Module, recipe: Recipe, parts: Parts, deploy: dict[str, Any], train: Train, chosen: Path) -> Plan:
    """The same in formats that `holding` can hold, then training at these ranks, from products fitted to the responses."""
    section = recipe.lowrank
    if chosen.exists():
        plan = read_plan(chosen)
    else:
        plan = _chosen(model, recipe, parts, deploy, formats=("channel", "spatial"))
        write_text(chosen, codec.dumps(plan))
    small = plan.apply(model)
    if section.responses:
        batches = limited(parts.plain, recipe.prune.batches, parts.device)
        repair.whitened(model, small, batches, plan=plan, sample=section.args.get("sample"))
    lowrank.merge_(model, small, plan)
    train(model, holding(model, plan))
    return plan
