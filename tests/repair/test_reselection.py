"""Widths by how the answers move, and units selected once more: the words of a recipe, and the judge behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import allocate, criteria, repair, score, trace
from secateur.core.errors import SecateurError
from secateur.core.keep import Keep
from secateur.core.plan import Plan
from secateur.recipes import run, schema, zoo
from secateur.recipes.answers import BASES, moved_answers
from secateur.recipes.choose import choose, criterion
from secateur.recipes.reconstruct import channel_pruning
from secateur.testing import awake


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = awake(zoo.digits_resnet(widths=(4, 6, 8))).double().eval()
    return model, [(torch.randn(30, 1, 8, 8, dtype=torch.float64), torch.randint(10, (30,))) for _ in range(4)]


def kept(plan: Plan) -> dict[str, list[int]]:
    return {cut.axis: list(cut.kept) for step in plan.steps if isinstance(step, Keep) for cut in step.cuts}


def test_answers_move_by_the_divergence_after_least_squares_where_one_axis_is_cut() -> None:
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    judge = moved_answers(model, axes, batches[1:], batches[:1], heat=2.0)
    assert judge(axes.plan({})) == 0
    x = batches[0][0]
    inner = [axis for axis in axes.free if axis.name.endswith("conv1") and axis.name != "conv1"]
    assert inner
    for axis in inner:
        plan = axes.plan({axis.name: range(axis.units // 2)})
        small = plan.apply(model)
        repair.least_squares(model, small, batches[1:], plan=plan, ridge=1e-6, residual=False)
        with torch.no_grad():
            now, dense = (net(x).div(2).log_softmax(1) for net in (small, model))
        expected = 4 * F.kl_div(now, dense, log_target=True, reduction="batchmean")
        assert judge(plan) == pytest.approx(float(expected), rel=1e-4, abs=2e-7)  # divergences are float32
        assert judge(plan) > 1e-6
    with pytest.raises(SecateurError, match="no batch"):
        moved_answers(model, axes, batches, [])


def test_a_recipe_measures_curves_as_the_function_does() -> None:
    model, batches = network()
    prune = schema.from_dict({
        "model": {"build": "zoo:digits_resnet"},
        "prune": {"criterion": "loss_curves", "keep": {"macs": 0.6}, "args": {"base": "l2", "least": 1e-3}},
    }).prune  # fmt: skip
    axes, plan = choose(model, batches[0][0][:1], prune, batches=batches, loss=F.cross_entropy)
    judge = moved_answers(model, axes, batches[2:], batches[:2], sample=4096)
    scores = score(axes, criteria.loss_curves(axes, criteria.l2(model), judge, least=1e-3))
    made = criterion(model, prune, batches[0][0][:1], axes=axes, batches=batches, loss=F.cross_entropy, seed=0)
    for name, values in score(axes, made).items():
        torch.testing.assert_close(values, scores[name])
    assert kept(plan) == kept(allocate.budget(axes, scores, {"macs": 0.6}, normalise="none", floor=0.1))
    assert axes.count("macs", {name: len(units) for name, units in kept(plan).items()}) <= 0.6 * axes.count("macs")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"base": "lassso"}, "'lasso'"), ({"base": "scoring_net"}, "no criterion to order"), ({"heat": 0}, "no temperature"),
        ({"heat": "1"}, "no temperature"), ({"lest": 1}, "'least'"), ({"shares": [2]}, "shares between 0 and 1"),
        ({"cost": "flops"}, "flops"),
    ],
)  # fmt: skip
def test_wrong_words_on_curves_are_one_sentence(args: dict[str, Any], match: str) -> None:
    model, batches = network()
    prune = schema.Prune(criterion="loss_curves", args=args)
    with pytest.raises(SecateurError, match=match):
        choose(model, batches[0][0][:1], prune, batches=batches, loss=F.cross_entropy)


@pytest.mark.parametrize("base", BASES)
def test_every_criterion_of_units_can_order_those_of_a_curve(base: str) -> None:
    model, double = network()
    model, batches = model.float(), [(x.float(), y) for x, y in double]
    axes = trace(model, batches[0][0][:1])

    def scores(prune: schema.Prune, some: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        given: dict[str, Any] = {"axes": axes, "batches": some, "loss": F.cross_entropy, "seed": 0}
        return score(axes, criterion(model, prune, batches[0][0][:1], **given))

    plain = scores(schema.Prune(criterion=base), batches[2:])  # type: ignore[arg-type]
    curved = scores(schema.Prune(criterion="loss_curves", args={"base": base}), batches)
    assert curved
    for name, values in curved.items():
        assert torch.equal(values.argsort(descending=True), plain[name].argsort(descending=True, stable=True))


@pytest.mark.parametrize("fit", ["least_squares", "two_sided"])
def test_units_are_selected_once_more_within_the_same_widths(fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = network()
    fitted: list[str] = []
    for name, how in {"least_squares": repair.least_squares, "two_sided": repair.two_sided}.items():

        def noted(*given: Any, name: str = name, how: Any = how, **named: Any) -> None:
            fitted.append(name)
            how(*given, **named)

        monkeypatch.setattr(repair, name, noted)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = schema.Prune(criterion="l1", keep={"macs": 0.6})
    again = schema.Prune(criterion="l1", keep={"macs": 0.6}, reselect=fit)  # type: ignore[arg-type]
    axes, first = choose(model, batches[0][0][:1], plain, batches=batches)
    _, second = choose(model, batches[0][0][:1], again, batches=batches)
    assert fitted == [fit] * sum(len(units) < axes[name].units for name, units in kept(first).items())
    assert first.widths() == second.widths()
    assert kept(first) != kept(second)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def select(current: nn.Module, original: nn.Module, axis: Any) -> Tensor:
        return criteria.elimination(current, batches, original=original, sample=4096, default=criteria.l2(model))(axis)

    widths = {name: len(units) for name, units in kept(first).items()}
    plan, _ = channel_pruning(model, axes, widths, batches, select=select, sample=4096, fit=getattr(repair, fit))
    assert kept(plan) == kept(second)
    small = {plan: plan.apply(model) for plan in (first, second)}
    for each, net in small.items():
        getattr(repair, fit)(model, net, batches, plan=each)
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        errors = [float((net(x) - model(x)).square().mean()) for net in small.values()]
    assert errors[1] < errors[0]


def test_what_nothing_reads_keeps_its_units() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3)).eval()
    batches = [(torch.randn(20, 6, 5), None) for _ in range(3)]
    prune = schema.Prune(criterion="l2", keep={"params": 0.6}, reselect="least_squares")
    axes, plan = choose(model, batches[0][0][:2], prune, batches=batches)
    _, first = choose(model, batches[0][0][:2], schema.Prune(criterion="l2", keep={"params": 0.6}), batches=batches)
    other = [axis.name for axis in axes.free if axis.gate != "read"]
    assert other
    assert {name: kept(plan).get(name) for name in other} == {name: kept(first).get(name) for name in other}
    assert plan.widths() == first.widths()
    assert plan.apply(model)(batches[0][0]).shape == (20, 6, 3)


def test_reselection_is_refused_where_there_is_nothing_to_select(tmp_path: Path) -> None:
    model, batches = network()
    for more, given, match in (({"rounds": 2}, batches, "2 rounds"), ({}, None, "no data")):
        prune = schema.Prune(criterion="l1", reselect="two_sided", **more)  # type: ignore[arg-type]
        with pytest.raises(SecateurError, match=match):
            choose(model, batches[0][0][:1], prune, batches=given)
    table = {"model": {"build": "zoo:digits_resnet"}, "prune": {"reselect": "two_sided"}}
    for section, more in (("search", {"method": "adaptive"}), ("lowrank", {"method": "trp"})):
        with pytest.raises(SecateurError, match=rf"\[{section}\], which makes the plan"):
            run(schema.from_dict(table | {section: more}), tmp_path / section)
        assert not (tmp_path / section).exists()
