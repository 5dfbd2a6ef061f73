"""What repairs are given: numbers that make no sense, data that fail midway or come but once, and a network left as it was."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

import handmade
from cut_networks import REPAIRS, data
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.factor import Product
from secateur.core.plan import factor, mask
from secateur.recipes import zoo


@pytest.mark.parametrize("fixed", [repair.least_squares, repair.compensation])
def test_numbers_that_make_no_sense_are_told_and_nothing_is_set(fixed: Any) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    plan = axes.plan({axis.name: range(axis.units // 2) for axis in axes.free})
    wrong: list[tuple[str, Any, str]] = [("ridge", n, "ridge=.*no share") for n in (-1, float("nan"), float("inf"), "much")]
    wrong += [("sample", value, "sample=.*no number of rows") for value in (0, -1, 1.5)]
    wrong += [("layers", ["nope"], "layer 'nope': found no such layer")] if fixed is repair.least_squares else []
    for option, value, words in wrong:
        small = plan.apply(model)
        old = {key: value.clone() for key, value in small.state_dict().items()}
        with pytest.raises(SecateurError, match=words):
            fixed(model, small, data(), plan=plan, **{option: value})
        assert all(torch.equal(weight, old[key]) for key, weight in small.state_dict().items())
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


@pytest.mark.parametrize(
    ("name", "cut"), [*product([*REPAIRS, "chain"], ["keep", "factor", "mask", "split"]), ("whitened", "factor")]
)
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


@pytest.mark.parametrize("name", ["least_squares", "compensation"])
def test_data_that_are_no_numbers_are_told_and_nothing_is_set(name: str) -> None:
    model = handmade.small()
    axes = trace(model, data(1)[0][0])
    plan = axes.plan({axes.free[0].name: [0, 1]})
    small, before = plan.apply(model), plan.apply(model)
    with pytest.raises(SecateurError, match="infinite values or NaN"):
        REPAIRS[name](model, small, [(torch.full_like(data(1)[0][0], torch.nan), None)], plan=plan)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), before.state_dict().values(), strict=True))
