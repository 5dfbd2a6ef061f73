"""Both sides of a cut fitted together: against a dense solution of the linearised problem, and never worse than one side."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.criteria.loss_curves import falls, interpolated
from secateur.recipes import zoo
from secateur.repair.linked import linked
from secateur.repair.straight import Pair, Straight, solution, straight, writers
from secateur.testing import awake


class Between(nn.Module):
    """Two layers, with something between."""

    def __init__(self, one: nn.Module, between: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.between, self.two = one, between, two

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.between(self.one(x)))


def linear(between: nn.Module | None = None, bias: bool = True) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = Between(nn.Linear(5, 8), between or nn.ReLU(), nn.Linear(8, 4, bias=bias)).double()
    return net, torch.randn(90, 5, dtype=torch.float64)


def convolution() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    inside = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    net = Between(nn.Conv2d(2, 6, 3, padding=1, bias=False), inside, nn.Conv2d(6, 3, 3, stride=2)).double()
    return awake(net).eval(), torch.randn(10, 2, 7, 7, dtype=torch.float64)


def cut(net: nn.Module, x: torch.Tensor) -> Any:
    axes = trace(net, x[:2])
    return axes.plan({axis.name: range(axis.units // 2) for axis in axes.free})


def error(one: nn.Module, two: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((one(x) - two(x)).square().mean())


@pytest.mark.parametrize("make", [linear, convolution, lambda: linear(nn.GELU()), lambda: linear(bias=False)])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_error_is_below_that_of_one_side(make: Any, rounds: int) -> None:
    net, x = make()
    plan = cut(net, x)
    batches = [(part, None) for part in x.split(len(x) // 2)]
    one, two = plan.apply(net), plan.apply(net)
    repair.least_squares(net, one, batches, plan=plan)
    repair.two_sided(net, two, batches, plan=plan, rounds=rounds)
    if rounds:
        assert error(net, two, x) < 0.98 * error(net, one, x)
    else:
        torch.testing.assert_close(two.state_dict(), one.state_dict())


def test_more_rounds_and_more_iterations_do_no_harm() -> None:
    net, x = convolution()
    plan = cut(net, x)
    found = []
    for rounds in range(5):
        small = plan.apply(net)
        repair.two_sided(net, small, [(x, None)], plan=plan, rounds=rounds)
        found.append(error(net, small, x))
    assert found == sorted(found, reverse=True)


def test_of_a_whole_network_no_layer_is_worse_in_its_turn() -> None:
    """With a single pair the turn is the whole; in a residual network the first cut block is the first turn."""
    torch.manual_seed(0)
    net = awake(zoo.digits_resnet(widths=(4, 8, 8))).double().eval()
    x = torch.randn(40, 1, 8, 8, dtype=torch.float64)
    axes = trace(net, x[:2])
    inner = [axis for axis in axes.free if axis.name.endswith("conv1") and axis.name != "conv1"]
    assert inner
    for axis in inner:
        plan = axes.plan({axis.name: range(axis.units // 2)})
        one, two = plan.apply(net), plan.apply(net)
        repair.least_squares(net, one, [(x, None)], plan=plan)
        repair.two_sided(net, two, [(x, None)], plan=plan)
        norm = net.get_submodule(f"{axis.name.rpartition('.')[0]}.bn2")
        before, *found = (outputs_of(model, norm_of(model, net, norm), x) for model in (net, one, two))
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None]
        apart = [float(((before - now) / scale).square().mean()) for now in found]
        assert apart[1] < apart[0]


def norm_of(model: nn.Module, net: nn.Module, norm: nn.Module) -> nn.Module:
    return model.get_submodule(next(name for name, module in net.named_modules() if module is norm))


def outputs_of(model: nn.Module, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("make", [linear, convolution])
def test_the_solution_is_that_of_the_dense_linear_system(make: Any) -> None:
    """The Jacobian is that of the network by autograd, the system solved by numpy."""
    net, x = make()
    plan = cut(net, x)
    small = plan.apply(net)
    (each,) = linked(net, small, [(x, None)], plan)
    pair = Pair(writers(plan, small, [(x, None)])["two"], each)
    part = straight(small, pair, x)
    assert isinstance(part, Straight)
    torch.manual_seed(1)
    with torch.no_grad():
        lacking = torch.randn_like(part(pair, tuple(torch.zeros(s).double() for s in shapes(pair))))  # type: ignore[arg-type]
    found = solution(pair, [part], [lacking], iterations=2000, damping=1e-3, sample=None)

    sizes = [int(np.prod(shape)) for shape in shapes(pair)]
    before = pair.values()

    def moved(flat: torch.Tensor) -> torch.Tensor:
        change = [piece.reshape(shape) for piece, shape in zip(flat.split(sizes), shapes(pair), strict=True)]
        hidden_weight = pair.writer.layer.weight.detach() + change[0].reshape(pair.writer.layer.weight.shape)
        weight = each.layer.weight.detach() + change[2].reshape(each.layer.weight.shape)
        if isinstance(each.layer, nn.Linear):
            a = x @ hidden_weight.T + pair.writer.layer.bias.detach() + change[1]
            return small.between(a) @ weight.T + each.layer.bias.detach() + change[3]
        a = torch.conv2d(x, hidden_weight, padding=1) + change[1][:, None, None]
        y = torch.conv2d(torch.relu(small.between[0](a)), weight, each.layer.bias.detach() + change[3], stride=2)
        return y.flatten(2).transpose(1, 2).flatten(0, 1)

    jacobian = torch.func.jacrev(moved)(torch.zeros(sum(sizes), dtype=torch.float64)).detach().flatten(0, 1).numpy()
    prior = np.zeros(sum(sizes))
    covariances = [
        np.cov(patches(layer, value).T, bias=True) for layer, value in ((pair.writer.layer, part.x), (each.layer, part.h))
    ]
    means = [1e-3 * np.trace(c) / len(c) for c in covariances]
    weight = (
        each.layer.weight.detach().flatten(2).square().sum((0, 2))
        if each.layer.weight.dim() > 2
        else each.layer.weight.detach().square().sum(0)
    )
    slope = part.slope.square().transpose(0, 1).flatten(1).mean(1)
    prior[: sizes[0]] = np.repeat((weight * slope).numpy() * means[0], sizes[0] // sizes[1])
    prior[sizes[0] + sizes[1] : sizes[0] + sizes[1] + sizes[2]] = means[1]
    system = jacobian.T @ jacobian / len(lacking) + np.diag(prior)
    expected = np.linalg.solve(system, jacobian.T @ lacking.flatten().numpy() / len(lacking))
    np.testing.assert_allclose(torch.cat([piece.flatten() for piece in found]).numpy(), expected, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.values(), strict=True))


def shapes(pair: Pair) -> list[tuple[int, ...]]:
    layers = (pair.writer.layer, pair.reader.layer)
    return [shape for layer in layers for shape in (tuple(layer.weight.flatten(1).shape), (len(layer.weight),))]


def patches(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    if isinstance(layer, nn.Linear):
        return x.numpy()
    found = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return found.transpose(1, 2).flatten(0, 1).numpy()


class Twice(nn.Module):
    """The units are written by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.two = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two((self.one(x) + self.other(x)).relu())


