"""Searches: they end, find what can go, change nothing, and replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import handmade
from secateur import criteria, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.search import (
    AdaptiveSettings,
    Trial,
    adaptive,
    bisect,
    drive,
    predicted,
    previewing,
    read_history,
    recorder,
    sensitivity,
)

SETTINGS = AdaptiveSettings(step=0.25, trial=1e-6, running=1e-5)


def redundant() -> tuple[nn.Module, torch.Tensor]:
    """Layer 0 of 8 units with 5 that are zero; layer 2 of 6 units, none of which can go; double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    with torch.no_grad():
        model[0].weight[[0, 2, 3, 5, 7]] = 0
        model[0].bias[[0, 2, 3, 5, 7]] = 0
        model[2].bias.fill_(3)
        model[4].weight.copy_(torch.eye(6) * 2)
    return model, torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def error_of(model: nn.Module, x: torch.Tensor) -> Callable[[nn.Module], float]:
    """Mean squared distance of outputs to those of `model`."""
    with torch.no_grad():
        target = model(x)

    def error(trial: nn.Module) -> float:
        with torch.no_grad():
            return float((trial(x) - target).square().mean())

    return error


def setting() -> tuple[nn.Module, Axes, dict[str, torch.Tensor], Callable[[Plan], float]]:
    model, x = redundant()
    axes = trace(model, x)
    return model, axes, score(axes, criteria.l1(model, group=False)), previewing(model, error_of(model, x))


def kept(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {cut.axis: cut.kept for step in plan.steps for cut in step.cuts if len(cut.kept) < cut.units}


@pytest.mark.parametrize("schedule", ["sweeps", "sequential"])
@pytest.mark.parametrize("order", ["forward", "backward", "sensitivity"])
@pytest.mark.parametrize("unit", [("original", 0.25), ("current", 0.4), ("units", 2), ("params", 0.2), ("macs", 0.3)])
@pytest.mark.parametrize("skip", ["settle", "sweep"])
def test_what_is_redundant_goes_and_a_fragile_layer_stays_whole(schedule, order, unit, skip):  # type: ignore[no-untyped-def]
    _, axes, scores, judge = setting()
    settings = replace(SETTINGS, schedule=schedule, order=order, unit=unit[0], step=unit[1], skip=skip)
    plan = drive(adaptive(axes, scores, settings), judge)
    assert list(kept(plan).values()) == [(1, 4, 6)]


def test_skip_only_settles_at_the_first_failure() -> None:
    _, axes, scores, judge = setting()
    plan = drive(adaptive(axes, scores, replace(SETTINGS, shrink=0.0)), judge)
    assert [len(units) for units in kept(plan).values()] == [4]  # steps of 2 pass twice, the third takes a live unit


def test_rejected_trials_change_nothing() -> None:
    model, axes, scores, judge = setting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drive(adaptive(axes, scores, replace(SETTINGS, trial=0.0, running=0.0)), judge)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("verdict", [0.0, 1.0, math.inf, math.nan])
@pytest.mark.parametrize("schedule", ["sweeps", "sequential"])
@pytest.mark.parametrize("skip", ["settle", "sweep"])
def test_it_ends_whatever_the_judge_says(verdict: float, schedule: str, skip: str) -> None:
    _, axes, scores, _ = setting()
    count = 0

    def judge(plan: Plan) -> float:
        nonlocal count
        count += 1
        return 0.0 if not plan else verdict

    plan = drive(adaptive(axes, scores, replace(SETTINGS, schedule=schedule, skip=skip)), judge)  # type: ignore[arg-type]
    assert count < 100
    widths = [after for _, after in plan.widths().values()]
    assert widths == ([] if verdict else [1, 1])


def test_remaining_parameters_never_grow_and_the_target_stops_it() -> None:
    _, axes, scores, _ = setting()
    seen = []
    search = adaptive(axes, scores, replace(SETTINGS, keep={"params": 0.6}), report=seen.append)
    plan = drive(search, lambda plan: 0.0)
    shares = [status.params for status in seen]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] <= 0.6 < shares[-2]
    widths = {name: after for name, (_, after) in plan.widths().items()}
    assert axes.count("params", widths) / axes.count("params") == shares[-1]


