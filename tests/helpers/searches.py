"""Networks to search over, one with units that can go and a layer that cannot, and what tests of searches ask of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from secateur import criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.search import AdaptiveSettings, previewing
from secateur.testing import awake

SETTINGS = AdaptiveSettings(step=0.25, trial=1e-6, running=1e-5)


def redundant() -> tuple[nn.Module, torch.Tensor]:
    """Layer 0 of 8 units with 5 that are zero; layer 2 of 6 units, none of which can go; double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    with torch.no_grad():
        model[0].weight[[0, 2, 3, 5, 7]] = 0  # type: ignore[operator]
        model[0].bias[[0, 2, 3, 5, 7]] = 0  # type: ignore[operator]
        model[2].bias.fill_(3)  # type: ignore[operator]
        model[4].weight.copy_(torch.eye(6) * 2)  # type: ignore[operator]
    return model, torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def error_of(model: nn.Module, x: torch.Tensor) -> Callable[[nn.Module], float]:
    """Mean squared distance of outputs to those of `model`."""
    with torch.no_grad():
        target = model(x)

    def error(trial: nn.Module) -> float:
        with torch.no_grad():
            return float((trial(x) - target).square().mean())

    return error


def setting() -> tuple[nn.Module, Axes, dict[str, torch.Tensor], Callable[[Plan], float]]:
    model, x = redundant()
    axes = trace(model, x)
    return model, axes, score(axes, criteria.l1(model, group=False)), previewing(model, error_of(model, x))


def kept(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {cut.axis: cut.kept for step in plan.steps for cut in step.cuts if len(cut.kept) < cut.units}


def digits(double: bool = True) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small residual network and random images with labels."""
    torch.manual_seed(0)
    model = awake(zoo.digits_resnet(widths=(4, 6, 8))).eval()
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 1, 8, 8, generator=draw) for size in (12, 12, 5)]
    batches = [(x.double() if double else x, torch.randint(10, (len(x),), generator=draw)) for x in images]
    return (model.double() if double else model), batches


def mean_loss(batches: list[tuple[torch.Tensor, torch.Tensor]]):  # type: ignore[no-untyped-def]
    def evaluate(trial: nn.Module) -> float:
        with torch.no_grad():
            total = sum(float(F.cross_entropy(trial(x), y)) * len(y) for x, y in batches)
        return total / sum(len(y) for _, y in batches)

    return evaluate
