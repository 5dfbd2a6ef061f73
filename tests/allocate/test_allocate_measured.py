"""Shares of milliseconds that hold by the clock, whatever a table says of them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from cost_networks import X, network, synthetic
from secateur import allocate
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import choose as chooser
from secateur.recipes.schema import Prune


@pytest.mark.parametrize(
    "machine", [lambda s: s, lambda s: 0.3 + 0.7 * s, lambda s: s**0.5, lambda s: s * s, lambda s: -(-s // 0.1) * 0.1]
)
@pytest.mark.parametrize("share", [0.45, 0.7, 0.95])
def test_a_share_of_milliseconds_holds_by_the_clock_whatever_the_table_says(machine, share: float) -> None:  # type: ignore[no-untyped-def]
    plan = allocate.measured(lambda asked: asked, share, machine)  # the plan being the share that was asked for
    assert machine(plan) <= share
    assert machine(plan) > share - 0.13, "and is not much faster than it has to be"


def test_what_no_plan_reaches_by_the_clock_is_one_sentence() -> None:
    def plan_of(asked: float) -> float:
        if asked < 0.2:
            raise SecateurError("keep", "that 0.2 is the least possible share", "ask for more")
        return asked

    with pytest.raises(SecateurError, match=r"0\.790 of the dense network's time"):
        allocate.measured(plan_of, 0.75, lambda asked: 0.7 + 0.1 * asked if asked > 0.9 else 0.79)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match=r"found 0\.2\d\d of the dense"):
        allocate.measured(plan_of, 0.1, lambda asked: asked)  # type: ignore[arg-type]

    def never(asked: float) -> float:
        raise SecateurError("keep", "no axis that can be cut", "ignore less")

    with pytest.raises(SecateurError, match="no axis that can be cut"):
        allocate.measured(never, 0.5, lambda asked: asked)  # type: ignore[arg-type]


def test_a_table_that_knows_of_no_plan_fast_enough_may_be_wrong() -> None:
    def plan_of(asked: float) -> float:
        if asked < 0.9:
            raise SecateurError("keep", "that 0.9 is the least possible share", "ask for more")
        return asked

    found = allocate.measured(plan_of, 0.6, lambda asked: asked - 0.35)  # type: ignore[arg-type]
    assert 0.9 <= found <= 0.95


@pytest.mark.parametrize(
    ("machine", "share", "least", "plans"),
    [
        (lambda s: 0.5 * s, 0.6, 0.0, 2),  # faster than the table throughout: all of it is asked for, once
        (lambda s: 0.3 + 0.25 * s, 0.5, 0.0, 3),  # a straight line takes two points
        (lambda s: 0.5 + 0.5 * s, 0.1, 0.0, 8),  # out of reach, and found out in as many plans as there may be
        (lambda s: s + 0.2, 0.45, 0.3, 8),  # the table knows of no plan below 0.3, the clock wants 0.25
    ],
)
def test_each_plan_is_asked_for_once_within_what_there_is(machine, share: float, least: float, plans: int) -> None:  # type: ignore[no-untyped-def]
    tried: list[float] = []
    refused = [0.0]

    def plan_of(asked: float) -> float:
        assert max(refused) < asked <= 1, "nothing below what was refused, nothing above all there is"
        assert asked not in tried
        assert not tried or asked >= tried[-1] / 4, "no leap on one steep line"
        tried.append(asked)
        if asked < least:
            refused.append(asked)
            raise SecateurError("keep", "less than the least possible share", "ask for more")
        return asked

    with contextlib.suppress(SecateurError):
        allocate.measured(plan_of, share, machine)  # type: ignore[arg-type]
    assert len(tried) == plans


def test_a_budget_measured_here_holds_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, axes = network()
    monkeypatch.setattr(chooser, "measure_table", lambda *given: synthetic(model))

    def clock(model: nn.Module, plan: Plan, example: torch.Tensor) -> float:  # slower than the table says
        widths = {name: after for name, (_, after) in plan.widths().items()}
        return 0.2 + 0.8 * axes.count("macs", widths) / axes.count("macs")

    monkeypatch.setattr(chooser, "measured_share", clock)
    prune = Prune(keep={"latency": 0.6, "params": 0.9}, criterion="l2")
    _, plan = chooser.choose(model, X, prune)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    assert 0.5 < clock(model, plan, X) <= 0.6
    assert axes.count("params", widths) <= 0.9 * axes.count("params")
