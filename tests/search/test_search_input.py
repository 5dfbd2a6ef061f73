"""Odd and bad input of searches, told in one sentence: settings, histories, scores, losses, orders, rates."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import handmade
from searches import SETTINGS, setting
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.search import (
    AdaptiveSettings,
    Trial,
    adaptive,
    bisect,
    drive,
    predicted,
    read_history,
    sensitivity,
)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"step": 0}, {"shrink": 1.0}, {"least": 0}, {"max_rate": 1.0}, {"trial": -1}, {"sweeps": 0}):
        with pytest.raises(SecateurError, match="an adaptive search"):
            AdaptiveSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="a binary search"):
        next(bisect(handmade.axes(handmade.small()), {}, tries=0))


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


@pytest.mark.parametrize("search", [adaptive, bisect, sensitivity])
def test_a_model_without_a_loss_and_an_axis_without_scores_are_told(search) -> None:  # type: ignore[no-untyped-def]
    _, axes, scores, _ = setting()
    with pytest.raises(SecateurError, match="a loss of nan of the model before anything is cut"):
        drive(search(axes, scores), lambda plan: math.nan)
    with pytest.raises(SecateurError, match="no scores for it"):
        drive(search(axes, {}), lambda plan: 0.0)


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


def test_a_step_larger_than_any_width_takes_what_there_is() -> None:
    _, axes, scores, _ = setting()
    for unit in ("original", "current", "units", "params", "macs"):
        settings = AdaptiveSettings(step=1e308, unit=unit, trial=9, running=9)  # type: ignore[arg-type]
        assert {after for _, after in drive(adaptive(axes, scores, settings), lambda plan: 0.0).widths().values()} == {1}
