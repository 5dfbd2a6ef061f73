"""A small residual network of digits with batches and plans, and hooks of the channel-pruning papers on it, for their tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.testing import awake
from secateur.train import Compactors, CompactorSettings


def network(seed: int = 0) -> tuple[nn.Module, Axes]:
    torch.manual_seed(seed)
    model = awake(zoo.digits_resnet(widths=(4, 6, 8))).double()
    return model, trace(model, torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def data(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(2)
    return [(torch.randn(10, 1, 8, 8, generator=draw).double(), torch.randint(10, (10,), generator=draw)) for _ in range(count)]


def smallest(axes: Axes, keep: float = 0.5) -> Callable[[nn.Module], Plan]:
    return lambda model: allocate.uniform(axes, score(axes, criteria.l1(model, group=False)), keep)


def backward(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x, y = data(1)[0]
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def cut_of(plan: Plan, axis: str):  # type: ignore[no-untyped-def]
    return next(cut for cut in plan.steps[0].cuts if cut.axis == axis)


def compactors(model: nn.Module, axes: Axes, **changes: object) -> Compactors:
    named = {"keep": {"macs": 0.6}, "start": 0, "every": 1, "more": 2, "lr": 0.1, "penalty": 0.5} | changes
    return Compactors(model, axes, CompactorSettings(**named))  # type: ignore[arg-type]
