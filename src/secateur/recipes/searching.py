"""A search carried out: its judge, its history on disk, recovery between sweeps, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Judge, Searcher
from secateur.criteria.score import score
from secateur.graph import trace
from secateur.io import artefact
from secateur.recipes.arguments import call_with
from secateur.recipes.choose import criterion
from secateur.recipes.parts import Parts, limited
from secateur.recipes.predictions import prediction
from secateur.recipes.progress import Progress, silent
from secateur.recipes.reconstruct import repair_by_name
from secateur.recipes.schema import Recipe
from secateur.repair import batchnorm
from secateur.search import (
    AdaptiveSettings,
    PredictedSettings,
    Status,
    across,
    adaptive,
    bisect,
    drive,
    predicted,
    previewing,
    processes,
    read_history,
    recorder,
    sensitivity,
)
from secateur.surgery import duplicate
from secateur.train import FitSettings, fit

Result = TypeVar("Result")


def searched(
    model: nn.Module, recipe: Recipe, parts: Parts, *, folder: Path | None = None, progress: Progress = silent
) -> tuple[Axes, Plan, nn.Module]:
    """(axes, plan, source): what the search of `recipe` decides for `model`, and the network to cut.

    `source` is `model`, or with `search.recover` a copy trained between sweeps. With a `folder`, each trial is written to
    search.jsonl and the weights after each recovery beside it: the same call goes on where it was stopped. Started by
    `torchrun`, processes share the trials that do not depend on each other.
    Raises `SecateurError` where there are no held-out images, for arguments the search does not take, and for a history of
    another search.
    """
    section = recipe.search
    if section.recover:
        model = duplicate(model)
    axes = trace(model, parts.example).ignore(*recipe.prune.ignore)
    batches = limited(parts.plain, recipe.prune.batches, parts.device)

    def scores() -> dict[str, Tensor]:
        judged = criterion(model, recipe.prune, parts.example, axes=axes, batches=batches, loss=parts.loss, seed=recipe.seed)
        return score(axes, judged)

    held = [scores()]
    recovery = _recovery(model, recipe, parts, folder) if section.recover else None

    def recover(plan: Plan) -> None:
        if recovery is not None:
            recovery(plan)
            held[0] = scores()

    told, bisecting = _told(progress, section.metric), section.method == "bisect"
    tries = section.args.get("tries", 7)
    most = 1 + len(axes.free) * tries if bisecting and isinstance(tries, int) else len(axes.free)
    judge = _Counted(judge_of(model, recipe, parts), progress if bisecting else None, most)
    search: Searcher
    if bisecting:
        search = call_with("search", section.args, bisect, axes, held[0], **section.args)
    elif section.method == "predicted":
        settings, how = _split(section.args)
        predict = prediction(section.predict, model, axes, batches, parts.loss)
        search = predicted(axes, held[0], predict, settings, how, report=told)
    else:
        settings = call_with("search", section.args, AdaptiveSettings, **section.args)
        search = adaptive(axes, lambda plan: held[0], settings, recover=recover if section.recover else None, report=told)
    plan = _driven(search, judge, folder)
    progress("search", most, most, f"{judge.asked} trials")
    return axes, plan, model


def judge_of(model: nn.Module, recipe: Recipe, parts: Parts) -> Judge:
    """The loss of a plan on held-out images after the repair of [search]; what is cut is `model` as it then is."""
    section = recipe.search
    if parts.holdout is None:
        raise SecateurError("a search", "no held-out images to judge by", "set data.holdout, as in --set data.holdout=1000")
    settle = limited(parts.plain, section.batches, parts.device)
    images = held_out(parts.holdout, section.images)

    def evaluate(trial: nn.Module) -> float:
        found = parts.judge(trial, images)
        if section.metric not in found:
            other = "loss" if section.metric == "accuracy" else "accuracy"
            raise SecateurError(f"search.metric = {section.metric!r}", "a model without it", f"take {other!r}")
        return found["loss"] if section.metric == "loss" else 1 - found["accuracy"]

    if section.repair in ("none", "batchnorm"):
        prepare = None if section.repair == "none" else lambda trial: batchnorm(model, trial, settle)
        return previewing(model, evaluate, prepare)

    def judge(plan: Plan) -> float:
        small = plan.apply(model)
        if plan:
            repair_by_name(section.repair, plan)(model, small, settle)
        return evaluate(small.eval())

    return judge


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


def _driven(search: Generator[Any, Any, Result], judge: Judge, folder: Path | None) -> Result:
    """What the search returns; its history on disk, and its trials shared out among processes where there are several."""
    with processes() as (rank, world):
        many = across(judge) if world > 1 else None
        if folder is None:
            return drive(search, judge, many=many)
        path = folder / "search.jsonl"
        history = read_history(path)
        if world > 1:
            dist.barrier()  # the first process rewrites the file others still read
        return drive(search, judge, history=history, record=None if rank else recorder(path), many=many)


def _recovery(model: nn.Module, recipe: Recipe, parts: Parts, folder: Path | None) -> Callable[[Plan], None]:
    """A function that trains what a plan leaves of `model`, in place; weights on disk are taken in place of training."""
    number = 0

    def recover(plan: Plan) -> None:
        nonlocal number
        number += 1
        path = folder / "work" / f"recovered-{number}.safetensors" if folder else None
        if path is not None and path.exists():
            model.load_state_dict(artefact.load(path, into=model).state_dict())
            return
        trial = plan.preview(model).train()
        section = recipe.search
        settings = FitSettings(section.recover, lr=section.recover_lr, schedule="constant", seed=recipe.seed + number)
        fit(trial, parts.train, settings, loss=parts.loss)
        model.load_state_dict(trial.get_submodule("model").state_dict())
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            artefact.save(path, model)

    return recover


def _split(args: Mapping[str, Any]) -> tuple[AdaptiveSettings, PredictedSettings]:
    """The settings of "predicted", told apart by name."""
    mine = {f.name for f in fields(PredictedSettings)}
    own = {key: value for key, value in args.items() if key in mine}
    rest = {key: value for key, value in args.items() if key not in mine}
    how = call_with("search", own, PredictedSettings, **own)
    return call_with("search", rest, AdaptiveSettings, **rest), how


@dataclass(eq=False)
class _Counted:
    """A judge that counts its calls, and tells them where nothing else tells how far a search is."""

    judge: Judge
    progress: Progress | None
    most: int
    asked: int = 0

    def __call__(self, plan: Plan) -> float:
        self.asked += 1
        loss = self.judge(plan)
        if self.progress is not None:
            self.progress("search", min(self.asked, self.most), self.most, f"loss {loss:.4g}")
        return loss if math.isfinite(loss) else math.inf


def _told(progress: Progress, metric: str) -> Callable[[Status], None]:
    def report(status: Status) -> None:
        judged = f"accuracy {1 - status.loss:.1%}" if metric == "accuracy" else f"loss {status.loss:.4g}"
        progress("search", status.settled, status.axes, f"{judged}, {status.params:.1%} of parameters, sweep {status.sweep}")

    return report


def sensitivities(
    model: nn.Module,
    recipe: Recipe,
    parts: Parts,
    rates: tuple[float, ...],
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Axis name to (rate cut, accuracy or loss) at 0 and at each of `rates`, that axis alone being cut and repaired.

    Trials, resuming and processes are as in `searched`.
    """
    axes = trace(model, parts.example).ignore(*recipe.prune.ignore)
    batches = limited(parts.plain, recipe.prune.batches, parts.device)
    judged = criterion(model, recipe.prune, parts.example, axes=axes, batches=batches, loss=parts.loss, seed=recipe.seed)
    search = sensitivity(axes, score(axes, judged), rates)
    judge, done, most = judge_of(model, recipe, parts), 0, 1 + len(rates) * len(axes.free)

    def telling(plan: Plan) -> float:
        nonlocal done
        progress("trials", done, most, next((name for name, (a, b) in plan.widths().items() if b < a), "dense"))
        done += 1
        return judge(plan)

    curves = _driven(search, telling, folder)
    if recipe.search.metric == "loss":
        return dict(curves)
    return {name: tuple((rate, 1 - loss) for rate, loss in curve) for name, curve in curves.items()}
