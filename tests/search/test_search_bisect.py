"""Bisection and sensitivity, and judges that re-estimate batch norm or compensate in the copies they judge."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import handmade
from searches import SETTINGS, error_of, kept, setting
from secateur import criteria, repair, score, trace
from secateur.core.plan import Plan
from secateur.search import Trial, adaptive, bisect, drive, previewing, sensitivity


def test_bisection_finds_the_redundant_units_and_no_more() -> None:
    _, axes, scores, judge = setting()
    trials: list[Trial] = []
    plan = drive(bisect(axes, scores, fall=1e-6, tries=6), judge, record=trials.append)
    assert list(kept(plan).values()) == [(1, 4, 6)]
    assert len({trial.plan for trial in trials}) == len(trials), "no plan is judged twice"
    assert drive(bisect(axes, scores, fall=1e-6, tries=6), judge, history=trials) == plan
    assert drive(bisect(axes, scores), lambda plan: math.inf if plan else 0.0) == axes.plan({})


def test_bisection_allows_more_from_axis_to_axis() -> None:
    _, axes, scores, _ = setting()

    def judge(plan: Plan) -> float:
        return sum(before - after for before, after in plan.widths().values()) / 100

    plan = drive(bisect(axes, scores, fall=0.06, tries=8), judge)
    assert [before - after for before, after in plan.widths().values()] == [3, 3]
    backward = [axis.name for axis in axes.free][::-1]
    assert drive(bisect(axes, scores, fall=0.06, tries=8, order=backward), judge).widths() == plan.widths()


def test_sensitivity_cuts_each_axis_alone() -> None:
    _, axes, scores, judge = setting()
    seen: list[Plan] = []

    def counting(plan: Plan) -> float:
        seen.append(plan)
        return judge(plan)

    curves = drive(sensitivity(axes, scores, (0.25, 0.3, 0.5, 0.99)), counting)
    first, second = (curves[axis.name] for axis in axes.free)
    assert [rate for rate, _ in first] == [0, 0.25, 0.3, 0.5, 0.99]
    assert [loss < 1e-12 for _, loss in first] == [True, True, True, True, False]
    assert all(loss > 1e-3 for _, loss in second[1:])
    assert len(seen) == len(set(map(str, seen)))
    assert all(sum(len(units) < 9 for units in kept(plan).values()) <= 1 for plan in seen)


def test_trials_re_estimate_batch_norm_on_their_own_copy() -> None:
    model = handmade.small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(8, 3, 4, 4, dtype=torch.float64), None)]
    means = []

    def evaluate(trial: nn.Module) -> float:
        means.append(dict(trial.named_buffers())["model.last.running_mean"].clone())
        return 0.0

    axes = handmade.axes(model)
    judge = previewing(model, evaluate, lambda trial: repair.batchnorm(model, trial, batches))
    assert judge(axes.plan({"one": [0, 1]})) == 0
    assert not torch.equal(means[0], before["last.running_mean"])
    small = axes.plan({"one": [0, 1]}).apply(model)
    partial(repair.batchnorm, model, small, batches)()
    torch.testing.assert_close(means[0], small.last.running_mean)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("search", [adaptive, bisect])
def test_copies_go_where_the_judge_compensates_and_a_fragile_layer_stays_whole(search) -> None:  # type: ignore[no-untyped-def]
    """Layer 0 holds 3 copies among 8 units; greedy selection puts them last, and compensation makes their cut free."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    with torch.no_grad():
        for copy, of in ((1, 0), (4, 0), (6, 3)):
            model[0].weight[copy], model[0].bias[copy] = model[0].weight[of], model[0].bias[of]  # type: ignore[operator, index]
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    axes = trace(model, x)
    scores = score(axes, criteria.cap(model, [(x, None)]))
    error = error_of(model, x)

    def judge(plan: Plan) -> float:
        small = plan.apply(model)
        if plan:
            repair.compensation(model, small, [(x, None)], plan=plan)
        return error(small)

    made = search(axes, scores, replace(SETTINGS, step=0.2)) if search is adaptive else search(axes, scores, fall=1e-6)
    plan = drive(made, judge)
    (units,) = kept(plan).values()
    assert [cut.axis for cut in plan.steps[0].cuts if len(cut.kept) < cut.units] == [axes.free[0].name]
    assert len(units) == 5
    assert len({0, 1, 4} & set(units)) == 1
    assert len({3, 6} & set(units)) == 1
