"""Least squares, compensation and folded means against numpy and the identities of their papers."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from cut_networks import REPAIRS, chain_net, cut, data, distance
from networks import ZOO
from secateur import allocate, criteria, repair, score, trace
from secateur.measure.moments import input_moments
from secateur.testing import awake
from secateur.testing import distance as apart


@pytest.mark.parametrize("name", ["least_squares", "compensation"])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_those_of_a_regression(name: str, bias: bool) -> None:
    model, x = chain_net(bias), torch.randn(60, 6, dtype=torch.float64)
    plan, small = cut(model, x, [0, 2, 3, 7])
    REPAIRS[name](model, small, [(x[:40], None), (x[40:], None)], plan=plan, ridge=0.0)
    with torch.no_grad():
        hidden, y = model[1](model[0](x))[:, [0, 2, 3, 7]].numpy(), model(x).numpy()
    design = np.c_[hidden, np.ones(60)] if bias else hidden
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(small[2].weight.detach().numpy(), expected[:4].T, atol=1e-8)
    if bias:
        np.testing.assert_allclose(small[2].bias.detach().numpy(), expected[4], atol=1e-8)


def test_the_closed_form_of_the_loss_is_the_measured_one() -> None:
    model, x = chain_net(), torch.randn(60, 6, dtype=torch.float64)
    kept = [1, 4, 5, 6]
    plan, small = cut(model, x, kept)
    known = input_moments(model, ["2"], [(x, None)])["2"].centred().xx
    repair.compensation(model, small, [(x, None)], plan=plan, ridge=0.0)
    weight = model[2].weight.data
    towards = known[kept] @ weight.T
    whole = torch.trace(weight @ known @ weight.T)
    loss = whole - torch.trace(towards.T @ torch.linalg.solve(known[kept][:, kept], towards))
    with torch.no_grad():
        measured = (model(x) - small(x)).square().sum(1).mean()
    torch.testing.assert_close(loss, measured)


@pytest.mark.parametrize("name", [name for name in REPAIRS if name != "mean_bias"])
def test_a_copy_that_goes_is_made_good(name: str) -> None:
    model, x = chain_net(), torch.randn(60, 6, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[9], model[0].bias[9] = model[0].weight[2], model[0].bias[2]
    plan, small = cut(model, x, list(range(9)))
    REPAIRS[name](model, small, [(x, None)], plan=plan)
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REPAIRS)
def test_where_nothing_was_cut_nothing_changes(name: str) -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    for plan in (None, axes.plan({})):
        small = deepcopy(model)
        REPAIRS[name](model, small, data(), plan=plan)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_bring_a_cut_network_closer_and_touch_no_other(name: str) -> None:
    """Through batch norm, a sum and flattening; layers without a bias use the batch norm behind them."""
    model = handmade.small()
    model.two.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    axes = trace(model, data(1)[0][0])
    free = {axis.units: axis.name for axis in axes.free}
    plan = axes.plan({free[8]: [0, 1, 2, 4, 5, 7], free[6]: [0, 1, 3, 4, 5]})
    small = plan.apply(model).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shapes = {key: value.shape for key, value in small.state_dict().items()}
    wrong = distance(model, deepcopy(small).eval())
    REPAIRS[name](model, small, data(), plan=plan)
    assert small.training
    assert distance(model, small.eval()) < wrong
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {key: value.shape for key, value in small.state_dict().items()} == shapes


@pytest.mark.parametrize("name", REPAIRS)
def test_a_constant_goes_into_the_batch_norm_behind(name: str) -> None:
    """Conv without bias, batch norm: every output keeps its mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5)).double().eval()
    plan, small = cut(model, data(1)[0][0], [0, 1, 2, 3, 4])
    REPAIRS[name](model, small, data(), plan=plan)
    assert small[2].bias is None
    with torch.no_grad():
        means = [torch.cat([net(x) for x, _ in data()]).mean((0, 2, 3)) for net in (model, small)]
    torch.testing.assert_close(*means)
    REPAIRS[name](model, small, data(), plan=plan)
    with torch.no_grad():
        again = torch.cat([small(x) for x, _ in data()]).mean((0, 2, 3))
    torch.testing.assert_close(again, means[0])