def test_the_running_guard_ends_a_sweep_and_linear_allows_less() -> None:
    _, axes, scores, _ = setting()

    def judge(plan: Plan) -> float:
        return sum(before - after for before, after in plan.widths().values()) / 100

    left = {}
    for guard in ("running", "linear", "none"):
        settings = AdaptiveSettings(step=1, unit="units", trial=1, running=0.06, guard=guard, order="forward")  # type: ignore[arg-type]
        plan = drive(adaptive(axes, scores, settings), judge)
        left[guard] = sum(before - after for before, after in plan.widths().values())
    assert left["running"] == 6
    assert left["linear"] == 3
    assert left["none"] == 12


def test_ratio_compares_losses_by_their_quotient() -> None:
    _, axes, scores, _ = setting()

    def judge(plan: Plan) -> float:
        return 10 + sum(before - after for before, after in plan.widths().values())

    settings = AdaptiveSettings(step=1, unit="units", trial=1.0, running=0.3, compare="ratio")
    plan = drive(adaptive(axes, scores, settings), judge)
    assert sum(before - after for before, after in plan.widths().values()) == 3


def test_recovery_follows_sweeps_that_accepted_and_losses_are_asked_anew() -> None:
    _, axes, scores, judge = setting()
    told: list[Plan] = []
    asked: list[Plan] = []

    def counting(plan: Plan) -> float:
        asked.append(plan)
        return judge(plan)

    plan = drive(adaptive(axes, scores, SETTINGS, recover=told.append), counting)
    assert told
    assert told[-1] == plan
    assert asked.count(told[0]) == 2


def test_a_search_replays_from_its_history_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    _, axes, scores, judge = setting()
    path = tmp_path / "trials.jsonl"
    whole = drive(adaptive(axes, scores, SETTINGS), judge, record=recorder(path))
    history = read_history(path)

    def refuse(plan: Plan) -> float:
        raise AssertionError("a replay judges nothing")

    assert drive(adaptive(axes, scores, SETTINGS), refuse, history=history) == whole
    lines = path.read_text().splitlines()
    for stop in range(len(lines)):
        path.write_text("".join(f"{line}\n" for line in lines[:stop]) + lines[stop][: len(lines[stop]) // 2])
        assert read_history(path) == history[:stop]
        again = drive(adaptive(axes, scores, SETTINGS), judge, history=read_history(path), record=recorder(path))
        assert again == whole
        assert read_history(path) == history


def test_a_history_of_another_search_is_refused(tmp_path: Path) -> None:
    _, axes, scores, judge = setting()
    trials: list[Trial] = []
    drive(adaptive(axes, scores, SETTINGS), judge, record=trials.append)
    with pytest.raises(SecateurError, match=r"whose trial \d+ is another plan"):
        drive(adaptive(axes, scores, replace(SETTINGS, step=0.6)), judge, history=trials)
    path = tmp_path / "trials.jsonl"
    path.write_text("nonsense\n{}\n")
    with pytest.raises(SecateurError, match="line 1 that is no trial"):
        read_history(path)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"step": 0}, {"shrink": 1.0}, {"least": 0}, {"max_rate": 1.0}, {"trial": -1}, {"sweeps": 0}):
        with pytest.raises(SecateurError, match="an adaptive search"):
            AdaptiveSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="a binary search"):
        next(bisect(handmade.axes(handmade.small()), {}, tries=0))


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
            model[0].weight[copy], model[0].bias[copy] = model[0].weight[of], model[0].bias[of]
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


