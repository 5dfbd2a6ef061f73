"""From a recipe's [lowrank] section to a plan of products, and the network it is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from secateur import lowrank
from secateur.core.plan import Plan
from secateur.core.protocols import Hook
from secateur.recipes.arguments import call_with
from secateur.recipes.parts import Parts, limited
from secateur.recipes.schema import Recipe
from secateur.train import TRP, Force

Train = Callable[[nn.Module, Sequence[Hook]], None]
"""(model, hooks): trains as [lowtrain] says, in place, going on from a checkpoint where there is one."""


def lowered(model: nn.Module, recipe: Recipe, parts: Parts, train: Train) -> tuple[Plan, nn.Module]:
    """(plan, source): products for `source`, which is `model`, or with `lowrank.scratch` a fresh network, trained by `train`.

    Raises `SecateurError` for arguments the method does not take, and for a budget that cannot be met.
    """
    section = recipe.lowrank
    deploy: dict[str, Any] = dict(section.deploy) or {str(what): share for what, share in recipe.prune.keep.items()}
    if section.method == "choose":
        batches = limited(parts.plain, recipe.prune.batches, parts.device) if section.responses else None
        given = {"batches": batches, "ignore": recipe.prune.ignore} | dict(section.args)
        return call_with("lowrank", section.args, lowrank.choose, model, parts.example, deploy, **given), model
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