@pytest.mark.parametrize("make", [lambda: linear(nn.LayerNorm(8))[0], Twice])
def test_elsewhere_it_is_least_squares(make: Any) -> None:
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(50, 5, dtype=torch.float64)
    axes = trace(net, x[:2])
    plan = axes.plan({axis.name: range(axis.units - 3) for axis in axes.free})
    assert plan
    one, two = plan.apply(net), plan.apply(net)
    repair.least_squares(net, one, [(x, None)], plan=plan)
    repair.two_sided(net, two, [(x, None)], plan=plan)
    torch.testing.assert_close(two.state_dict(), one.state_dict())


@pytest.mark.parametrize(
    "given", [{"rounds": -1}, {"iterations": 1.5}, {"damping": 0}, {"damping": float("nan")}, {"rounds": True}]
)
def test_options_that_make_no_sense_are_told(given: dict[str, Any]) -> None:
    net, x = linear()
    plan = cut(net, x)
    with pytest.raises(SecateurError, match="a fit of both sides"):
        repair.two_sided(net, plan.apply(net), [(x, None)], plan=plan, **given)


def test_falls_are_those_of_the_convex_hull() -> None:
    curve = [9.0, 5.0, 4.5, 1.0, 0.9]  # the hull passes below 4.5
    np.testing.assert_allclose(falls(curve).numpy(), [8, 4, 2, 2, 0.1], rtol=1e-6)
    assert list(falls(curve)) == sorted(falls(curve).tolist(), reverse=True)
    for flat in ([3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.3, 0.1, 0.1 + 1e-17]):
        values = falls(flat)
        assert (values > 0).all()
        assert (values.diff() < 0).all()  # in the order of the criterion, not of their numbers
    np.testing.assert_allclose(interpolated({2: 8.0, 4: 2.0}, 4), [8, 8, 4, 2])
    assert interpolated({1: 1.0, 2: 3.0, 3: 2.0}, 3) == pytest.approx([3, 3, 2])  # more units never cost more