def test_rescaled_outputs_keep_their_variance() -> None:
    model, x = chain_net(), torch.randn(60, 6, dtype=torch.float64)
    plan, small = cut(model, x, [0, 1, 2])
    repair.compensation(model, small, [(x, None)], plan=plan, rescale=True)
    with torch.no_grad():
        torch.testing.assert_close(small(x).var(0), model(x).var(0))
        torch.testing.assert_close(small(x).mean(0), model(x).mean(0))


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("net", ZOO)
def test_repairs_run_on_the_zoo(net: str, name: str) -> None:
    """Those of one layer after another look at the dense inputs alone: a stream behind a norm may come out further away."""
    torch.manual_seed(0)
    build, example = ZOO[net]
    model, x = build().eval(), example()
    axes = trace(model, x)
    plan = allocate.uniform(axes, score(axes, criteria.l2(model)), 0.5)
    small = plan.apply(model)
    REPAIRS[name](model, small, [(x, None)], plan=plan)
    assert all(torch.isfinite(p).all() for p in small.parameters())
    if net not in ("tied", "transformer encoder") and name != "mean_bias":
        assert apart(model, small, x) <= apart(model, plan.apply(model), x)


class Residual(nn.Module):
    """stem, then x + norm(down(up(x))), then a head; `up` reads and the sum carries the shortcut's error."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.up, self.down = nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 5, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.head = nn.Linear(5, 2)

    def stream(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(shortcut, branch)."""
        x = self.squeeze(self.stem(x).relu())
        return x, self.norm(self.down(self.up(x).relu()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut, branch = self.stream(x)
        branch += shortcut
        return self.head(branch.relu().mean((2, 3)))


@pytest.mark.parametrize("norm", [True, False])
def test_the_end_of_a_branch_makes_good_the_error_of_its_shortcut(norm: bool) -> None:
    """Against a regression of Y2 + (Y1 - Y1') by numpy, through the batch norm's affine map."""
    torch.manual_seed(0)
    model = awake(Residual(norm)).double().eval()
    axes = trace(model, data(1)[0][0])
    free = {axis.units: axis.name for axis in axes.free}
    plan = axes.plan({free[6]: [0, 2, 5], free[7]: [0, 1, 3, 6]})
    small = plan.apply(model)
    repair.least_squares(model, small, data(), plan=plan, ridge=0.0)
    again = plan.apply(model)
    with torch.no_grad():
        x = torch.cat([x for x, _ in data()])
        (one, two), (now, _) = model.stream(x), small.stream(x)
        assert float((one - now).abs().max()) > 0.01, "an error to make good"
        hidden = small.up(now).relu().movedim(1, -1).flatten(0, -2).numpy()
        target = (two + one - now).movedim(1, -1).flatten(0, -2)
        if norm:
            target = (target - model.norm.bias) / model.norm.weight * (model.norm.running_var + model.norm.eps).sqrt()
        expected = np.linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], target.numpy(), rcond=None)[0][:-1].T
        alive = hidden.var(0) > 0
        np.testing.assert_allclose(small.down.weight.flatten(1).numpy()[:, alive], expected[:, alive], atol=1e-8)
        assert alive.sum() > 1
        torch.testing.assert_close(
            small.norm.weight if norm else small.up.weight, again.norm.weight if norm else again.up.weight
        )
        plain = plan.apply(model)
        repair.least_squares(model, plain, data(), plan=plan, residual=False)
        errors = [float(((one + two) - sum(net.stream(x))).square().mean()) for net in (small, plain)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("name", ["least_squares", "compensation"])
def test_a_sample_of_rows_is_nearly_as_good_and_a_large_one_is_all(name: str) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    free = {axis.units: axis.name for axis in axes.free}
    plan = axes.plan({free[8]: [0, 1, 2, 4, 5, 7], free[6]: [0, 1, 3, 4, 5]})
    smalls = {}
    for sample in (None, 10_000, 240):
        smalls[sample] = plan.apply(model)
        REPAIRS[name](model, smalls[sample], data(), plan=plan, sample=sample)
    whole, same, part = smalls.values()
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(whole.two.weight, part.two.weight)
    wrong = distance(model, plan.apply(model))
    assert distance(model, part) < (distance(model, whole) + wrong) / 2
