"""The methods of bench/channel.py: each makes plans, and some of them the small network along with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import allocate, criteria, score
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.recipes.answers import moved_answers
from secateur.recipes.choose import NORMALISE
from secateur.recipes.predictions import reconstruction
from secateur.recipes.reconstruct import channel_pruning, repair_by_name
from secateur.repair import least_squares, two_sided
from secateur.search import AdaptiveSettings, PredictedSettings, drive, predicted

GRADIENT = ("taylor", "group_fisher", "obd")
FEATURE = ("hrank", "chip", "apoz", "thinet", "lasso", "cap")
WEIGHT = ("random", "l1", "l2", "bn_scale", "fpgm", "rfp", "lamp", "nisp")
OURS = WEIGHT + GRADIENT + FEATURE
ENERGY = ("l1 energy", "l2 energy", "fpgm energy", "taylor energy")
"""The same scores, axes compared by their squares (`normalise="energy"`), as the peer's L2 is: a sum of squares, no root."""
DEFAULT = ("l1 default", "l2 default", "fpgm default", "fpgm squares", "taylor default")
"""As a recipe has them: norms without biases, Taylor by weights, axes compared by `NORMALISE`; "squares" is an option of FPGM.

The rows of the plain names have the arithmetic of the papers.
"""
LEARNED = {"scoring net": NetSettings(), "scoring net on activations": NetSettings(prior="flows", relative=True, bound=0.25)}
"""Trained anew at each speedup, on the calibration images and for `NET_EPOCHS`."""
FLOWING = ("flows",)
"""On the calibration images, scores as they are."""
CURVES = ("loss curves",)
"""Widths by how the answers move away from the dense network's as each axis alone is cut and compensated, units by CaP."""
ELIMINATION = ("whole-model elimination",)
"""Widths by such curves, units layer by layer by backward elimination in the network as cut and fitted so far.

Takes the further images of `two_sided`. The repair then starts from the original's weights.
"""
BOTH = ("elimination of both sides",)
"""The same, but each axis is fitted on both sides before the next is selected: what selection makes is what is judged."""
WHOLE = ("whole-model lasso", "whole-model cap", "predicted search")
PEER = ("tp random", "tp l1", "tp l2", "tp bn scale", "tp fpgm", "tp lamp", "tp taylor", "tp hessian")
EVERY = OURS + ENERGY + DEFAULT + tuple(LEARNED) + FLOWING + CURVES + ELIMINATION + BOTH + PEER + WHOLE
NET_EPOCHS = 75
SAMPLE = 4096
"""Rows of each batch of 128 images that fits take."""
LIMIT = {"chip": 1, "hrank": 2, "group_fisher": 2, "obd": 2}
"""Batches for criteria that make a decomposition or a backward pass per image."""


@dataclass(frozen=True, eq=False)
class Bench:
    """The network, its axes, and images: calibration batches, held-out and test ones."""

    model: nn.Module
    axes: Axes
    calibration: list[tuple[Tensor, Tensor]]
    holdout: list[tuple[Tensor, Tensor]]
    test: list[tuple[Tensor, Tensor]]
    further: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    every: Batches = ()
    """Further training images, for repairs that ask for more, and all test images."""
    rounds: int = 1
    """In which both sides of a cut are fitted."""


def scores_of(name: str, bench: Bench, seed: int) -> dict[str, Tensor]:
    """Scores of all free axes by one of our criteria."""
    batches, model = bench.calibration[: LIMIT.get(name, 99)], bench.model
    plain = criteria.l2(model, biases=True)
    if name in DEFAULT:
        kind, more = name.split()[0], {"squares": True} if name == "fpgm squares" else {}
        given: tuple[Any, ...] = (batches, F.cross_entropy) if kind == "taylor" else ()
        return score(bench.axes, getattr(criteria, kind)(model, *given, **more))
    if name == "random":
        return score(bench.axes, criteria.random(model, seed=seed))
    if name == "nisp":
        return score(bench.axes, criteria.nisp(model, bench.axes))
    if name in GRADIENT:
        extra: dict[str, Any] = {"default": plain} if name == "group_fisher" else {}
        extra |= {"each": "unit"} if name == "taylor" else {}
        return score(bench.axes, getattr(criteria, name)(model, batches, F.cross_entropy, **extra))
    if name in FEATURE:
        extra = {"sample": SAMPLE} if name in ("lasso", "cap") else {}
        return score(bench.axes, getattr(criteria, name)(model, batches, default=plain, **extra))
    extra = {"default": plain} if name == "bn_scale" else {"biases": True} if name in ("l1", "l2") else {}
    return score(bench.axes, getattr(criteria, name)(model, **extra))


