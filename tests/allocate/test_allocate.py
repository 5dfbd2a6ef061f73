"""Which units allocators keep: rankings between axes, ties, uniform widths, thresholds, and what cannot be done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import handmade
from random_axes import SEEDS, kept, network
from secateur import allocate
from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError


@pytest.mark.parametrize("seed", SEEDS)
def test_within_an_axis_the_dearest_units_stay_and_equal_ones_go_by_index(seed: int) -> None:
    axes, scores = network(seed)
    plan = allocate.global_(axes, scores, 0.5, floor=0.0)
    for cut in plan.steps[0].cuts if plan else ():
        dearest = sorted(range(cut.units), key=lambda unit: (-float(scores[cut.axis][unit]), unit))
        assert cut.kept == tuple(sorted(dearest[: len(cut.kept)]))


PAIR = Axes((Axis("a", "channel", 4, ()), Axis("b", "channel", 4, ())), {}, {"params": ((((1, (0,)),),), (((1, (1,)),),))})


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        ("none", {"a": 4, "b": 2}),  # 10 20 30 40 | 1 2 3 400: all of a beat all but one of b
        ("mean", {"a": 4, "b": 2}),  # 0.4 .. 1.6 | 0.01 0.02 0.03 3.9
        ("rank", {"a": 3, "b": 3}),
    ],
)
def test_normalisation(normalise: str, expected: dict[str, int]) -> None:
    scores = {"a": torch.tensor([10.0, 20, 30, 40]), "b": torch.tensor([1.0, 2, 3, 400])}
    plan = allocate.global_(PAIR, scores, 0.75, normalise=normalise, floor=0.0)  # type: ignore[arg-type]
    assert kept(PAIR, plan) == expected


@pytest.mark.parametrize(
    ("normalise", "divisors"), [("mean", (2, 5)), ("max", (5, 8)), ("sum", (8, 20)), ("l2", (30**0.5, 102**0.5))]
)
def test_divisors_decide_between_axes(normalise: str, divisors: tuple[float, float]) -> None:
    scores = {"a": np.array([0.0, 1, 2, 5]), "b": np.array([2.0, 3, 7, 8])}
    if normalise == "l2":
        scores["b"] = np.array([2.0, 3, 5, 8])
    ranked = sorted([(-x / d, name) for name, d in zip("ab", divisors, strict=True) for x in scores[name]])
    for units in range(2, 9):
        best = {name: max(1, sum(1 for _, owner in ranked[:units] if owner == name)) for name in "ab"}
        if sum(best.values()) == units:
            plan = allocate.global_(PAIR, scores, units / 8, normalise=normalise, floor=0.0)  # type: ignore[arg-type]
            assert kept(PAIR, plan) == best


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_energy_is_the_square_by_its_mean(share: float) -> None:
    axes, scores = network(3)
    positive = {name: torch.as_tensor(values).abs() for name, values in scores.items()}
    squared = {name: values**2 for name, values in positive.items()}
    plan = allocate.budget(axes, positive, {"macs": share}, normalise="energy", floor=0.0)
    assert plan == allocate.budget(axes, squared, {"macs": share}, normalise="mean", floor=0.0)
    below = {name: -values for name, values in positive.items()}
    turned = {name: -values for name, values in squared.items()}
    plan = allocate.budget(axes, below, {"macs": share}, normalise="energy", floor=0.0)
    assert plan == allocate.budget(axes, turned, {"macs": share}, normalise="mean", floor=0.0)


def test_negative_and_zero_scores_are_scores() -> None:
    scores = {"a": torch.tensor([-1.0, -2.0, -3.0, 0.0]), "b": torch.zeros(4)}
    plan = allocate.global_(PAIR, scores, 0.5, floor=0.0)
    assert {cut.axis: cut.kept for cut in plan.steps[0].cuts} == {"a": (3,), "b": (0, 1, 2)}


def test_scores_of_any_kind_are_read() -> None:
    half = {"a": torch.tensor([1.0, 4, 2, 3], dtype=torch.bfloat16).requires_grad_(), "b": [0.5, 0.5, 9, 0.5]}
    plan = allocate.uniform(PAIR, half, 0.5)  # type: ignore[arg-type]
    assert {cut.axis: cut.kept for cut in plan.steps[0].cuts} == {"a": (1, 3), "b": (0, 2)}


def test_a_rung_is_worth_the_mean_of_its_units() -> None:
    axes = Axes((Axis("a", "channel", 12, ()), Axis("b", "channel", 16, ())), {}, {})
    scores = {"a": [1.0] * 8 + [0.5] * 4, "b": [1.0] * 8 + [0.4] * 8}  # the rung of 8 has the larger sum
    plan = allocate.global_(axes, scores, 0.86, normalise="none", multiple=8)  # type: ignore[arg-type]
    assert kept(axes, plan) == {"a": 12, "b": 8}


def test_ties_go_by_axis_then_index() -> None:
    plan = allocate.global_(PAIR, {"a": torch.ones(4), "b": torch.ones(4)}, 0.625, floor=0.0)
    assert {cut.axis: cut.kept for cut in plan.steps[0].cuts} == {"a": (0, 1, 2, 3), "b": (0,)}


@pytest.mark.parametrize(
    ("units", "keep", "multiple", "kind", "expected"),
    [
        (10, 0.5, 1, "channel", 5),
        (9, 0.5, 1, "channel", 5),  # 4.5, the wider of two as near
        (10, 0.01, 1, "channel", 1),
        (1, 0.01, 1, "channel", 1),
        (64, 0.3, 8, "channel", 16),  # 19.2
        (20, 0.97, 8, "channel", 20),  # 19.4: whole, although no multiple
        (20, 0.1, 8, "channel", 8),
        (6, 0.1, 8, "hidden", 6),  # no multiple fits: whole
        (6, 0.5, 8, "head", 3),  # heads are not rounded
        (32, 0.25, 8, "group", 8),
    ],
)
def test_uniform_widths(units: int, keep: float, multiple: int, kind: str, expected: int) -> None:
    axes = Axes((Axis("a", kind, units, ()),), {}, {})
    plan = allocate.uniform(axes, {"a": torch.arange(float(units))}, keep, multiple=multiple)
    assert kept(axes, plan) == {"a": expected}
    if plan:
        assert plan.steps[0].cuts[0].kept == tuple(range(units - expected, units))


def test_a_uniform_budget_keeps_the_same_share_of_each_axis() -> None:
    axes = handmade.axes(handmade.small(a=40, b=80))
    scores = {"one": torch.rand(40), "two": torch.rand(80) ** 9}
    widths = kept(axes, allocate.uniform(axes, scores, {"macs": 0.5}))
    assert handmade.macs(widths["one"] + 1, widths["two"]) > handmade.macs(40, 80) / 2 >= handmade.macs(*widths.values())
    assert widths["one"] / 40 == pytest.approx(widths["two"] / 80, abs=1 / 40)


def test_threshold_keeps_what_is_above_it() -> None:
    axes = handmade.axes(handmade.small())
    scores = {"one": torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 0.0, 0.0, 0.6]), "two": torch.zeros(6)}
    plan = allocate.threshold(axes, scores, 0.5)
    assert {cut.axis: cut.kept for cut in plan.steps[0].cuts} == {"one": (1, 7), "two": (0,)}
    assert allocate.threshold(axes, scores, 0.5, floor=0.5).widths() == {"one": (8, 4), "two": (6, 3)}


BAD = {
    "no count in it": lambda axes, scores: allocate.budget(axes, scores, {}),
    "did you mean 'macs'": lambda axes, scores: allocate.budget(axes, scores, {"mac": 0.5}),
    "found 2; say what remains": lambda axes, scores: allocate.budget(axes, scores, {"macs": 2}),
    "found 0;": lambda axes, scores: allocate.budget(axes, scores, {"macs": 0}),
    "found nan;": lambda axes, scores: allocate.budget(axes, scores, {"macs": float("nan")}),
    "found True;": lambda axes, scores: allocate.budget(axes, scores, {"macs": True}),
    "found 'half'": lambda axes, scores: allocate.budget(axes, scores, {"macs": 0.5, "params": "half"}),
    "keep=1.5": lambda axes, scores: allocate.uniform(axes, scores, 1.5),
    "keep=-0.5": lambda axes, scores: allocate.global_(axes, scores, -0.5),
    "did you mean 'mean'": lambda axes, scores: allocate.budget(axes, scores, {"macs": 0.5}, normalise="meen"),
    "floor=7: found no share": lambda axes, scores: allocate.budget(axes, scores, {"macs": 0.5}, floor=7),
    "multiple=0": lambda axes, scores: allocate.uniform(axes, scores, 0.5, multiple=0),
    "multiple=1.5": lambda axes, scores: allocate.uniform(axes, scores, 0.5, multiple=1.5),
    "axis 'two': found no scores": lambda axes, scores: allocate.uniform(axes, {"one": scores["one"]}),
    "axis 'three'": lambda axes, scores: allocate.uniform(axes, {**scores, "three": scores["one"]}),
    r"axis 'one': found scores of shape \[6\]": lambda axes, scores: allocate.uniform(axes, {**scores, "one": scores["two"]}),
    "axis 'two': found scores that are infinite": lambda axes, scores: allocate.uniform(
        axes, {**scores, "two": scores["two"] / 0}
    ),
    "is the least possible share; .* floor=0.9": lambda axes, scores: allocate.global_(axes, scores, 0.5, floor=0.9),
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_done_is_said(words: str) -> None:
    axes = handmade.axes(handmade.small())
    scores = {"one": torch.ones(8), "two": torch.ones(6)}
    with pytest.raises(SecateurError, match=words):
        BAD[words](axes, scores)
