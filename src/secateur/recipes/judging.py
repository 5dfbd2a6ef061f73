"""What a search goes by: the loss of a plan on images that no weight was trained on."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Judge
from secateur.recipes.parts import Parts, limited
from secateur.recipes.reconstruct import repair_by_name
from secateur.recipes.schema import Recipe
from secateur.repair import batchnorm
from secateur.search import previewing
from secateur.search.state import require_loss


def judge_of(model: nn.Module, recipe: Recipe, parts: Parts) -> Judge:
    """The loss of a plan on images of `search.select_on` after the repair of [search]; what is cut is `model` as it then is."""
    section = recipe.search
    source = {"holdout": parts.holdout, "train": parts.plain, "test": parts.test}[section.select_on]
    if source is None:
        do = 'set data.holdout, as in --set data.holdout=1000, or search.select_on="train" where the batches are your own'
        raise SecateurError("a search", "no held-out images to judge by", do)
    settle = limited(parts.plain, section.batches, parts.device)
    images = held_out(source, section.images)

    def evaluate(trial: nn.Module) -> float:
        found = parts.judge(trial, images)
        if section.metric not in found:
            other = "loss" if section.metric == "accuracy" else "accuracy"
            raise SecateurError(f"search.metric = {section.metric!r}", "a model without it", f"take {other!r}")
        return found["loss"] if section.metric == "loss" else 1 - found["accuracy"]

    if section.repair in ("none", "batchnorm"):
        prepare = None if section.repair == "none" else lambda trial: batchnorm(model, trial, settle)
        return _sound(previewing(model, evaluate, prepare))

    def judge(plan: Plan) -> float:
        small = plan.apply(model)
        if plan:
            repair_by_name(section.repair, plan)(model, small, settle)
        return evaluate(small.eval())

    return _sound(judge)


def _sound(judge: Judge) -> Judge:
    """`judge`, which raises `SecateurError` where the whole model has no finite loss: before that is in any history."""
    return lambda plan: judge(plan) if plan else require_loss(judge(plan))


def held_out(batches: Batches, images: int) -> list[tuple[Any, Any]]:
    """Batches of at most `images` images (0: all), held in memory so that every trial sees the same."""
    found, seen = [], 0
    for x, y in batches:
        room = images - seen if images else len(y)
        if room <= 0:
            break
        found.append((x[:room], y[:room]) if len(y) > room else (x, y))
        seen += len(y)
    return found
