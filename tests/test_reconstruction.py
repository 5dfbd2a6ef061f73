"""Least squares, compensation and folded means against numpy and the identities of their papers."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from networks import ZOO
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.factor import Product
from secateur.core.plan import factor, mask, split
from secateur.core.split import blocks_of
from secateur.measure import moments
from secateur.measure.layers import is_matrix, matrix, outputs, rows
from secateur.measure.moments import input_moments, paired_moments
from secateur.recipes import zoo
from secateur.surgery import fingerprint, shapes_after
from secateur.testing import awake

REPAIRS = {
    "least_squares": repair.least_squares,
    "compensation": repair.compensation,
    "compensation rescaled": partial(repair.compensation, rescale=True),
    "mean_bias": repair.mean_bias,
    "two_sided": repair.two_sided,
}


def data(batches: int = 4, size: int = 30, seed: int = 3) -> list[tuple[torch.Tensor, None]]:
    """Inputs of the hand-made network."""
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, 4, 4, dtype=torch.float64, generator=draw), None) for _ in range(batches)]


LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (4, 7, 5)),
    (nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (4, 2, 9)),
    (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), bias=False), (4, 2, 5, 6)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (4, 2, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_layer_is_its_rows_times_its_matrix(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    expected = rows(layer, x) @ matrix(layer).T + (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(outputs(layer, layer(x)), expected)
    assert is_matrix(layer)


def test_moments_of_own_outputs_are_those_of_a_pass() -> None:
    model = handmade.small()
    model.two.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    names = ["one", "two", "head"]
    one, two = input_moments(model, names, data()), paired_moments(model, deepcopy(model), names, data())
    for name in names:
        for part in ("x", "y", "xx", "xy"):
            torch.testing.assert_close(getattr(one[name], part), getattr(two[name], part))
    x = np.concatenate([rows(model.one, x).numpy() for x, _ in data()])
    np.testing.assert_allclose(one["one"].centred().xx, np.cov(x.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("room", [1, 50_000, 1 << 28])
def test_moments_layer_by_layer_are_those_of_one_pass_in_as_many_passes_as_there_is_room_for(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, names, passes = handmade.small(), ["one", "two", "head"], []
    monkeypatch.setattr(moments, "AT_ONCE", room)
    whole = moments.input_moments

    def counted(model: nn.Module, group: list[str], *args: Any, **options: Any) -> dict[str, moments.Moments]:
        passes.append(group)
        return whole(model, group, *args, **options)

    monkeypatch.setattr(moments, "input_moments", counted)
    found = dict(moments.moments_of_each(model, names, data(), sample=50))
    assert list(found) == names
    assert [len(group) for group in passes] == {1: [1, 1, 1], 50_000: [2, 1], 1 << 28: [3]}[room]
    for name, known in whole(model, names, data(), sample=50).items():
        torch.testing.assert_close(found[name].xx, known.xx)


def chain_net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7, bias=bias)).double()


def cut(model: nn.Module, x: torch.Tensor, kept: list[int]):  # type: ignore[no-untyped-def]
    plan = trace(model, x).plan({trace(model, x).free[0].name: kept})
    return plan, plan.apply(model)


@pytest.mark.parametrize("fixed", [repair.least_squares, repair.compensation])
def test_numbers_that_make_no_sense_are_told_and_nothing_is_set(fixed: Any) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    plan = axes.plan({axis.name: range(axis.units // 2) for axis in axes.free})
    wrong: list[dict[str, Any]] = [{"ridge": value} for value in (-1, float("nan"), float("inf"), "much")]
    wrong += [{"sample": value} for value in (0, -1, 1.5)]
    wrong += [{"layers": ["nope"]}] if fixed is repair.least_squares else []
    for given in wrong:
        small = plan.apply(model)
        old = {key: value.clone() for key, value in small.state_dict().items()}
        with pytest.raises(
            SecateurError, match=r"ridge=.*no share|sample=.*no number of rows|layer 'nope': found no such layer"
        ):
            fixed(model, small, data(), plan=plan, **given)
        assert all(torch.equal(value, old[key]) for key, value in small.state_dict().items())
    for method in (criteria.lasso, criteria.cap, criteria.elimination):
        with pytest.raises(SecateurError, match="sample=0: found no number of rows"):
            score(axes, method(model, data(), sample=0, default=criteria.l2(model)))


class Failing:
    """Batches that can be read `passes` times, and then no more."""

    def __init__(self, batches: list[tuple[torch.Tensor, None]], passes: int) -> None:
        self.batches, self.left = batches, passes

    def __iter__(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return iter(self.batches)


@pytest.mark.parametrize("cut", ["keep", "factor", "mask", "split"])
@pytest.mark.parametrize("name", [*REPAIRS, "whitened", "chain"])
def test_a_repair_that_fails_midway_leaves_the_network_as_it_was(name: str, cut: str) -> None:
    model = zoo.digits_resnet(widths=(4, 8, 8)).double().eval()
    images = [(torch.randn(9, 1, 8, 8, dtype=torch.float64), None) for _ in range(2)]
    axes = trace(model, images[0][0])
    layers = ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1")
    plan = {
        "keep": lambda: axes.plan({axis.name: range(axis.units // 2) for axis in axes.free}),
        "factor": lambda: factor(axes.fingerprint, [Product(layer, "channel", (2,)) for layer in layers]),
        "mask": lambda: mask(axes.fingerprint, {f"{n}.weight": model.get_submodule(n).weight > 0 for n in layers}),
        "split": lambda: allocate.partition(model, axes, 2, kernels=True),
    }[cut]()
    if name == "whitened" and cut != "factor":
        return

    def broken(*_: Any) -> None:
        raise OSError("the disk is gone")

    chained = repair.chain(partial(repair.least_squares, plan=plan), repair.batchnorm, broken)
    run = chained if name == "chain" else partial({**REPAIRS, "whitened": repair.whitened}[name], plan=plan)
    for passes in range(20):
        small = plan.apply(model)
        old = {key: value.clone() for key, value in small.state_dict().items()}
        try:
            run(model, small, Failing(images, passes))
        except OSError:
            assert all(torch.equal(value, old[key]) for key, value in small.state_dict().items()), passes
        else:
            break
    assert passes > 1


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


@pytest.mark.parametrize("name", REPAIRS)
def test_a_copy_that_goes_is_made_good(name: str) -> None:
    if name == "mean_bias":
        return
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


def distance(model: nn.Module, small: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.cat([model(x) - small(x) for x, _ in data()]).square().mean())


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_bring_a_cut_network_closer_and_touch_no_other(name: str) -> None:
    """Through batch norm, a sum and flattening; layers without a bias use the batch norm behind them."""
    model = handmade.small()
    model.two.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    axes = handmade.axes(model)
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


def test_masked_models_need_no_plan() -> None:
    model, x = chain_net(), torch.randn(60, 6, dtype=torch.float64)
    plan, small = cut(model, x, [0, 2, 3, 7])
    masked = deepcopy(model)
    masked[2].weight.data[:, [1, 4, 5, 6, 8, 9]] = 0
    repair.least_squares(model, masked, [(x, None)])
    repair.least_squares(model, small, [(x, None)], plan=plan)
    torch.testing.assert_close(masked(x), small(x))
    assert (masked[2].weight[:, 1] == 0).all()
    with pytest.raises(SecateurError, match="give the plan that led"):
        repair.least_squares(model, cut(model, x, [1])[1], [(x, None)])


def test_plans_of_several_steps_and_chains() -> None:
    model = handmade.small()
    x = data(1)[0][0]
    axes = trace(model, x)
    first = allocate.uniform(axes, score(axes, criteria.l2(model)), 0.8)
    middle = first.apply(model)
    again = trace(middle, x)
    plan = first.then(allocate.uniform(again, score(again, criteria.l2(middle)), 0.8))
    small = plan.apply(model)
    wrong = distance(model, small)
    repair.chain(partial(repair.least_squares, plan=plan), repair.batchnorm)(model, small, data())
    assert distance(model, small.eval()) < wrong


@pytest.mark.parametrize("name", [*REPAIRS, "chain", "distil"])
def test_data_that_come_but_once_are_as_good_as_a_list(name: str) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    plan = axes.plan({axes.free[0].name: [0, 1, 2]})
    chained = repair.chain(partial(repair.compensation, plan=plan), repair.batchnorm)
    small, other = plan.apply(model), plan.apply(model)
    for after, batches in ((small, data()), (other, iter(data()))):
        if name == "distil":
            repair.distil(model, after, batches, steps=6)
        elif name == "chain":
            chained(model, after, batches)
        else:
            REPAIRS[name](model, after, batches, plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("net", ZOO)
def test_repairs_run_on_the_zoo(net: str, name: str) -> None:
    torch.manual_seed(0)
    build, example = ZOO[net]
    model, x = build().eval(), example()
    axes = trace(model, x)
    plan = allocate.uniform(axes, score(axes, criteria.l2(model)), 0.5)
    small = plan.apply(model)
    REPAIRS[name](model, small, [(x, None)], plan=plan)
    assert all(torch.isfinite(p).all() for p in small.parameters())


def test_counts_of_the_papers_vgg() -> None:
    """PFEC's configuration A and CHIP's widths, on VGG-16 with one hidden layer."""
    model = zoo.vgg16_bn_cifar()
    axes = trace(model, torch.zeros(1, 3, 32, 32))
    convs = [axis for axis in axes.free if any(slot.tensor.startswith("features") for slot in axis.writers())]
    assert len(convs) == 13
    widths = [axis.units for axis in convs]
    configurations = {
        (5_399_690, 206_279_680): [32, *widths[1:7], *[256] * 6],
        (1_901_836, 66_521_088): [*[int(n * 0.55) for n in widths[:7]], *[int(512 * 0.22)] * 5, 512],
    }
    for (params, macs), kept in configurations.items():
        plan = axes.plan({axis.name: range(n) for axis, n in zip(convs, kept, strict=True)})
        small = plan.apply(model)
        assert sum(p.numel() for p in small.parameters()) == params
        counted = {axis.name: n for axis, n in zip(convs, kept, strict=True)}
        assert axes.count("params", counted) == params
        assert axes.count("macs", counted) == macs
        assert plan.facts(model, torch.zeros(1, 3, 32, 32)).macs == macs


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
    again = deepcopy(small)
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


FORMATS = [("channel", (3,)), ("spatial", (5,)), ("tucker2", (3, 3))]


@pytest.mark.parametrize("name", ["least_squares", "compensation", "mean_bias"])
@pytest.mark.parametrize(("form", "ranks"), FORMATS)
@pytest.mark.parametrize("cut_too", [False, True])
def test_products_are_repaired_like_cuts(name: str, form: str, ranks: tuple[int, ...], cut_too: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    ).double()
    with torch.no_grad():
        model[2].bias.add_(1)
    plan = trace(model, data(1)[0][0]).plan({})
    if cut_too:
        axes = trace(model, data(1)[0][0])
        plan = axes.plan({axes.free[0].name: [0, 1, 2, 4, 5, 7], axes.free[1].name: [0, 1, 3, 4, 5]})
    middle = plan.apply(model)
    plan = plan.then(factor(fingerprint(middle), [Product("2", form, ranks), Product("5", "linear", (2,))]))  # type: ignore[arg-type]
    small = plan.apply(model)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    REPAIRS[name](model, small, data(), plan=plan)
    with torch.no_grad():
        x = torch.cat([x for x, _ in data()])
        wrong = [float((model(x) - net(x)).square().mean()) for net in (plan.apply(model), small)]
        assert wrong[1] < wrong[0]
        changed = {key for key, value in small.state_dict().items() if not torch.equal(value, before[key])}
        last = len(ranks)
        pieces = {f"2.{last}.weight", f"2.{last}.bias", "5.1.weight", "5.1.bias"}
        assert changed <= pieces
        assert changed if name == "mean_bias" else changed == pieces
        # the piece of the first product by hand: its own inputs against the outputs of the layer it stands for
        inputs = (model if name != "least_squares" else small)[:2](x)
        if name != "least_squares" and cut_too:
            inputs = inputs[:, [0, 1, 2, 4, 5, 7]]
        piece = small[2][last]
        design = rows(piece, small[2][:last](inputs)).numpy()
        kept = [0, 1, 3, 4, 5] if cut_too else list(range(6))
        target = model[2](model[:2](x)).movedim(1, -1).flatten(0, -2)[:, kept].numpy()
        if name == "mean_bias":
            found = design @ matrix(piece).numpy().T + piece.bias.numpy()
            np.testing.assert_allclose(found.mean(0), target.mean(0), atol=1e-9)
        else:
            solved = np.linalg.lstsq(np.c_[design, np.ones(len(design))], target, rcond=None)[0]
            np.testing.assert_allclose(matrix(piece).numpy(), solved[:-1].T, atol=1e-5)


def test_ranks_that_were_cut() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    first = factor(fingerprint(model), [Product("2", "linear", (3,))])
    middle = first.apply(model)
    axes = trace(middle, x)
    rank = next(axis for axis in axes.free if axis.units == 3)
    plan = first.then(axes.plan({rank.name: [0, 1]}))
    small = plan.apply(model)
    wrong = float((model(x) - small(x)).detach().square().mean())
    repair.least_squares(model, small, [(x, None)], plan=plan)
    assert float((model(x) - small(x)).detach().square().mean()) < wrong


@pytest.mark.parametrize("name", ["least_squares", "compensation"])
@pytest.mark.parametrize("cut_too", [False, True])
def test_masked_weights_stay_zero_and_the_others_are_those_of_a_regression_per_output(name: str, cut_too: bool) -> None:
    model, x = chain_net(), torch.randn(80, 6, dtype=torch.float64)
    plan, middle = (trace(model, x).plan({}), model) if not cut_too else cut(model, x, [0, 2, 3, 5, 7, 9])
    there = torch.rand(middle[2].weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    there[1] = there[0]
    there[2] = False
    plan = plan.then(mask(fingerprint(middle), {"2.weight": there}))
    small = plan.apply(model)
    assert REPAIRS[name](model, small, [(x, None)], plan=plan, ridge=0.0) is None
    assert not small[2].weight[~there].any()
    with torch.no_grad():
        hidden, y = middle[1](middle[0](x)).numpy(), model(x).numpy()
        for row, pattern in enumerate(there.numpy()):
            solved = np.linalg.lstsq(np.c_[hidden[:, pattern], np.ones(80)], y[:, row], rcond=None)[0]
            np.testing.assert_allclose(small[2].weight[row, pattern].numpy(), solved[:-1], atol=1e-8)
            np.testing.assert_allclose(float(small[2].bias[row]), solved[-1], atol=1e-8)
    if not cut_too:
        masked = plan.apply(model)
        REPAIRS[name](model, masked, [(x, None)], ridge=0.0)
        torch.testing.assert_close(masked[2].weight, small[2].weight)


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
    assert max(distance(model, whole), distance(model, part)) < wrong


@pytest.mark.parametrize("name", ["least_squares", "compensation", "mean_bias"])
@pytest.mark.parametrize("cut_too", [False, True])
def test_blocks_are_repaired_and_stay_blocks(name: str, cut_too: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 4),
    ).double().eval()  # fmt: skip
    x = torch.cat([x for x, _ in data()])
    plan = trace(model, x).plan({})
    if cut_too:
        plan = trace(model, x).plan({trace(model, x).free[0].name: [0, 1, 2, 4, 5, 7]})
    middle = plan.apply(model)
    width = middle[2].weight.shape[1]
    step = blocks_of("2", np.arange(width) % 2, [0, 1, 1, 0, 0, 1], 2)
    plan = plan.then(split(fingerprint(middle), [step]))
    small = plan.apply(model)
    wrong = float((model(x) - small(x)).detach().square().mean())
    held = small[2].weight
    REPAIRS[name](model, small, data(), plan=plan)
    assert small[2].weight is held
    assert fingerprint(small) == shapes_after(plan)
    with torch.no_grad():
        assert float((model(x) - small(x)).square().mean()) < wrong
        if name == "mean_bias":
            return
        inputs = (middle if name == "compensation" else small)[:2](x)
        target = model[2](model[:2](x)).movedim(1, -1).flatten(0, -2).numpy()
        for number, (reads, writes) in enumerate(zip(step.inputs, step.outputs, strict=True)):
            piece = nn.Conv2d(len(reads), len(writes), 3, padding=1)
            design = rows(piece, inputs[:, list(reads)]).numpy()
            solved = np.linalg.lstsq(np.c_[design, np.ones(len(design))], target[:, list(writes)], rcond=None)[0]
            found = small[2].weight[3 * number : 3 * number + 3].flatten(1).numpy()
            np.testing.assert_allclose(found, solved[:-1].T, atol=1e-5)


@pytest.mark.parametrize("name", ["least_squares", "compensation"])
def test_data_that_are_no_numbers_are_told_and_nothing_is_set(name: str) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    plan = axes.plan({axes.free[0].name: [0, 1]})
    small, before = plan.apply(model), plan.apply(model)
    with pytest.raises(SecateurError, match="infinite values or NaN"):
        REPAIRS[name](model, small, [(torch.full_like(data(1)[0][0], torch.nan), None)], plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), before.state_dict().values(), strict=True))
