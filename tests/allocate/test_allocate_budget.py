"""Exact budgets on many random networks: they hold, one unit more would not, and what is impossible is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import handmade
from random_axes import SEEDS, kept, network
from secateur import allocate
from secateur.allocate.cost import cost
from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.size import constant


def allowed(axis: Axis, multiple: int) -> list[int]:
    """Widths by the rule as the user reads it."""
    step = 1 if axis.kind in ("head", "group") else multiple
    return [width for width in range(1, axis.units + 1) if width % step == 0 or width == axis.units]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", [("macs",), ("params",), ("macs", "params")])
@pytest.mark.parametrize("multiple", [1, 4])
def test_a_budget_holds_and_one_unit_more_would_not(seed: int, what: tuple[str, ...], multiple: int) -> None:
    axes, scores = network(seed)
    rates = np.random.default_rng(seed).uniform(0.3, 0.95, 2)
    keep = {name: float(rate) for name, rate in zip(what, rates, strict=False)}
    normalise = ["mean", "max", "sum", "l2", "energy", "rank", "none"][seed % 7]
    least = {axis.name: allowed(axis, multiple)[0] for axis in axes.free}
    if any(axes.count(name, least) > rate * axes.count(name) for name, rate in keep.items()):
        with pytest.raises(SecateurError, match="is the least possible share"):
            allocate.budget(axes, scores, keep, floor=0.0, multiple=multiple)
        return
    plan = allocate.budget(axes, scores, keep, normalise=normalise, floor=0.0, multiple=multiple)  # type: ignore[arg-type]
    widths = kept(axes, plan)
    assert all(axes.count(name, widths) <= rate * axes.count(name) for name, rate in keep.items())
    for axis in axes.free:
        assert widths[axis.name] in allowed(axis, multiple)
        wider = [width for width in allowed(axis, multiple) if width > widths[axis.name]]
        if wider:
            more = {**widths, axis.name: wider[0]}
            assert any(axes.count(name, more) > rate * axes.count(name) for name, rate in keep.items()), axis.name


@pytest.mark.parametrize("seed", SEEDS)
def test_compiled_costs_equal_counts(seed: int) -> None:
    axes, _ = network(seed)
    draw = np.random.default_rng(seed)
    for what in ("params", "macs"):
        count = cost(axes, what)
        for _ in range(5):
            widths = np.array([draw.integers(1, axis.units + 1) for axis in axes.free])
            named = dict(zip((axis.name for axis in axes.free), widths.tolist(), strict=True))
            assert count(widths) == axes.count(what, named)


def test_compiled_costs_equal_hand_arithmetic() -> None:
    axes = handmade.axes(handmade.small())
    for a, b in ((8, 6), (1, 1), (5, 2), (8, 1)):
        assert cost(axes, "params")(np.array([a, b])) == handmade.params(a, b)
        assert cost(axes, "macs")(np.array([a, b])) == handmade.macs(a, b)


def test_counts_beyond_double_precision_stay_exact() -> None:
    axes = Axes(
        (Axis("a", "width", 10**6, ()),), {}, {"macs": ((((1, (0,)),), ((1, (0,)),), constant(10**6 + 1)), (constant(1),))}
    )
    assert cost(axes, "macs")(np.array([10**6])) == 10**12 * (10**6 + 1) + 1


def test_the_best_widths_of_a_tiny_network_by_exhaustion() -> None:
    """Of all prefixes of the ranking, the longest that fits, then whatever still fits."""
    axes = handmade.axes(handmade.small(a=3, b=3))
    scores = {"one": torch.tensor([0.9, 0.1, 0.5]), "two": torch.tensor([0.8, 0.4, 0.2])}
    # ranking: one.0 and two.0 stay (one unit is the least), then one.2, two.1, two.2, one.1
    steps = [(1, 1), (2, 1), (2, 2), (2, 3), (3, 3)]
    full = handmade.macs(3, 3)
    for share in np.linspace(0.3, 1, 30):
        fitting = [pair for pair in steps if handmade.macs(*pair) <= share * full]
        if fitting:
            a, b = fitting[-1]
            a, b = next(
                ((x, y) for x, y in [(a, b + 1), (a + 1, b)] if x <= 3 >= y and handmade.macs(x, y) <= share * full), (a, b)
            )
            plan = allocate.budget(axes, scores, {"macs": float(share)}, normalise="none", floor=0.0)
            assert kept(axes, plan) == {"one": a, "two": b}


def test_a_share_is_the_decimal_that_was_typed() -> None:
    axes = Axes((Axis("a", "channel", 100, ()),), {}, {"params": ((((1, (0,)),),),)})
    for share in (0.07, 0.29, 0.57, 0.58):  # times 100 each is below the whole number in binary, or above
        scores = {"a": torch.arange(100.0)}
        assert kept(axes, allocate.budget(axes, scores, {"params": share}, floor=0.0)) == {"a": round(share * 100)}
        assert kept(axes, allocate.global_(axes, scores, share, floor=share)) == {"a": round(share * 100)}


def test_keeping_all_is_the_empty_plan() -> None:
    axes, scores = network(0)
    assert not allocate.budget(axes, scores, {"macs": 1.0})
    assert not allocate.global_(axes, scores, 1)
    assert not allocate.uniform(axes, scores, 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_axis_keeps_its_floor(seed: int) -> None:
    axes, scores = network(seed)
    floor = 0.35
    plan = allocate.global_(axes, scores, 0.7, floor=floor, normalise="none")
    assert all(width >= floor * axes[name].units for name, width in kept(axes, plan).items())
    bare = allocate.global_(axes, scores, 0.7, floor=0.0, normalise="none")
    assert sum(kept(axes, bare).values()) == 7 * sum(axis.units for axis in axes.free) // 10


@pytest.mark.parametrize("what", ["macs", "params"])
def test_an_impossible_budget_says_the_least_which_is_possible(what: str) -> None:
    axes, scores = network(3)
    with pytest.raises(SecateurError, match=f"'{what}': 0.0001.*that 0.[0-9]{{4}} is the least possible share") as caught:
        allocate.budget(axes, scores, {"params": 1.0, "macs": 1.0, what: 0.0001}, floor=0.25)
    least = float(caught.value.found.split()[1])
    plan = allocate.budget(axes, scores, {what: least}, floor=0.25)
    assert axes.count(what, kept(axes, plan)) <= least * axes.count(what)
    with pytest.raises(SecateurError):
        allocate.budget(axes, scores, {what: least - 0.0002}, floor=0.25)


def test_nothing_free_leaves_all() -> None:
    axes = Axes((Axis("a", "channel", 4, (), fixed="an output"),), {}, {"macs": ((((1, (0,)),),),)})
    assert not allocate.budget(axes, {}, {"macs": 1.0})
    assert not allocate.global_(axes, {}, 0.5)
    assert not allocate.uniform(axes, {}, 0.5)
    with pytest.raises(SecateurError, match="no axis that can be cut; ignore less"):
        allocate.budget(axes, {}, {"macs": 0.5})
