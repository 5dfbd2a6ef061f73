"""Searches that ask less, and judges that answer several questions at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.recipes.predictions import prediction, reconstruction
from secateur.search import (
    AdaptiveSettings,
    PredictedSettings,
    Trial,
    adaptive,
    additive,
    drive,
    inner,
    predicted,
    previewing,
    sensitivity,
    stacked,
)
from secateur.testing import awake
from test_search import SETTINGS, error_of, kept, redundant, setting


def digits(double: bool = True) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small residual network and random images with labels."""
    torch.manual_seed(0)
    model = awake(zoo.digits_resnet(widths=(4, 6, 8))).eval()
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 1, 8, 8, generator=draw) for size in (12, 12, 5)]
    batches = [(x.double() if double else x, torch.randint(10, (len(x),), generator=draw)) for x in images]
    return (model.double() if double else model), batches


def mean_loss(batches: list[tuple[torch.Tensor, torch.Tensor]]):  # type: ignore[no-untyped-def]
    def evaluate(trial: nn.Module) -> float:
        with torch.no_grad():
            total = sum(float(F.cross_entropy(trial(x), y)) * len(y) for x, y in batches)
        return total / sum(len(y) for _, y in batches)

    return evaluate


@pytest.mark.parametrize("settle", [False, True])
def test_stacked_gates_judge_as_previews_do(settle: bool) -> None:
    model, batches = digits()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    axes = trace(model, batches[0][0])
    prepare = (lambda trial: repair.batchnorm(model, trial, batches)) if settle else None
    one = previewing(model, mean_loss(batches), prepare)
    refuse = lambda plan: pytest.fail("a plan that gates show")  # noqa: E731
    many = stacked(model, batches, F.cross_entropy, settle=batches if settle else None, chunk=3, otherwise=refuse)
    plans = [axes.plan({axis.name: range(1, axis.units)}) for axis in axes.free] + [axes.plan({})]
    plans.append(axes.plan({axis.name: range(axis.units - 2) for axis in axes.free}))
    assert len({round(one(plan), 9) for plan in plans}) == len(plans), "losses that tell mistakes"
    assert many(plans) == pytest.approx([one(plan) for plan in plans], rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_what_gates_cannot_show_goes_to_the_other_judge() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    first = allocate.uniform(axes, score(axes, criteria.l2(model)), 0.8)
    again = trace(first.apply(model), batches[0][0])
    two = Plan(first.fingerprint, first.steps + again.plan({again.free[0].name: [0]}).steps)
    many = stacked(model, batches, F.cross_entropy, otherwise=lambda plan: 7.0)
    assert many([first, two])[1] == 7.0
    assert many([first])[0] < 7


@pytest.mark.parametrize("norm_first", [False, True])
def test_cuts_inside_transformer_layers_are_stacked_beside_the_norms_of_the_stream(norm_first: bool) -> None:
    """An axis that stays whole is in every plan; that a norm reads it must not send the plan to the other judge."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, 3))
    model = model.double().eval()
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 3, 8, generator=draw).double(), torch.randint(3, (n,), generator=draw)) for n in (6, 4)]
    axes = trace(model, batches[0][0])
    plans = [axes.plan({axis.name: range(axis.units // 2)}) for axis in axes.free if axis.kind != "width"]
    assert len(plans) >= 4, "heads and hidden units of two layers"
    refuse = lambda plan: pytest.fail("a plan that gates show")  # noqa: E731
    many = stacked(model, batches, F.cross_entropy, chunk=3, otherwise=refuse)
    one = previewing(model, mean_loss(batches))
    assert many([*plans, axes.plan({})]) == pytest.approx([one(plan) for plan in [*plans, axes.plan({})]], rel=1e-9)
    assert many([axes.plan({})] * 2) == pytest.approx([one(axes.plan({}))] * 2, rel=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_stacked_is_told() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    plans = [axes.plan({axis.name: range(1, axis.units)}) for axis in axes.free][:2]
    for loss, words in (
        (lambda output, target: float(output.sum()), "RuntimeError: vmap"),
        (lambda output, target: output, r"a loss of shape \[12, 10\]"),
        (lambda output, target: 1.0, "TypeError|ValueError"),
    ):
        with pytest.raises(SecateurError, match=f"judged at once: found {words}"):
            stacked(model, batches, loss, otherwise=lambda plan: 0.0)(plans)
    with pytest.raises(SecateurError, match="is no pair"):
        stacked(model, [batches[0][0]], F.cross_entropy, otherwise=lambda plan: 0.0)(plans)
    for chunk in (0, -1, 1.5):
        with pytest.raises(SecateurError, match="candidates judged at once: found no such number"):
            stacked(model, batches, F.cross_entropy, chunk=chunk, otherwise=lambda plan: 0.0)


def test_a_search_is_the_same_one_by_one_and_many_at_once() -> None:
    model, batches = digits()
    axes = trace(model, batches[0][0])
    scores = score(axes, criteria.l1(model))
    judge = previewing(model, mean_loss(batches))
    many = stacked(model, batches, F.cross_entropy, otherwise=judge)
    settings = AdaptiveSettings(step=0.3, trial=0.05, running=0.2, sweeps=4)
    for search in (lambda: adaptive(axes, scores, settings), lambda: sensitivity(axes, scores, (0.3, 0.6))):
        alone: list[Trial] = []
        both: list[Trial] = []
        calls: list[int] = []

        def counted(plans, calls=calls):  # type: ignore[no-untyped-def]
            calls.append(len(plans))
            return many(plans)

        one = drive(search(), judge, record=alone.append)
        two = drive(search(), judge, record=both.append, many=counted)
        assert max(calls) > 1
        assert [trial.plan for trial in alone] == [trial.plan for trial in both]
        assert [trial.loss for trial in alone] == pytest.approx([trial.loss for trial in both], rel=1e-9)
        assert isinstance(one, dict) or one == two
        # a history that ends inside a batch of plans goes on
        for stop in (1, 2, 3):
            rest: list[Trial] = []
            drive(search(), judge, history=alone[:stop], record=rest.append, many=many)
            assert [trial.number for trial in rest] == list(range(stop, len(alone)))


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
