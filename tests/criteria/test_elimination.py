"""Backward elimination: each removal against all candidates solved by numpy, and what whole-model selection makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur import criteria, repair, score, trace
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.criteria.elimination import Remaining, backward_elimination
from secateur.measure.moments import Moments
from secateur.recipes import zoo
from secateur.recipes.reconstruct import channel_pruning
from secateur.testing import awake

RIDGE = 1e-6


def known(inputs: int, outputs: int, rows: int, seed: int) -> tuple[Moments, np.ndarray, np.ndarray]:
    """Moments of rows that depend on one another, and the rows."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, inputs)) @ draw.normal(size=(inputs, inputs))
    y = np.maximum(x @ draw.normal(size=(inputs, outputs)), 0) + 0.3 * draw.normal(size=(rows, outputs))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    return Moments(a.mean(0), b.mean(0), a.T @ a / rows, a.T @ b / rows), x, y


def least(x: np.ndarray, y: np.ndarray, columns: list[int]) -> float:
    """The least ``|Y - X W|^2 / M + r |W|^2`` with weights on `columns` alone, by an ordinary solver on stacked rows."""
    r = RIDGE * np.square(x).mean()
    a = np.concatenate([x[:, columns] / np.sqrt(len(x)), np.sqrt(r) * np.eye(len(columns))])
    b = np.concatenate([y / np.sqrt(len(x)), np.zeros((len(columns), y.shape[1]))])
    return float(np.square(b - a @ np.linalg.lstsq(a, b, rcond=None)[0]).sum())


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize(("units", "width", "more"), [(6, 1, 0), (5, 3, 0), (4, 2, 3), (1, 2, 0)])
def test_each_removal_is_the_best_of_all_solved_anew(readers: int, units: int, width: int, more: int) -> None:
    """`more` columns belong to no unit and stay."""
    data = [known(units * width + more, 3, 60, seed) for seed in range(readers)]
    blocks = torch.arange(units * width).reshape(width, units).T + more
    order, rises = backward_elimination([Remaining.of(moments, blocks, RIDGE) for moments, _, _ in data])
    left = list(range(units))

    def error(kept: list[int]) -> float:
        columns = [*range(more), *blocks[kept].reshape(-1).tolist()]
        return sum(least(x, y, columns) for _, x, y in data)

    now = error(left)
    for unit, rise in zip(order, rises.tolist(), strict=True):
        offers = {each: error([other for other in left if other != each]) for each in left}
        assert unit == min(offers, key=lambda each: offers[each])
        assert rise == pytest.approx(offers[unit] - now, rel=1e-6, abs=1e-9)
        now = offers[unit]
        left.remove(unit)


def test_dead_and_double_units_go_first_and_for_nothing() -> None:
    moments, x, y = known(6, 2, 80, 0)
    x[:, 4], x[:, 1] = 0, x[:, 2]
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    moments = Moments(moments.x, moments.y, a.T @ a / len(x), a.T @ b / len(x))
    order, rises = backward_elimination([Remaining.of(moments, torch.arange(6)[:, None], RIDGE)])
    assert order[0] == 4
    assert order[1] in (1, 2)
    assert rises[1] < 1e-5 * rises[2]


def network(seed: int = 0) -> tuple[nn.Module, list[tuple[torch.Tensor, Any]]]:
    torch.manual_seed(seed)
    model = awake(zoo.digits_resnet(widths=(8, 8, 8))).double().eval()
    return model, [(torch.randn(40, 1, 8, 8, dtype=torch.float64), None) for _ in range(2)]


def distance(model: nn.Module, small: nn.Module, batches: list[tuple[torch.Tensor, Any]]) -> float:
    with torch.no_grad():
        return float(torch.cat([model(x) - small(x) for x, _ in batches]).square().mean())


