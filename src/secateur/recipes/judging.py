"""What a search goes by: the loss of a plan on images that no weight was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.core.errors import NotFinite, SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Judge, JudgeMany
from secateur.recipes.parts import Parts, fitting
from secateur.recipes.reconstruct import repair_by_name
from secateur.recipes.schema import Recipe
from secateur.repair import batchnorm
from secateur.search import previewing, stacked
from secateur.search.state import require_loss
from secateur.train.evaluate import hits_of

DIGITS = 12
"""Of a share of images: two ways to add the same hits up agree in them, so that ties stay ties."""


def require_judge(recipe: Recipe) -> None:
    """Raises `SecateurError` for a judge of trials that [search] and [data] of `recipe` cannot have."""
    section = recipe.search
    if section.select_on == "holdout" and not recipe.data.holdout:
        raise _no_images()
    if "whitened" in section.repair:
        found, do = "a repair of products, where a search cuts units", "take least_squares, compensation or batchnorm"
        raise SecateurError(f"search.repair = {section.repair!r}", found, do)
    if section.at_once > 1 and (section.repair not in ("none", "batchnorm") or recipe.metric.name != "accuracy"):
        found = f"search.repair = {section.repair!r}" if recipe.metric.name == "accuracy" else "a metric of your own"
        raise SecateurError(f"search.at_once = {section.at_once}", found, "judge one at a time, or take batchnorm and accuracy")


def _no_images() -> SecateurError:
    do = 'set data.holdout, as in --set data.holdout=1000, or search.select_on="train" where the batches are your own'
    return SecateurError("a search", "no held-out images to judge by", do)


def judge_of(model: nn.Module, recipe: Recipe, parts: Parts) -> Judge:
    """The loss of a plan on images of `search.select_on` after the repair of [search]; what is cut is `model` as it then is."""
    require_judge(recipe)
    section = recipe.search
    images, (settle, usual) = _images(recipe, parts), fitting(parts, section.repair, section.batches)

    def evaluate(trial: nn.Module) -> float:
        found = parts.judge(trial, images)
        if section.metric not in found:
            other = "loss" if section.metric == "accuracy" else "accuracy"
            raise SecateurError(f"search.metric = {section.metric!r}", "a model without it", f"take {other!r}")
        return found["loss"] if section.metric == "loss" else round(1 - found["accuracy"], DIGITS)

    if section.repair in ("none", "batchnorm"):
        prepare = None if usual is None else lambda trial: batchnorm(model, trial, usual)
        return _sound(previewing(model, evaluate, prepare))

    def judge(plan: Plan) -> float:
        small = plan.apply(model)
        if plan:
            repair_by_name(section.repair, plan, trained_on=usual)(model, small, settle)
        return evaluate(small.eval())

    return _sound(judge)


def many_of(model: nn.Module, recipe: Recipe, parts: Parts, judge: Judge) -> JudgeMany | None:
    """The same of `search.at_once` plans in one forward; None where one at a time is asked for.

    Raises `SecateurError` for a repair that gates cannot show, and for a metric of the user's own.
    """
    require_judge(recipe)
    section = recipe.search
    if section.at_once < 2:
        return None
    _, settle = fitting(parts, section.repair, section.batches)
    loss = parts.loss if section.metric == "loss" else _misses
    stack = stacked(model, _images(recipe, parts), loss, settle=settle, chunk=section.at_once, otherwise=judge)

    def many(plans: Sequence[Plan]) -> list[float]:
        losses = [round(value, DIGITS) if section.metric == "accuracy" else value for value in stack(plans)]
        return [loss if math.isfinite(loss) else math.inf for loss in losses]

    return many


@dataclass(eq=False)
class Counted:
    """A judge that counts the plans it was asked for, alone or together, and tells of those it judged alone."""

    judge: Judge
    told: Callable[[int, Plan, float], None] | None
    asked: int = 0

    def __call__(self, plan: Plan) -> float:
        self.asked += 1
        loss = self.judge(plan)
        if self.told is not None:
            self.told(self.asked, plan, loss)
        return loss if math.isfinite(loss) else math.inf

    def counting(self, many: JudgeMany | None) -> JudgeMany | None:
        """`many`, whose plans count here however they are judged."""
        if many is None:
            return None

        def judged(plans: Sequence[Plan]) -> Sequence[float]:
            before, losses = self.asked, many(plans)
            self.asked = before + len(plans)
            return losses

        return judged


def _misses(output: Any, target: Any) -> Tensor:
    """The share of labels that do not come first."""
    hits = hits_of(output, target)
    if hits is None:
        raise SecateurError("search.metric = 'accuracy'", "a model without it", "take 'loss'")
    return 1 - hits.double() / len(output)


def _images(recipe: Recipe, parts: Parts) -> list[tuple[Any, Any]]:
    """The batches that trials are judged on."""
    section = recipe.search
    source = {"holdout": parts.holdout, "train": parts.plain, "test": parts.test}[section.select_on]
    if source is None:
        raise _no_images()
    return held_out(source, section.images)


def _sound(judge: Judge) -> Judge:
    """`judge`, with an infinite loss for a candidate whose numbers overflow.

    Raises `SecateurError` where the whole model has no finite loss: before that is in any history.
    """

    def judged(plan: Plan) -> float:
        if not plan:
            return require_loss(judge(plan))
        try:
            return judge(plan)
        except NotFinite:
            return math.inf

    return judged


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