def test_under_a_budget_the_sum_of_rises_is_the_least_there_is() -> None:
    """Against every pair of widths, for losses that are convex."""
    net = handmade.small()
    axes = handmade.axes(net)
    steep = {axis.name: 1.0 + 2 * number for number, axis in enumerate(axes.free)}

    def rise(widths: dict[str, int]) -> float:
        return sum(steep[axis.name] * 4.0 ** (-widths.get(axis.name, axis.units) / axis.units * 3) for axis in axes.free)

    def judge(plan: Any) -> float:
        return rise({name: after for name, (_, after) in plan.widths().items()})

    shares = [k / 12 for k in range(1, 12)]
    scores = score(axes, criteria.loss_curves(axes, criteria.l2(net), judge, shares=shares, least=1e-9))
    plan = allocate.budget(axes, scores, {"params": 0.6}, normalise="none", floor=0.01)
    ranges = [range(1, axis.units + 1) for axis in axes.free]
    names = [axis.name for axis in axes.free]
    fits = [w for w in product(*ranges) if axes.count("params", dict(zip(names, w, strict=True))) <= 0.6 * axes.count("params")]
    best = min(rise(dict(zip(names, w, strict=True))) for w in fits)
    assert judge(plan) <= 1.25 * best
    with pytest.raises(SecateurError, match="curves of the loss"):
        criteria.loss_curves(axes, criteria.l2(net), judge, shares=(0.0,))


def test_a_batch_norm_behind_the_reader_is_as_if_folded_into_it() -> None:
    """The writer is moved for all outputs, and they count as they leave the norm, however large they were before."""
    net, x = convolution()
    with torch.no_grad():
        folded = Between(net.one, net.between, nn.Conv2d(6, 3, 3, stride=2)).double().eval()
        norm = nn.BatchNorm2d(3).double().eval()
        norm.weight.copy_(torch.tensor([30.0, -0.5, 0.02]))
        norm.running_var.copy_(torch.tensor([2.0, 0.3, 5.0]))
        normed = Between(net.one, net.between, nn.Sequential(net.two, norm)).double().eval()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded.two.weight.copy_(net.two.weight * scale[:, None, None, None])
        folded.two.bias.copy_(net.two.bias * scale)
    found = []
    for each in (folded, normed):
        plan = cut(each, x)
        small = plan.apply(each)
        repair.two_sided(each, small, [(x, None)], plan=plan, ridge=0.0)
        found.append(small(x))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-8)
