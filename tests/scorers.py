"""Scoring Nets and their tasks on the hand-made network, for the tests of the Scoring Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from secateur import allocate, score
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Task

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
