"""Scoring Nets and their tasks on the hand-made network, for the tests of the Scoring Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from secateur import allocate, criteria, score
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Slopes, Task, weighed

KINDS = {
    "stats": NetSettings(),
    "raw": NetSettings(encoder="raw"),
    "stats and gradients": NetSettings(gradients=True),
    "raw and gradients": NetSettings(encoder="raw", gradients=True),
    "relative": NetSettings(relative=True),
    "relative and gradients": NetSettings(relative=True, gradients=True),
    "attention": NetSettings(context="attention"),
    "no context": NetSettings(context="none"),
    "prior": NetSettings(prior="l1"),
    "prior and gradients": NetSettings(prior="l1", gradients=True),
    "prior of raw": NetSettings(prior="l1", encoder="raw"),
    "flows": NetSettings(prior="flows", relative=True),
    "flows of raw": NetSettings(prior="flows", encoder="raw"),
}


SHORT = ScorerSettings(stages=(ScorerStage(epochs=2),), limit=3)


def data(batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    return handmade.data(batches, 12)


def budget(axes: Axes, scores: Any, share: float) -> Plan:
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.0)


def uniform(axes: Axes, scores: Any, share: float) -> Plan:
    return allocate.uniform(axes, scores, share)


def fresh(settings: NetSettings, seed: int = 0) -> ScoringNet:
    """A net whose head is awake: as it is built, only norms count."""
    torch.manual_seed(seed)
    net = ScoringNet(settings).eval()
    nn.init.normal_(net.head.weight, std=0.3)
    nn.init.normal_(net.twin.weight, std=0.1)
    if settings.prior != "none":
        net.twin.weight.data.abs_()
    return net


def scores_of(net: ScoringNet, model: nn.Module, axes: Axes) -> dict[str, Tensor]:
    return score(axes, net.on(model, axes, data(), F.cross_entropy))


def task(model: nn.Module, allocator: Any = budget) -> Task:
    return Task(model, handmade.axes(model), data(), F.cross_entropy, allocator)  # type: ignore[arg-type]


def scored(name: str, batches: Any, loss: Any = F.cross_entropy, **args: Any) -> Callable[[nn.Module], Any]:
    """The criterion of that name made on `batches`, and asked."""

    def act(model: nn.Module) -> Any:
        axes = handmade.axes(model)
        if name == "slopes":
            return Slopes(model, batches, loss, **args)
        if name == "weighed":
            return weighed(criteria.random(model), replace(task(model, uniform), batches=batches, loss=loss), 0.5, **args)
        given = (axes, batches, loss) if name == "three_sp" else (batches, loss)
        return score(axes, getattr(criteria, name)(model, *given, **args))

    return act
