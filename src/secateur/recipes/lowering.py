"""From a recipe's [lowrank] section to a plan of products, and the network it is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import lowrank, repair
from secateur.core import codec
from secateur.core.errors import SecateurError
from secateur.core.factor import FORMATS
from secateur.core.plan import Plan
from secateur.core.protocols import Hook
from secateur.io import read_plan
from secateur.io.files import write_text
from secateur.recipes.arguments import call_with
from secateur.recipes.parts import Parts, limited
from secateur.recipes.schema import Recipe
from secateur.train import TRP, Force, holding
from secateur.train.trp.hold import HELD

Train = Callable[[nn.Module, Sequence[Hook]], None]
"""(model, hooks): trains as [lowtrain] says, in place, going on from a checkpoint where there is one."""


def require_lowrank(recipe: Recipe) -> None:
    """Raise `SecateurError` for what [lowrank] and [lowtrain] of `recipe` say to no effect, or cannot have."""
    section, epochs = recipe.lowrank, recipe.lowtrain.epochs
    if section.method == "none" and epochs:
        do = "set lowrank.method, or train in [train] or [finetune]"
        raise SecateurError(f"lowtrain.epochs = {epochs}", "no lowrank.method to train with", do)
    if section.method in ("force", "choose") and section.preset != "paper":
        asked = f"lowrank.preset = {section.preset!r} with method {section.method!r}"
        raise SecateurError(asked, "a preset of TRP alone", 'leave it out, or take method "trp"')
    if section.method != "choose":
        return
    if section.scratch:
        do = 'train from scratch by method "trp" or "force", or leave it out'
        raise SecateurError('lowrank.scratch = true with method "choose"', "ranks chosen on the trained network", do)
    formats = section.args.get("formats")
    loose = [form for form in FORMATS if form not in HELD and isinstance(formats, (list, tuple)) and form in formats]
    if loose and epochs:
        found = f"{loose[0]!r}, which is more than one matrix per layer, with a [lowtrain] that has epochs"
        raise SecateurError(f"lowrank.args.formats = {formats!r}", found, "choose among channel, spatial")


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
    given: dict[str, Any] = {"ignore": recipe.prune.ignore} | dict(section.args)
    if section.scratch:
        torch.manual_seed(recipe.seed)
        model = parts.model().to(parts.device)
    hook: TRP | Force
    if section.method == "trp":
        hook = call_with("lowrank", section.args, TRP, model, section.preset, **given)
    else:
        hook = call_with("lowrank", section.args, Force, model, **given)
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
    if not plan:
        train(model, [])  # nothing to hold
        return plan
    small = plan.apply(model)
    if section.responses:
        batches = limited(parts.plain, recipe.prune.batches, parts.device)
        repair.whitened(model, small, batches, plan=plan, sample=section.args.get("sample"))
    lowrank.merge_(model, small, plan)
    train(model, holding(model, plan))
    return plan
