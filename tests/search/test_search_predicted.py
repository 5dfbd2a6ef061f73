"""The predicted search, which asks less: it ends, finds what the plain one finds, holds its limits; its predictions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from searches import SETTINGS, digits, error_of, kept, mean_loss, redundant, setting
from secateur import criteria, score, trace
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.recipes.predictions import prediction, reconstruction
from secateur.search import AdaptiveSettings, PredictedSettings, Trial, adaptive, additive, drive, inner, predicted, previewing


def fast(settings: AdaptiveSettings = SETTINGS, how: PredictedSettings | None = None):  # type: ignore[no-untyped-def]
    model, x = redundant()
    axes = trace(model, x)
    scores = score(axes, criteria.l1(model, group=False))
    return (
        axes,
        predicted(axes, scores, reconstruction(model, axes, [(x, None)]), settings, how),
        previewing(model, error_of(model, x)),
    )


@pytest.mark.parametrize("doubt", [0.0, 2.0])
def test_a_predicted_search_finds_what_the_plain_one_finds_and_asks_less(doubt: float) -> None:
    _, axes, scores, judge = setting()
    plain: list[Trial] = []
    drive(adaptive(axes, scores, SETTINGS), judge, record=plain.append)
    asked: list[Trial] = []
    _, search, judge = fast(how=PredictedSettings(doubt=doubt))
    plan = drive(search, judge, record=asked.append)
    assert list(kept(plan).values()) == [(1, 4, 6)]
    assert len(asked) < len(plain)
    _, search, _ = fast(how=PredictedSettings(doubt=doubt))
    assert drive(search, lambda plan: math.nan, history=asked) == plan, "it replays"


@pytest.mark.parametrize("verdict", [0.0, 1.0, math.inf, math.nan])
@pytest.mark.parametrize("skip", ["settle", "sweep"])
def test_a_predicted_search_ends_whatever_the_judge_says(verdict: float, skip: str) -> None:
    settings = AdaptiveSettings(step=0.25, running=0.03, skip=skip, max_rate=0.99)  # type: ignore[arg-type]
    _, search, _ = fast(settings)
    count = 0

    def judge(plan: Plan) -> float:
        nonlocal count
        count += 1
        return 0.0 if not plan else verdict

    plan = drive(search, judge)
    assert count < 60
    assert [after for _, after in plan.widths().values()] == ([] if verdict else [1, 1])


@pytest.mark.parametrize("share", [0.9, 0.7, 0.4])
def test_a_predicted_search_overshoots_its_target_by_less_than_a_step(share: float) -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    scores = score(axes, criteria.l1(model))
    settings = AdaptiveSettings(step=0.2, running=math.inf, keep={"macs": share})
    plan = drive(
        predicted(axes, scores, prediction("taylor", model, axes, batches[:1], F.cross_entropy), settings), lambda _: 0.0
    )
    widths = {axis: after for axis, (_, after) in plan.widths().items()}
    assert axes.count("macs", widths) <= share * axes.count("macs")
    back = [widths | {name: min(axes[name].units, after + round(0.2 * axes[name].units))} for name, after in widths.items()]
    assert any(axes.count("macs", wider) > share * axes.count("macs") for wider in back)


def test_every_plan_a_predicted_search_returns_was_measured_within_the_limit() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    judge = previewing(model, mean_loss(batches))
    dense = judge(axes.plan({}))
    for name in ("reconstruction", "taylor", "group_fisher"):
        predict = prediction(name, model, axes, batches[:1], F.cross_entropy)
        trials: list[Trial] = []
        settings = AdaptiveSettings(step=0.3, running=0.1)
        search = predicted(axes, score(axes, criteria.l1(model)), predict, settings)
        plan = drive(search, judge, record=trials.append)
        assert judge(plan) <= dense + 0.1 + 1e-9
        assert plan
        widths = {axis: after for axis, (_, after) in plan.widths().items()}
        assert widths in [dict(trial.widths) for trial in trials if trial.loss <= dense + 0.1 + 1e-9]


def test_reconstruction_is_the_share_of_variance_that_goes() -> None:
    model = handmade.small()
    axes = trace(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 4, 4, dtype=torch.float64, generator=draw)
    axis = next(axis for axis in axes.free if axis.units == 8)
    gone = [1, 4, 6]
    shares = []
    with torch.no_grad():
        hidden = model.norm(model.one(x)).relu()
        part = torch.zeros_like(hidden)
        part[:, gone] = hidden[:, gone]
        for layer, padding in ((model.two, 1), (model.three, 0)):
            lost, whole = (F.conv2d(h, layer.weight, padding=padding).transpose(0, 1).flatten(1) for h in (part, hidden))
            shares.append(float(lost.var(1, correction=0).sum() / whole.var(1, correction=0).sum()))
    predict = reconstruction(model, axes, [(x[:25], None), (x[25:], None)])
    rest = [u for u in range(8) if u not in gone]
    assert predict(axis, rest) == pytest.approx(sum(shares) / 2, rel=1e-9)
    assert predict(axis, range(8)) == 0


def test_additive_sums_what_goes() -> None:
    axes = handmade.axes(handmade.small())
    predict = additive({"one": torch.arange(8.0), "two": -torch.ones(6)})
    assert predict(axes["one"], [0, 7]) == 21
    assert predict(axes["two"], [0]) == 0
    with pytest.raises(SecateurError, match="a predicted search"):
        PredictedSettings(room=0)


def test_predictions_that_are_no_numbers_are_told() -> None:
    _, axes, scores, judge = setting()
    for predict, words in (
        (lambda axis, kept: math.nan, "found nan; return a number"),
        (lambda axis, kept: None, "found None; return a number"),
        (additive({}), "no scores for it"),
    ):
        with pytest.raises(SecateurError, match=f"a prediction for axis '.*': found {words.removeprefix('found ')}"):
            drive(predicted(axes, scores, predict), judge)


def test_axes_of_a_residual_sum_are_told_from_those_inside_a_branch() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.up, self.down = (nn.Linear(*size) for size in ((5, 6), (6, 10), (6, 10), (10, 6)))
            self.last = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(x + self.down(self.gate(x).sigmoid() * self.up(x)))

    def names(model: nn.Module, x: torch.Tensor) -> set[str]:
        return {axis.name for axis in inner(trace(model.eval(), x)).free}

    assert names(Gated(), torch.zeros(1, 5)) == {"gate"}
    inside = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)}
    assert names(zoo.digits_resnet(2, (4, 6, 8)), torch.zeros(1, 1, 8, 8)) == inside
    depthwise = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    assert len(names(depthwise, torch.zeros(1, 3, 4, 4))) == 2


@pytest.mark.parametrize("cliff", [0.5, 0.8, 0.9])
def test_a_cliff_that_no_prediction_sees_is_not_fallen_from(cliff: float) -> None:
    """The loss rises by a little until some share of the parameters is gone, and then by much."""
    model, batches = digits()
    axes = trace(model, batches[0][0])

    def judge(plan: Plan) -> float:
        share = axes.count("params", {name: after for name, (_, after) in plan.widths().items()}) / axes.count("params")
        return 0.001 * (1 - share) + (share < cliff)

    predict = reconstruction(model, axes, batches)
    trials: list[Trial] = []
    settings = AdaptiveSettings(step=0.3, running=0.1)
    plan = drive(predicted(axes, score(axes, criteria.l1(model)), predict, settings), judge, record=trials.append)
    assert judge(plan) < 0.1
    assert any(trial.loss > 0.1 for trial in trials)
    left = axes.count("params", {name: after for name, (_, after) in plan.widths().items()}) / axes.count("params")
    assert left < (1 + cliff) / 2