def plans(name: str, bench: Bench, shares: list[float], seed: int) -> Iterator[tuple[float, Plan, nn.Module | None]]:
    """(share of MACs, plan, small network where the method makes its own) for each share."""
    if name.startswith("tp "):
        for share in shares:
            yield share, peer(name.removeprefix("tp "), bench, share, seed), None
        return
    if name in LEARNED:
        for share in shares:
            yield share, learned(bench, LEARNED[name], share, seed), None
        return
    if name in FLOWING:
        scores = score(bench.axes, criteria.flows(bench.model, bench.axes, bench.calibration))
        yield from ((share, ranked(bench.axes, scores, share), None) for share in shares)
        return
    if name in CURVES:
        scores = score(
            bench.axes,
            criteria.loss_curves(bench.axes, criteria.cap(bench.model, bench.calibration, sample=SAMPLE), away(bench)),
        )
        yield from ((share, ranked(bench.axes, scores, share), None) for share in shares)
        return
    if name in ELIMINATION:
        yield from ((share, plan, None) for share, plan, _ in eliminated(bench, shares, least_squares))
        return
    if name in BOTH:
        yield from eliminated(bench, shares, partial(two_sided, rounds=bench.rounds))
        return
    scores = scores_of("cap" if name in WHOLE else name.removesuffix(" energy"), bench, seed)
    for share in shares:
        normalise: Any = "none" if name in ("cap", *WHOLE) else "energy" if name in ENERGY else "mean"
        normalise = NORMALISE[name.split()[0]] if name.endswith(" default") else normalise
        plan = allocate.budget(bench.axes, scores, {"macs": share}, normalise=normalise, floor=0.1)
        small = None
        if name == "predicted search":
            plan = searched(bench, scores, share)
        elif name in WHOLE:
            select: Any = None
            if name.endswith("cap"):

                def select(current: nn.Module, original: nn.Module, axis: Any) -> Tensor:
                    return criteria.cap(current, bench.calibration, sample=SAMPLE, default=criteria.l2(current))(axis)

            widths = {axis: after for axis, (_, after) in plan.widths().items()}
            plan, small = channel_pruning(bench.model, bench.axes, widths, bench.calibration, select=select, sample=SAMPLE)
        yield share, plan, small


def eliminated(bench: Bench, shares: list[float], fit: Callable[..., None]) -> Iterator[tuple[float, Plan, nn.Module]]:
    """By backward elimination, for widths by curves of the loss whose order is that of the dense network."""
    images = bench.further or bench.calibration
    base = criteria.elimination(bench.model, images, sample=SAMPLE)
    scores = score(bench.axes, criteria.loss_curves(bench.axes, base, away(bench)))

    def select(current: nn.Module, original: nn.Module, axis: Any) -> Tensor:
        return criteria.elimination(current, images, original=original, sample=SAMPLE)(axis)

    for share in shares:
        widths = {axis: after for axis, (_, after) in ranked(bench.axes, scores, share).widths().items()}
        yield share, *channel_pruning(bench.model, bench.axes, widths, images, select=select, sample=SAMPLE, fit=fit)


