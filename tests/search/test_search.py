"""The adaptive search: it ends, finds what can go, changes nothing, holds its guards and targets, and replays."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from searches import SETTINGS, kept, setting
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.search import AdaptiveSettings, Status, adaptive, drive, predicted, read_history, recorder


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
    seen: list[Status] = []
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


def test_greedy_takes_the_step_that_harms_least_and_measures_again() -> None:
    _, axes, scores, _ = setting()
    price = dict(zip((axis.name for axis in axes.free), (0.01, 0.001), strict=True))
    accepted: list[dict[str, tuple[int, int]]] = []

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