def test_greedy_takes_the_step_that_harms_least_and_measures_again() -> None:
    _, axes, scores, _ = setting()
    price = dict(zip((axis.name for axis in axes.free), (0.01, 0.001), strict=True))
    accepted: list[dict[str, int]] = []

    def judge(plan: Plan) -> float:
        return sum(price[name] * (before - after) for name, (before, after) in plan.widths().items())

    settings = AdaptiveSettings(step=1, unit="units", trial=1, running=0.0151, schedule="greedy", order="backward")
    search = adaptive(axes, scores, settings, recover=lambda plan: accepted.append(plan.widths()))
    plan = drive(search, judge)
    gone = {name: before - after for name, (before, after) in plan.widths().items() if before > after}
    cheap, dear = price[axes.free[1].name], axes.free[0].name
    assert gone == {axes.free[1].name: axes.free[1].units - 1, dear: int((0.0151 - cheap * (axes.free[1].units - 1)) / 0.01)}
    first = accepted[: axes.free[1].units - 1]
    assert all(dict(widths).get(dear, (8, 8))[1] == 8 for widths in first), "the cheap axis goes first, step by step"


def test_the_reference_of_a_trial_is_the_current_the_recovered_or_the_dense_model() -> None:
    _, axes, scores, _ = setting()
    lower = 0.0

    def judge(plan: Plan) -> float:
        return 1 + sum(before - after for before, after in plan.widths().values()) / 100 - lower

    def recover(plan: Plan) -> None:
        nonlocal lower
        lower += 0.005

    gone = {}
    for reference in ("current", "recovered", "dense"):
        for recovers in (False, True):
            lower = 0.0
            limits = {"trial": 0.0101, "running": 9, "collapse": 9}
            settings = AdaptiveSettings(step=1, unit="units", reference=reference, order="forward", skip="sweep", **limits)  # type: ignore[arg-type]
            plan = drive(adaptive(axes, scores, settings, recover=recover if recovers else None), judge)
            gone[reference, recovers] = sum(before - after for before, after in plan.widths().values())
    assert gone["current", False] == gone["current", True] == 12  # each step costs less than what it may
    assert gone["recovered", False] == gone["dense", False] == gone["dense", True] == 1
    assert gone["recovered", True] == 12  # a step of one axis in each sweep


def test_a_target_on_any_cost_ends_the_search() -> None:
    _, axes, scores, _ = setting()
    for make in (adaptive, partial(predicted, predict=lambda axis, kept: axis.units - len(kept))):
        settings = AdaptiveSettings(step=1, unit="units", trial=9, running=9, keep={"gold": 0.5})
        search = make(axes, scores, settings=settings, costs={"gold": lambda widths: 10 + sum(widths.values() or (14,)) - 14})
        widths = {name: after for name, (_, after) in drive(search, lambda plan: 0.0).widths().items()}
        assert sum(widths.values()) == 9
        with pytest.raises(SecateurError, match="no such count"):
            next(make(axes, scores, settings=settings))


@pytest.mark.parametrize("search", [adaptive, bisect, sensitivity, partial(predicted, predict=lambda axis, kept: 0.0)])
@pytest.mark.parametrize("spoil", ["short", "long", "flat", "nan"])
def test_scores_that_are_not_one_finite_number_per_unit_are_told(search, spoil: str) -> None:  # type: ignore[no-untyped-def]
    _, axes, scores, judge = setting()
    spoilt = {
        "short": lambda value: value[:3],
        "long": lambda value: value.repeat(2),
        "flat": lambda value: value[:, None],
        "nan": lambda value: value * math.nan,
    }[spoil]
    wrong = {**scores, "2": spoilt(scores["2"])}
    words = "infinite or not a number" if spoil == "nan" else r"of shape \[.*give one score for each of its 6 units"
    with pytest.raises(SecateurError, match=f"a search over axis '2': found scores .*{words}"):
        drive(search(axes, wrong), judge)
    if search is adaptive:
        with pytest.raises(SecateurError, match=words):
            drive(search(axes, lambda plan: wrong), judge)
        with pytest.raises(SecateurError, match="no scores for it"):
            drive(search(axes, lambda plan: {}), judge)


