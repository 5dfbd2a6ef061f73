"""Every criterion and allocator on every network of the zoo: exact counts after a real cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import ZOO
from secateur import allocate, criteria, measure, score, trace
from secateur.core.axes import Axes
from secateur.core.protocols import Criterion

FEATURES = ("hrank", "chip", "apoz", "thinet", "lasso", "cap", "elimination")


def features(name: str, model: nn.Module, x: Any) -> Criterion:
    """A criterion of batches alone."""
    return getattr(criteria, name)(model, [(x, None)], default=criteria.l2(model))


FACTORIES = {
    "random": lambda model, x: criteria.random(model),
    "l1": lambda model, x: criteria.l1(model),
    "l2": lambda model, x: criteria.l2(model),
    "bn_scale": lambda model, x: criteria.bn_scale(model, default=criteria.l2(model)),
    "fpgm": lambda model, x: criteria.fpgm(model, group=True),
    "taylor": lambda model, x: criteria.taylor(model, [(x, None)], energy),
    "rfp": lambda model, x: criteria.rfp(model, group=True),
    "lamp": lambda model, x: criteria.lamp(model),
    "nisp": lambda model, x: criteria.nisp(model, trace(model, x)),
    "obd": lambda model, x: criteria.obd(model, [(x, None)], energy),
    "group_fisher": lambda model, x: criteria.group_fisher(model, [(x, None)], energy, default=criteria.l2(model)),
    "snip": lambda model, x: criteria.snip(model, [(x, None)], energy, default=criteria.l2(model)),
    "grasp": lambda model, x: criteria.grasp(model, [(x, None)], energy, default=criteria.l2(model)),
    "synflow": lambda model, x: criteria.synflow(model, x, default=criteria.l2(model)),
    **{name: lambda model, x, name=name: features(name, model, x) for name in FEATURES},
}


def energy(output: Any, _: None) -> Tensor:
    """A loss for any output."""
    tensors = output if isinstance(output, (tuple, list)) else [output]
    return sum((tensor.square().mean() for tensor in tensors), torch.zeros(()))


@pytest.fixture(scope="module", params=ZOO)
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, Axes]:
    """A network of the zoo, its example, its axes."""
    torch.manual_seed(0)
    build, example = ZOO[request.param]
    model = build().eval()
    return model, example(), trace(model, example())


@pytest.mark.parametrize("name", FACTORIES)
def test_scores_are_finite_and_the_cut_meets_its_budget(name: str, traced: tuple[nn.Module, Any, Axes]) -> None:
    model, x, axes = traced
    scores = score(axes, FACTORIES[name](model, x))
    least = {axis.name: 1 for axis in axes.free}
    keep = {what: (1 + axes.count(what, least) / axes.count(what)) / 2 for what in ("macs", "params")}
    plan = allocate.budget(axes, scores, keep, floor=0.0)
    small, dense = measure.facts(plan.apply(model), x), measure.facts(model, x)
    widths = {axis: after for axis, (_, after) in plan.widths().items()}
    for what, share in keep.items():
        assert getattr(dense, what) == axes.count(what), "the dense count is that of the flop counter"
        assert getattr(small, what) == axes.count(what, widths), "what was promised is what was cut"
        assert getattr(small, what) <= share * getattr(dense, what)
    for axis in axes.free:
        more = {**widths, axis.name: widths.get(axis.name, axis.units) + 1}
        if more[axis.name] <= axis.units:
            assert any(axes.count(what, more) > share * axes.count(what) for what, share in keep.items())


def test_uniform_and_global_cut_what_they_say(traced: tuple[nn.Module, Any, Axes]) -> None:
    model, x, axes = traced
    scores = score(axes, criteria.l2(model))
    units = sum(axis.units for axis in axes.free)
    for plan in (allocate.uniform(axes, scores, 0.5), allocate.global_(axes, scores, 0.75, floor=0.0)):
        small = plan.apply(model)
        widths = {axis: after for axis, (_, after) in plan.widths().items()}
        assert measure.facts(small, x).macs == axes.count("macs", widths)
        assert 0 < measure.peak_memory(small, x) <= measure.peak_memory(model, x)
    assert sum(widths.get(axis.name, axis.units) for axis in axes.free) == 3 * units // 4