def test_a_reader_is_left_with_no_more_error_than_by_cap_or_l2() -> None:
    """Both are greedy, from either end, so that one width alone proves nothing."""
    found = []
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).double()
        batches = [(torch.randn(90, 6, dtype=torch.float64), None)]
        axes = trace(model, batches[0][0])
        (axis,) = axes.free
        orders = [
            criterion(axis).argsort(descending=True).tolist()
            for criterion in (criteria.elimination(model, batches), criteria.cap(model, batches), criteria.l2(model))
        ]
        for width in range(1, 12):
            errors = []
            for order in orders:
                plan = axes.plan({axis.name: sorted(order[:width])})
                small = plan.apply(model)
                repair.least_squares(model, small, batches, plan=plan)
                errors.append(distance(model, small, batches) + 1e-9)
            found.append(errors)
    ours, cap, l2 = torch.tensor(found).log().mean(0)
    assert ours < cap + 0.02
    assert ours < l2 - 0.1


def test_scores_are_shares_of_what_the_reader_fits() -> None:
    """The score of the last unit that goes is the rise of the reader's own error, over its variance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    x = torch.randn(90, 6, dtype=torch.float64)
    (axis,) = trace(model, x).free
    scores = criteria.elimination(model, [(x, None)])(axis)
    with torch.no_grad():
        inside, outside = model[:2](x).numpy(), model(x).numpy()
    inside, outside = inside - inside.mean(0), outside - outside.mean(0)
    order = scores.argsort().tolist()
    for gone in range(1, 10):
        kept = order[gone:]
        fitted = inside[:, kept] @ np.linalg.lstsq(inside[:, kept], outside, rcond=None)[0] if kept else 0 * outside
        assert float(scores[order[gone - 1]]) == pytest.approx(
            np.square(outside - fitted).sum() / np.square(outside).sum(), rel=1e-3, abs=1e-6
        )


def test_a_whole_network_is_nearer_than_by_cap() -> None:
    def eliminated(current: nn.Module, original: nn.Module, axis: Axis) -> torch.Tensor:
        return criteria.elimination(current, batches, original=original)(axis)

    def capped(current: nn.Module, original: nn.Module, axis: Axis) -> torch.Tensor:
        return criteria.cap(current, batches)(axis)

    found = []
    for seed in range(4):
        model, batches = network(seed)
        axes = trace(model, batches[0][0][:1])
        widths = {axis.name: axis.units // 2 for axis in axes.free}
        plans = [channel_pruning(model, axes, widths, batches, select=select) for select in (eliminated, capped)]
        assert {name: after for name, (_, after) in plans[0][0].widths().items()} == widths
        found.append([distance(model, small, batches) for _, small in plans])
    ours, others = torch.tensor(found).T
    assert ours.log().mean() < others.log().mean()


def test_the_error_of_a_shortcut_is_what_the_branch_is_chosen_for() -> None:
    """The shortcut lacks a channel of the input; of two units alike in the original one happens to tell it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.skip(x) + self.two(self.one(x))

    torch.manual_seed(0)
    model = Block().double()
    with torch.no_grad():
        model.one.weight.copy_(torch.eye(3))
        model.two.weight.copy_(torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.2, 0.0]]))
        model.skip.weight.copy_(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0]]))
    current = Block().double()
    current.load_state_dict(model.state_dict())
    with torch.no_grad():
        current.skip.weight.zero_()
    axis = Axis("one", "channel", 3, (Slot("two.weight", 1, role="read"),))
    batches = [(torch.randn(200, 3, dtype=torch.float64), None)]
    assert criteria.elimination(model, batches)(axis).argmin() == 2
    assert criteria.elimination(current, batches, original=model)(axis).argmax() == 2


def test_what_is_wrong_is_refused() -> None:
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    with pytest.raises(SecateurError, match="no share above 0"):
        criteria.elimination(model, batches, ridge=0)
    with pytest.raises(SecateurError, match="no batch"):
        criteria.elimination(model, [])(axes.free[0])
    with pytest.raises(SecateurError, match="no linear layer or convolution"):
        criteria.elimination(model, batches)(Axis("a", "channel", 3, ()))
    assert len(score(axes, criteria.elimination(model, batches, sample=50))) == len(axes.free)