def ranked(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores across the network as they are."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.1)


def learned(bench: Bench, settings: NetSettings, share: float, seed: int) -> Plan:
    """By the scores of a Scoring Net that is trained at this share on frozen weights."""
    batches = [pair for x, y in bench.calibration for pair in zip(x.split(64), y.split(64), strict=True)]
    torch.manual_seed(seed)
    net = ScoringNet(settings)
    how = ScorerSettings(stages=(ScorerStage(epochs=NET_EPOCHS),), keeps=(share,), seed=seed)
    fit_(net, [Task(bench.model, bench.axes, batches, F.cross_entropy, ranked)], how)
    return ranked(bench.axes, score(bench.axes, net.on(bench.model, bench.axes, batches, F.cross_entropy)), share)


def away(bench: Bench) -> Callable[[Plan], float]:
    """A judge: how far the answers to held-out images are from the dense network's, after compensation."""
    return moved_answers(bench.model, bench.axes, bench.further or bench.calibration, bench.holdout[:2], sample=SAMPLE)


def searched(bench: Bench, scores: dict[str, Tensor], share: float) -> Plan:
    """Widths by a predicted search whose judge compensates, down to the share of MACs."""
    held = bench.holdout[:2]

    def judge(plan: Plan) -> float:
        small = plan.apply(bench.model)
        if plan:
            repair_by_name("compensation", plan, sample=SAMPLE)(bench.model, small, bench.calibration[:2])
        with torch.no_grad():
            return sum(float(F.cross_entropy(small(x), y, reduction="sum")) for x, y in held) / sum(len(y) for _, y in held)

    settings = AdaptiveSettings(step=0.1, running=2.0, max_rate=0.9, keep={"macs": share})
    how = PredictedSettings(cost="macs", room=0.1)
    predict = reconstruction(bench.model, bench.axes, bench.calibration)
    return drive(predicted(bench.axes, scores, predict, settings, how), judge)


def peer(name: str, bench: Bench, share: float, seed: int) -> Plan:
    """What Torch-Pruning's pruner cuts from the inner axes of the blocks with one of its criteria, as a plan."""
    import torch_pruning as tp

    torch.manual_seed(seed)
    inner = {axis.name: axis for axis in bench.axes.free}
    gradients = [*peer_gradients(name, bench)]

    def cut(ratio: float) -> dict[str, list[int]]:
        model = copy.deepcopy(bench.model).eval()
        importance = {
            "random": tp.importance.RandomImportance,
            "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
            "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
            "bn scale": tp.importance.BNScaleImportance,
            "fpgm": tp.importance.FPGMImportance,
            "lamp": tp.importance.LAMPImportance,
            "taylor": tp.importance.GroupTaylorImportance,
            "hessian": tp.importance.GroupHessianImportance,
        }[name]()
        ignored = [m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n not in inner]
        pruner = tp.pruner.BasePruner(
            model, bench.calibration[0][0][:1], importance, global_pruning=True, pruning_ratio=ratio,
            max_pruning_ratio=0.9, ignored_layers=ignored,
        )  # fmt: skip
        for gradient in gradients:
            for key, value in model.named_parameters():
                value.grad = gradient[key].clone()
            if name == "hessian":
                importance.accumulate_grad(model)
        gone: dict[str, list[int]] = {axis: [] for axis in inner}
        names = {module: path for path, module in model.named_modules()}
        for group in pruner.step(interactive=True):
            path = names.get(group[0].dep.target.module, "")
            if path in gone and group[0].dep.handler == tp.prune_conv_out_channels:
                gone[path] += [int(i) for i in group[0].idxs]
            group.prune()
        return {axis: sorted(set(range(inner[axis].units)) - set(units)) for axis, units in gone.items()}

    low, high, best = 0.0, 0.9, None
    for _ in range(9):
        middle = (low + high) / 2
        torch.manual_seed(seed)
        kept = cut(middle)
        share_now = bench.axes.count("macs", {a: len(u) for a, u in kept.items()}) / bench.axes.count("macs")
        if share_now <= share:
            high, best = middle, kept
        else:
            low = middle
    if best is None:
        raise SystemExit(f"Torch-Pruning's {name} does not reach {share} of the MACs")
    return bench.axes.plan(best)


def peer_gradients(name: str, bench: Bench) -> Iterator[dict[str, Tensor]]:
    """By parameter: the sum over all calibration batches for "taylor", of 16 images each for "hessian"."""
    model = copy.deepcopy(bench.model).eval()
    if name == "taylor":
        for x, y in bench.calibration:
            F.cross_entropy(model(x), y).backward()
        yield {key: value.grad for key, value in model.named_parameters()}  # type: ignore[misc]
    if name == "hessian":
        x, y = bench.calibration[0][0][:16], bench.calibration[0][1][:16]
        for loss in F.cross_entropy(model(x), y, reduction="none"):
            model.zero_grad()
            loss.backward(retain_graph=True)
            yield {key: value.grad.clone() for key, value in model.named_parameters()}  # type: ignore[union-attr]
