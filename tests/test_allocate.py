"""Allocators: exact budgets on many small networks, and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import handmade
from secateur import allocate
from secateur.allocate.cost import cost
from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.size import Size, Term, constant

SEEDS = range(30)
Counts = dict[str, dict[str, int]]


def network(seed: int) -> tuple[Axes, dict[str, torch.Tensor]]:
    """A random chain with concatenations, heads times head dims, a residual width and a fixed axis; scores with ties."""
    draw = np.random.default_rng(seed)
    kinds = ["channel", "hidden", "head", "head_dim", "width", "group"]
    axes = [
        Axis(f"axis{i}", kinds[i % len(kinds)], int(draw.integers(1, 40)), (), fixed="an output" if i == 3 else None)
        for i in range(int(draw.integers(4, 9)))
    ]

    def size() -> Size:
        parts = [
            (int(draw.integers(1, 17)), tuple(draw.integers(0, len(axes), draw.integers(0, 3))))
            for _ in range(draw.integers(1, 4))
        ]
        return tuple((coefficient, tuple(int(a) for a in product)) for coefficient, product in parts)

    def terms() -> tuple[Term, ...]:
        grow = [(((1, (i,)),), constant(int(draw.integers(1, 50)))) for i in range(len(axes))]
        return (*grow, *(tuple(size() for _ in range(draw.integers(1, 4))) for _ in range(12)))

    scores = {axis.name: torch.tensor(draw.integers(0, 12, axis.units) / 4) for axis in axes if axis.fixed is None}
    return Axes(tuple(axes), {}, {"params": terms(), "macs": terms()}), scores


def kept(axes: Axes, plan: Plan) -> dict[str, int]:
    """Axis name to width after `plan`."""
    after = plan.widths()
    return {axis.name: after.get(axis.name, (0, axis.units))[1] for axis in axes.free}


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
def test_within_an_axis_the_dearest_units_stay_and_equal_ones_go_by_index(seed: int) -> None:
    axes, scores = network(seed)
    plan = allocate.global_(axes, scores, 0.5, floor=0.0)
    for cut in plan.steps[0].cuts if plan else ():
        dearest = sorted(range(cut.units), key=lambda unit: (-float(scores[cut.axis][unit]), unit))
        assert cut.kept == tuple(sorted(dearest[: len(cut.kept)]))


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
