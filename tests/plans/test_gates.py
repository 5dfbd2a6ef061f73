"""Gates of real value against the preview, the cut, and finite differences."""

from copy import deepcopy

import pytest
import torch

import handmade
from networks import ZOO
from networks_vision import VISION
from secateur import trace
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.core.running import flat
from secateur.surgery import Gated, on_batch_statistics
from secateur.testing import awake, random_plan

EVERY = {**ZOO, **VISION}


def gates_of(plan, axes):
    kept = {cut.axis: cut.kept for cut in plan.steps[0].cuts}
    return {
        axis.name: torch.zeros(axis.units).index_fill(0, torch.tensor(kept.get(axis.name, range(axis.units))), 1)
        for axis in axes.free
    }


def tensors(out):
    return [t for t in flat(out) if isinstance(t, torch.Tensor)]


def close(one, two):
    for a, b in zip(tensors(one), tensors(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_gates_of_zero_and_one_are_the_preview_and_the_cut(name):
    torch.manual_seed(0)
    build, example = EVERY[name]
    model, x = awake(build()).eval(), example()
    axes = trace(model, x)
    plan = random_plan(axes, seed=4)
    before = deepcopy(model.state_dict())
    gated = Gated(axes.free, model).eval()
    gates = {name: gate.requires_grad_() for name, gate in gates_of(plan, axes).items()}
    out = gated(gates, x)
    with torch.no_grad():
        arguments = x if isinstance(x, tuple) else (x,)
        close([t.detach() for t in tensors(out)], plan.preview(model).eval()(*arguments))
        close([t.detach() for t in tensors(out)], plan.apply(model)(*arguments))
        close(gated({}, x), model(*arguments))
    sum(t.square().mean() for t in tensors(out) if t.requires_grad).backward()
    slopes = [gate.grad for gate in gates.values() if gate.grad is not None]  # a head for training alone has none
    assert all(torch.isfinite(slope).all() for slope in slopes)
    assert any(slope.abs().sum() > 0 for slope in slopes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_slope_by_a_gate_is_that_of_scaled_readers():
    model, x = handmade.small(), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    axes = handmade.axes(model)
    gates = {axis.name: torch.full((axis.units,), 0.7, dtype=torch.float64, requires_grad=True) for axis in axes.free}
    Gated(axes.free, model).eval()(gates, x).square().sum().backward()

    def value(step):
        scaled = deepcopy(model)
        factor = torch.full((8,), 0.7, dtype=torch.float64)
        factor[3] += step
        scaled.two.weight.data *= factor[:, None, None] * 1.0
        scaled.three.weight.data *= factor[:, None, None]
        scaled.head.weight.data *= 0.7
        with torch.no_grad():
            return scaled(x).square().sum()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(gates["one"].grad[3], slope, rtol=1e-6, atol=1e-8)


def test_a_gate_on_a_normalised_width_has_the_slope_of_a_weighted_norm():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    torch.manual_seed(0)
    model, x = awake(Normed()).double().eval(), torch.randn(4, 3, dtype=torch.float64)
    axes = trace(model, x)
    assert [axis.exact for axis in axes.free] == [False]
    gated = Gated(axes.free, model).eval()
    gate = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: gated({axes.free[0].name: g}, x), gate)
    y = model.a(x)
    mean = (gate * y).sum(1, keepdim=True) / gate.sum()
    variance = (gate * (y - mean) ** 2).sum(1, keepdim=True) / gate.sum()
    expected = ((y - mean) / (variance + 1e-5).sqrt() * model.norm.weight + model.norm.bias) * gate @ model.b.weight.T
    torch.testing.assert_close(gated({axes.free[0].name: gate}, x), expected + model.b.bias)


def test_batch_statistics_leave_the_model_alone():
    model, x = handmade.small(), torch.randn(50, 3, 4, 4, dtype=torch.float64)
    gated = on_batch_statistics(Gated(handmade.axes(model).free, model))
    assert not gated.model.drop.training
    before = deepcopy(model.state_dict())
    out = gated({}, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.norm.train()
    model.last.train()
    torch.testing.assert_close(out, model(x))


def test_weights_given_instead_take_the_gradient():
    model, x = handmade.small(), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    gated = Gated(handmade.axes(model).free, model).eval()
    weight = (model.two.weight.detach() * 2).requires_grad_()
    out = gated({}, x, {"two.weight": weight})
    model.two.weight.data *= 2
    torch.testing.assert_close(out, model(x))
    out.sum().backward()
    assert weight.grad.abs().sum() > 0


def test_gates_for_another_model_are_refused():
    axis = Axis("one", "channel", 9, (Slot("two.weight", 1, role="read"),))
    with pytest.raises(SecateurError, match=r"axis 'one': found no entry 8 in dim 1 of 'two\.weight'"):
        Gated([axis], handmade.small())