def test_scores_given_anew_need_none_for_units_that_are_gone() -> None:
    _, axes, scores, judge = setting()

    def anew(plan: Plan) -> dict[str, torch.Tensor]:
        left = {cut.axis: list(cut.kept) for step in plan.steps for cut in step.cuts}
        found = {name: torch.full_like(value, math.nan) for name, value in scores.items()}
        for name, value in found.items():
            value[left.get(name, slice(None))] = scores[name][left.get(name, slice(None))]
        return found

    assert drive(adaptive(axes, anew, SETTINGS), judge) == drive(adaptive(axes, scores, SETTINGS), judge)


@pytest.mark.parametrize("found", [None, torch.ones(2), "high"])
def test_a_judge_without_a_number_is_told_and_nothing_is_recorded(found: object) -> None:
    _, axes, scores, _ = setting()
    told: list[Trial] = []
    with pytest.raises(SecateurError, match="a loss from a judge: found no number"):
        drive(adaptive(axes, scores), lambda plan: found if plan else 0.0, record=told.append)  # type: ignore[arg-type, return-value]
    assert len(told) == 1
    for losses in ([0.0], None, [0.0] * 9):
        with pytest.raises(SecateurError, match="from a judge: found"):
            drive(sensitivity(axes, scores, (0.2, 0.4)), lambda plan: 0.0, many=lambda plans, losses=losses: losses)  # type: ignore[misc]


def test_a_share_above_a_loss_holds_for_losses_of_any_sign_and_shares_of_any_size() -> None:
    _, axes, scores, _ = setting()
    for dense in (-1.0, 0.0, 1.0):
        for settings in (
            replace(SETTINGS, compare="ratio", trial=math.inf, running=math.inf),
            replace(SETTINGS, compare="ratio", trial=0.5, running=0.5),
        ):
            plan = drive(adaptive(axes, scores, settings), lambda plan, dense=dense: dense)  # type: ignore[misc]
            assert {after for _, after in plan.widths().values()} == {1}, (dense, settings)
    # -1 may rise to -0.5 and no further
    settings = replace(SETTINGS, compare="ratio", trial=0.5, running=0.5, unit="units", step=1)
    plan = drive(adaptive(axes, scores, settings), lambda plan: -1 + 0.2 * sum(b - a for a, b in plan.widths().values()) * -1)
    assert sum(before - after for before, after in plan.widths().values()) == 2


def test_a_step_larger_than_any_width_takes_what_there_is() -> None:
    _, axes, scores, _ = setting()
    for unit in ("original", "current", "units", "params", "macs"):
        settings = AdaptiveSettings(step=1e308, unit=unit, trial=9, running=9)  # type: ignore[arg-type]
        assert {after for _, after in drive(adaptive(axes, scores, settings), lambda plan: 0.0).widths().values()} == {1}


def test_an_order_that_is_no_list_of_free_axes_and_rates_that_are_words_are_told() -> None:
    _, axes, scores, judge = setting()
    fixed = next(axis.name for axis in axes if axis.fixed)
    for order in (3, "0", ["0", "0"], [["0"]]):
        with pytest.raises(SecateurError, match="a binary search: found order="):
            drive(bisect(axes, scores, order=order), judge)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match=f"a binary search over axis '{fixed}': found"):
        drive(bisect(axes, scores, order=["0", fixed]), judge)
    with pytest.raises(SecateurError, match="sensitivity at rate 'half': found no share"):
        drive(sensitivity(axes, scores, ["half"]), judge)  # type: ignore[list-item]
    assert drive(sensitivity(axes, scores, (rate for rate in (0.2, 0.4))), judge)["0"][1:] != ()  # type: ignore[arg-type]


@pytest.mark.parametrize("search", [adaptive, bisect, sensitivity])
def test_a_model_without_a_loss_and_an_axis_without_scores_are_told(search) -> None:  # type: ignore[no-untyped-def]
    _, axes, scores, _ = setting()
    with pytest.raises(SecateurError, match="a loss of nan of the model before anything is cut"):
        drive(search(axes, scores), lambda plan: math.nan)
    with pytest.raises(SecateurError, match="no scores for it"):
        drive(search(axes, {}), lambda plan: 0.0)
