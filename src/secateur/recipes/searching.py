"""A search carried out: its judge, its history on disk, recovery between sweeps, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from secateur.allocate.costs import CostOf
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Searcher
from secateur.criteria.score import score
from secateur.graph import trace
from secateur.io import artefact
from secateur.recipes.arguments import call_with
from secateur.recipes.choose import COMPARES_AXES, DATA_DRIVEN, costs_of, criterion
from secateur.recipes.judging import Counted, judge_of, many_of, require_judge
from secateur.recipes.parts import Parts, limited
from secateur.recipes.predictions import prediction
from secateur.recipes.progress import Progress, silent
from secateur.recipes.reconstruct import silence_
from secateur.recipes.schema import Recipe
from secateur.recipes.trials import driven, judge_facts
from secateur.search import AdaptiveSettings, PredictedSettings, Status, adaptive, bisect, inner, predicted, sensitivity
from secateur.search.bisect import require_bisection
from secateur.surgery import duplicate
from secateur.train import FitSettings, fit

QUANTITIES = ["macs", "params", "bytes", "memory", "latency"]


def searched(
    model: nn.Module, recipe: Recipe, parts: Parts, *, folder: Path | None = None, progress: Progress = silent
) -> tuple[Axes, Plan, nn.Module]:
    """(axes, plan, source): what the search of `recipe` decides for `model`, and the network to cut.

    `source` is `model`, or with `search.recover` a copy trained between sweeps. With a `folder`, each trial is written to
    search.jsonl, what judged it to search.json and the weights after each recovery beside it: the same call goes on where it
    was stopped. Started by `torchrun`, processes share the trials that do not depend on each other; one of them trains.
    Raises `SecateurError` where there are no held-out images, for arguments the search does not take, and for a history of
    another search or another judge; before the first trial it has written nothing.
    """
    section = recipe.search
    require_search(recipe)
    recovers = bool(section.recover) and section.method == "adaptive"
    if recovers:
        model = duplicate(model)
    facts = judge_facts(model, recipe)
    axes = trace(model, parts.example).ignore(*recipe.prune.ignore)
    axes = _cuttable(axes if section.coupled else inner(axes), "a search", "search.coupled=true for residual sums, ")
    batches = limited(parts.plain, recipe.prune.batches, parts.device)

    def scored(network: nn.Module) -> dict[str, Tensor]:
        judged = criterion(network, recipe.prune, parts.example, axes=axes, batches=batches, loss=parts.loss, seed=recipe.seed)
        return score(axes, judged)

    told, bisecting = _told(progress, section.metric), section.method == "bisect"
    tries = section.args.get("tries", 7)
    most = 1 + len(axes.free) * tries if bisecting else len(axes.free)
    judge = Counted(judge_of(model, recipe, parts), _by_loss(progress, most) if bisecting else None)
    search: Searcher
    if bisecting:
        search = call_with("search", section.args, bisect, axes, scored(model), **section.args)
    elif section.method == "predicted":
        settings, how = _split(section.args)
        predict = prediction(section.predict, model, axes, batches, parts.loss)
        costs = _costs(model, axes, recipe, parts, settings)
        search = predicted(axes, scored(model), predict, settings, how, costs=costs, report=told)
    else:
        settings = AdaptiveSettings(**section.args)
        ranks = Ranks(model, axes, scored, _by_step(recipe))
        recover = _recovery(model, recipe, parts, folder, progress) if recovers else None
        costs = _costs(model, axes, recipe, parts, settings)
        search = adaptive(axes, ranks, settings, costs=costs, recover=ranks.after(recover) if recover else None, report=told)
    plan = driven(search, judge, folder, many_of(model, recipe, parts, judge), facts)
    progress("search", most, most, f"{judge.asked} trials")
    return axes, plan, model


def _cuttable(axes: Axes, asked: str, other: str = "") -> Axes:
    """`axes`. Raises `SecateurError` where none of them can be cut."""
    if not axes.free:
        do = f"ignore less, {'set ' if other else ''}{other}or see in `secateur inspect` what would free one"
        raise SecateurError(asked, "no axis that can be cut", do)
    return axes


def unmet(model: nn.Module, axes: Axes, plan: Plan, recipe: Recipe, parts: Parts) -> dict[str, tuple[float, float]]:
    """Of the target of a search, what `plan` does not reach: name to (the share that was asked for, the share that is left)."""
    wanted = dict(recipe.search.args.get("keep", {}))
    if not wanted:
        return {}
    made = _costs(model, axes, recipe, parts, AdaptiveSettings(keep=wanted))
    widths = {name: after for name, (_, after) in plan.widths().items()}

    def amount(what: str, widths: Mapping[str, int]) -> float:
        return made[what](widths) if what in made else axes.count(what, widths)

    left = {what: amount(what, widths) / max(amount(what, {}), 1e-12) for what in wanted}
    return {what: (share, left[what]) for what, share in wanted.items() if left[what] > share}


def require_search(recipe: Recipe) -> None:
    """Raises `SecateurError` for what [search] cannot do, before anything is done: a run trains for long before it searches."""
    section = recipe.search
    if section.method == "none":
        return
    require_judge(recipe)
    if section.method == "bisect":
        if unknown := [name for name in section.args if name not in ("fall", "tries", "max_rate", "order")]:
            do = "set args to what the search takes: fall, tries, max_rate or order"
            raise SecateurError(
                f"search.args = {section.args!r}", f"{unknown[0]!r}, of which a binary search knows nothing", do
            )
        require_bisection(**section.args)
        return
    settings = (
        _split(section.args)[0]
        if section.method == "predicted"
        else call_with("search", section.args, AdaptiveSettings, **section.args)
    )
    if unknown := [what for what in settings.keep if what not in QUANTITIES]:
        do = nearest(unknown[0], QUANTITIES)
        raise SecateurError(f"search.args.keep on {unknown[0]!r}", "no such count and no such cost", do)
    if "latency" in settings.keep and not recipe.prune.table:
        do = "measure one by secateur measure MODEL --table FILE, and set prune.table, as in --set prune.table=FILE"
        raise SecateurError("a search that ends at a share of milliseconds", "no table of latencies", do)


@dataclass(eq=False)
class Ranks:
    """Scores for what a plan leaves: of the network without it, anew for every plan, or of the network as it is."""

    model: nn.Module
    axes: Axes
    scored: Callable[[nn.Module], dict[str, Tensor]]
    by_step: bool
    known: tuple[Plan, dict[str, Tensor]] | None = None

    def __call__(self, plan: Plan) -> dict[str, Tensor]:
        """Scores of all units; those of dropped ones say nothing."""
        if self.known is None or (self.by_step and self.known[0] != plan):
            self.known = plan, self.scored(self._left(plan) if self.by_step else self.model)
        return self.known[1]

    def after(self, recover: Callable[[Plan], None]) -> Callable[[Plan], None]:
        """`recover`, after which all is scored anew."""

        def act(plan: Plan) -> None:
            recover(plan)
            self.known = None

        return act

    def _left(self, plan: Plan) -> nn.Module:
        """The model, or a copy in which nothing reads what the plan drops."""
        if not plan:
            return self.model
        network = duplicate(self.model)
        for step in plan.steps:
            for cut in step.cuts if isinstance(step, Keep) else ():
                silence_(network, self.axes[cut.axis], list(cut.kept))
        return network


def _by_step(recipe: Recipe) -> bool:
    """Are units scored anew before every step?"""
    of_weights = recipe.prune.criterion not in (*DATA_DRIVEN, *COMPARES_AXES)
    return of_weights if recipe.search.rescore == "auto" else recipe.search.rescore == "step"


def _costs(model: nn.Module, axes: Axes, recipe: Recipe, parts: Parts, settings: AdaptiveSettings) -> dict[str, CostOf]:
    """What the target of a search names beyond counts. A replay needs the same milliseconds, so those come from a file."""
    keep: Any = dict(settings.keep) or {"params": 1.0}
    return costs_of(model, axes, parts.example, replace(recipe.prune, keep=keep))


def _recovery(
    model: nn.Module, recipe: Recipe, parts: Parts, folder: Path | None, progress: Progress
) -> Callable[[Plan], None]:
    """A function that trains what a plan leaves of `model`, in place; weights on disk are taken in place of training.

    Of several processes the first trains and hands its weights to the others, so that all go on from those of a single one.
    """
    number, section = 0, recipe.search

    def told(epoch: int, step: int, steps: int | None) -> None:
        progress("recover", step, steps or step, f"after sweep {number}, epoch {epoch}")

    def train(plan: Plan) -> None:
        trial = plan.preview(model).train()
        settings = FitSettings(section.recover, lr=section.recover_lr, schedule="constant", seed=recipe.seed + number)
        fit(trial, parts.train, settings, loss=parts.loss, on_step=told, shared=False)
        model.load_state_dict(trial.get_submodule("model").state_dict())

    def recover(plan: Plan) -> None:
        nonlocal number
        number += 1
        path = folder / "work" / f"recovered-{number}.safetensors" if folder else None
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not several or dist.get_rank() == 0:
            if path is not None and path.exists():
                model.load_state_dict(artefact.load(path, into=model).state_dict())
            else:
                train(plan)
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    artefact.save(path, model)
        if several:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    return recover


def _split(args: Mapping[str, Any]) -> tuple[AdaptiveSettings, PredictedSettings]:
    """The settings of "predicted", told apart by name."""
    mine, theirs = ({f.name for f in fields(kind)} for kind in (PredictedSettings, AdaptiveSettings))
    if unknown := [name for name in args if name not in mine | theirs]:
        do = f"set args to what the search takes: {nearest(unknown[0], list(mine | theirs))}"
        raise SecateurError(f"search.args = {dict(args)!r}", f"no argument {unknown[0]!r}", do)
    own = {key: value for key, value in args.items() if key in mine}
    rest = {key: value for key, value in args.items() if key not in mine}
    how = call_with("search", own, PredictedSettings, **own)
    return call_with("search", rest, AdaptiveSettings, **rest), how


def _by_loss(progress: Progress, most: int) -> Callable[[int, Plan, float], None]:
    return lambda asked, _, loss: progress("search", min(asked, most), most, f"loss {loss:.4g}")


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

    A network whose numbers overflow has an accuracy of 0 and an infinite loss. Trials, resuming and processes are as in
    `searched`.
    """
    axes = _cuttable(trace(model, parts.example).ignore(*recipe.prune.ignore), "curves of sensitivity")
    batches = limited(parts.plain, recipe.prune.batches, parts.device)
    judged = criterion(model, recipe.prune, parts.example, axes=axes, batches=batches, loss=parts.loss, seed=recipe.seed)
    search = sensitivity(axes, score(axes, judged), rates)
    most = 1 + len(rates) * len(axes.free)

    def told(asked: int, plan: Plan, loss: float) -> None:
        progress("trials", asked, most, next((name for name, (a, b) in plan.widths().items() if b < a), "dense"))

    judge = Counted(judge_of(model, recipe, parts), told)
    curves = driven(search, judge, folder, many_of(model, recipe, parts, judge), judge_facts(model, recipe))
    if recipe.search.metric == "loss":
        return dict(curves)
    return {name: tuple((rate, max(0.0, 1 - loss)) for rate, loss in curve) for name, curve in curves.items()}
