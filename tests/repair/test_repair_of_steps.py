"""Repairs of products, masks, blocks and plans of several steps: regressions by numpy, and every layer keeps its form."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from cut_networks import REPAIRS, chain_net, cut, data, distance
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.factor import Product
from secateur.core.plan import factor, mask, split
from secateur.core.split import blocks_of
from secateur.measure.layers import matrix, rows
from secateur.surgery import fingerprint, shapes_after


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
    products = [Product("2", form, ranks), Product("5", "linear", (2,))]  # type: ignore[arg-type]
    plan = plan.then(factor(fingerprint(middle), products))
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
