"""Criteria for networks that were not trained yet, against finite differences and written-out sums."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import handmade
from secateur import criteria, trace
from secateur.core.errors import SecateurError
from secateur.criteria.snip import mean_gradients
from secateur.recipes import zoo
from secateur.recipes.choose import choose
from secateur.recipes.schema import Prune
from secateur.surgery import Gated, on_batch_statistics

LOSS = nn.CrossEntropyLoss()


def data(batches=1):
    return handmade.data(batches, 9)


def loss_at(model, gates, x, y, scale=1.0):
    gated = on_batch_statistics(Gated(handmade.axes(model).free, model))
    return LOSS(gated(gates, x) / scale, y)


@pytest.mark.parametrize("axis", ["one", "two"])
def test_snip_is_the_slope_by_a_gate(axis):
    model, (x, y) = handmade.small(), data()[0]
    where = handmade.axes(model)[axis]
    expected = []
    with torch.no_grad():
        for unit in range(where.units):
            step = torch.zeros(where.units, dtype=torch.float64)
            step[unit] = 1e-5
            high, low = (loss_at(model, {axis: 1 + sign * step}, x, y) for sign in (1, -1))
            expected.append(abs(float(high - low)) / 2e-5)
    np.testing.assert_allclose(criteria.snip(model, [(x, y)], LOSS)(where), expected, rtol=1e-5, atol=1e-9)


def test_the_writers_of_a_batch_norm_have_no_slope_but_the_readers_have():
    """Why the gate is on the readers."""
    model = handmade.small()
    model.one.bias.data.zero_()
    axis = handmade.axes(model)["one"]
    (gradient,) = mean_gradients(model, [model.one.weight], data(), LOSS, None)
    assert (model.one.weight * gradient).sum((1, 2, 3)).abs().max() < 1e-5
    assert criteria.snip(model, data(), LOSS)(axis).median() > 0.1


def test_snip_takes_the_mean_over_its_batches():
    model = handmade.small()
    axis = handmade.axes(model)["one"]
    one = criteria.snip(model, data(2), LOSS)(axis)
    assert torch.equal(one, criteria.snip(model, data(2)[:1], LOSS)(axis)), "one batch unless told"
    assert not torch.allclose(one, criteria.snip(model, data(2), LOSS, limit=2)(axis))


@pytest.mark.parametrize("axis", ["one", "two"])
def test_grasp_is_the_slope_of_half_the_squared_gradient_by_a_gate(axis):
    """w * H g summed over the readers is the derivative of |g|^2 / 2 along the readers' own weights."""
    model, (x, y) = handmade.small(), data()[0]
    where = handmade.axes(model)[axis]
    twin = on_batch_statistics(deepcopy(model))
    named = {name: p.detach() for name, p in twin.named_parameters()}
    readers = {"one": ("two.weight", "three.weight"), "two": ("head.weight",)}[axis]

    def flow(step):
        live = {name: value.clone() for name, value in named.items()}
        for name in readers:
            if name == "head.weight":
                live[name].view(10, 6, 16)[:, 2] *= 1 + step
            else:
                live[name][:, 2] *= 1 + step
        live = {name: value.requires_grad_() for name, value in live.items()}
        out = functional_call(twin, live, (x,))
        slopes = torch.autograd.grad(LOSS(out / 200, y), list(live.values()))
        return sum(g.square().sum() for g in slopes) / 2

    expected = float(flow(1e-5) - flow(-1e-5)) / 2e-5
    found = criteria.grasp(model, [(x, y)], LOSS)(where)[2]
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_synflow_of_a_linear_network_is_the_sum_over_paths():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    model[0].weight.data = torch.randn(4, 3)
    model[2].weight.data = torch.randn(2, 4)
    axes = trace(model, torch.zeros(1, 3))
    first, second = model[0].weight.detach().double().abs(), model[2].weight.detach().double().abs()
    expected = [sum(first[u, i] * second[o, u] for i in range(3) for o in range(2)) for u in range(4)]
    found = criteria.synflow(model, torch.randn(5, 3))(axes.free[0])
    torch.testing.assert_close(found, torch.stack(expected))


def test_every_axis_passes_the_same_flow_on():
    """Without biases and with norms that have seen nothing: why SynFlow as it is leaves all axes of a chain equally wide."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 9, 1), nn.Flatten(), nn.Linear(324, 3))
    for layer in (model[0], model[3], model[5]):
        layer.bias.data.zero_()
    axes = trace(model, torch.zeros(1, 1, 8, 8))
    flow = criteria.synflow(model, torch.zeros(1, 1, 8, 8))
    one, two = (flow(axis).sum() for axis in axes.free)
    torch.testing.assert_close(one, two)
    costs = [1 - axes.count("macs", {axis.name: axis.units - 1}) / axes.count("macs") for axis in axes.free]
    for axis, cost in zip(axes.free, costs, strict=True):
        torch.testing.assert_close(criteria.per_cost(axes, flow)(axis), flow(axis) / cost)


def test_rounds_of_synflow_meet_the_budget_keep_the_floor_and_need_no_data():
    """In ten rounds a tenth of the units would be far less than a tenth of those there were at first."""
    torch.manual_seed(0)
    model, x = zoo.digits_resnet(widths=(8, 16, 32)), torch.zeros(1, 1, 8, 8)
    prune = Prune(keep={"macs": 0.15}, criterion="synflow", normalise="none", floor=0.2, rounds=10)
    axes, plan = choose(model, x, prune)
    units = {axis.name: axis.units for axis in axes.free}
    widths = units | {name: after for name, (_, after) in plan.widths().items()}
    assert axes.count("macs", widths) <= 0.15 * axes.count("macs")
    assert all(widths[name] >= 0.2 * units[name] for name in units)
    assert any(widths[name] == -(-units[name] // 5) for name in units), "the floor was met"
    batch = (torch.randn(8, 1, 8, 8), torch.randint(10, (8,)))
    assert choose(model, x, prune, batches=[batch], loss=LOSS)[1] == plan, "norms are not re-estimated between rounds"


def test_three_sp_divides_by_what_a_unit_costs():
    model = handmade.small()
    axes = handmade.axes(model)
    plain, divided = criteria.snip(model, data(), LOSS), criteria.three_sp(model, axes, data(), LOSS)
    for name, share in (
        ("one", 1 - handmade.macs(7, 6) / handmade.macs(8, 6)),
        ("two", 1 - handmade.macs(8, 5) / handmade.macs(8, 6)),
    ):
        torch.testing.assert_close(divided(axes[name]), plain(axes[name]) / share)


def test_what_cannot_be_scored_is_said():
    with pytest.raises(SecateurError, match="found no batch"):
        criteria.snip(handmade.small(), [], LOSS)
    with pytest.raises(SecateurError, match="GraSP scores: found no batch"):
        criteria.grasp(handmade.small(), [], LOSS)
    axis = handmade.axes(handmade.small())["head"]
    with pytest.raises(SecateurError, match="snip of axis 'head': found no parameter that reads it; give a default"):
        criteria.snip(handmade.small(), data(), LOSS)(axis)
    huge = handmade.small()
    huge.two.weight.data *= 1e308
    with pytest.raises(SecateurError, match="SynFlow scores: found a flow of inf"):
        criteria.synflow(huge, data()[0][0])
