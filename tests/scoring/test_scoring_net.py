"""The Scoring Net: what must hold whatever it has learned, and that it learns."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from scorers import KINDS, budget, fresh, scores_of, task
from secateur import allocate, criteria, score, trace
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Slopes, fit_
from secateur.criteria.scoring.counts import count_of
from secateur.criteria.scoring.fit import gates_loss
from secateur.criteria.scoring.gates import budget_of, gates_of
from secateur.criteria.scoring.task import prepare
from secateur.criteria.scoring.units import units_of
from secateur.io import load_scorer, save_scorer


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_finite_positive_and_leave_the_model_alone(kind: str) -> None:
    model = handmade.small().train()
    before = deepcopy(model.state_dict())
    found = scores_of(fresh(KINDS[kind]), model, handmade.axes(model))
    assert {name: len(values) for name, values in found.items()} == {"one": 8, "two": 6}
    for values in found.values():
        assert (values > 0).all()
        assert len(set(values.tolist())) == len(values), "random weights tell all units apart"
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def permuted(model: handmade.Small, order: list[int]) -> handmade.Small:
    """The same function, the units of axis "two" in another order."""
    moved = deepcopy(model)
    for name in ("two.weight", "three.weight", "last.weight", "last.bias", "last.running_mean", "last.running_var"):
        moved.state_dict()[name].copy_(model.state_dict()[name][order])
    moved.head.weight.data = model.head.weight.data.unflatten(1, (6, 16))[:, order].flatten(1)
    return moved


@pytest.mark.parametrize("kind", KINDS)
def test_scores_follow_a_permutation_of_the_units(kind: str) -> None:
    model, order, net = handmade.small(), [3, 1, 0, 5, 2, 4], fresh(KINDS[kind])
    axes = handmade.axes(model)
    straight, moved = scores_of(net, model, axes), scores_of(net, permuted(model, order), axes)
    torch.testing.assert_close(moved["two"], straight["two"][order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_set_of_many_inputs_has_no_order(gradients: bool) -> None:
    """A layer that reads 100 units: neither their order nor that of its own units is seen, in the kernels that are shown."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    moved, inner, outer = deepcopy(model), torch.randperm(100), torch.randperm(12)
    with torch.no_grad():
        for layer in (moved[0].weight, moved[0].bias):
            layer.copy_(layer[inner])
        moved[2].weight.copy_(moved[2].weight[outer][:, inner])
        moved[2].bias.copy_(moved[2].bias[outer])
        moved[4].weight.copy_(moved[4].weight[:, outer])
    batches = [(torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,)))]
    net, found = fresh(NetSettings(encoder="raw", gradients=gradients)), []
    for network in (model, moved):
        slopes = Slopes(network, batches, F.cross_entropy) if gradients else None
        axes = trace(network, batches[0][0])
        found.append(list(score(axes, net.criterion(network, axes, slopes)).values()))
    for straight, other, order in zip(*found, (inner, outer), strict=True):
        torch.testing.assert_close(other, straight[order], rtol=1e-4, atol=1e-6)
    shown = units_of(model, trace(model, batches[0][0]), NetSettings(encoder="raw")).sets[1]
    assert shown.shape == (12, 64, 9)
    largest = model[2].weight.detach().abs().sort(1, descending=True).values[:, :64]
    sizes = shown.abs().amax(2).double()
    torch.testing.assert_close(sizes / sizes[0, 0], largest / largest[0, 0], rtol=1e-4, atol=1e-6)


def twin(model: handmade.Small, one: int, other: int) -> None:
    """Unit `other` of axis "two" becomes a copy of unit `one`."""
    with torch.no_grad():
        for name in ("two.weight", "three.weight", "last.weight", "last.bias", "last.running_mean", "last.running_var"):
            model.state_dict()[name][other] = model.state_dict()[name][one]
        model.head.weight.view(10, 6, 16)[:, other] = model.head.weight.view(10, 6, 16)[:, one]


@pytest.mark.parametrize("kind", KINDS)
def test_twins_have_equal_scores_and_the_later_one_goes_first(kind: str) -> None:
    model, net = handmade.small(), fresh(KINDS[kind])
    twin(model, 1, 4)
    axes = handmade.axes(model)
    found = scores_of(net, model, axes)["two"]
    assert found[1] == found[4]
    pushed = found.clone()
    pushed[[1, 4]] = 0.0
    plan = allocate.uniform(axes.ignore("one.weight"), {"one": torch.zeros(8), "two": pushed}, 5 / 6)
    assert plan.steps[0].cuts[0].dropped == (4,)


def test_a_twin_is_cheaper_than_a_unit_of_its_own_that_is_otherwise_equal() -> None:
    """Rows with the same sorted entries have the same statistics; the third points elsewhere."""
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    row = torch.tensor([0.9, -0.5, 0.3, -0.2, 0.1, 0.05], dtype=torch.float64)
    model[0].weight.data = torch.stack([row, row, row.flip(0)])
    model[2].weight.data = torch.ones(2, 3, dtype=torch.float64)
    axes = trace(model, torch.zeros(1, 6, dtype=torch.float64))
    (name,) = [axis.name for axis in axes.free]
    for seed, settings in product(range(5), (NetSettings(), NetSettings(prior="l1"))):
        for silenced in (None, 0, 1):  # likeness and distance together, and each on its own
            net = fresh(settings, seed)
            if silenced is not None:
                net.twin.bias.data[silenced] = -30
            found = net.criterion(model, axes)(axes[name])
            assert found[0] == found[1] < found[2]


def test_an_untrained_net_with_a_prior_is_l1_and_a_trained_one_stays_near() -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    norms = score(axes, criteria.l1(model))
    net = ScoringNet(NetSettings(prior="l1", bound=0.25))
    for share in (0.2, 0.5, 0.8):
        by_norm = allocate.budget(axes, norms, {"macs": share}, normalise="mean", floor=0.0)
        assert budget(axes, score(axes, net.criterion(model, axes)), share) == by_norm
    logs = {name: (values / values.mean()).log() for name, values in norms.items()}
    deviation = torch.cat(list(logs.values())).std(unbiased=False)
    units = units_of(model, axes, net.settings)
    for seed in range(3):
        net = fresh(net.settings, seed)
        net.head.weight.data *= 100
        raw = dict(zip(units.names, net(units).detach().split(list(units.sizes)), strict=True))
        moved = torch.cat([raw[name] - logs[name] / deviation for name in raw])
        assert 0.1 < moved.abs().max() <= 0.25 + 1e-5


def test_a_correction_that_all_units_share_is_none() -> None:
    """Else a gain of all would be driven to the bound, where no unit is told from another."""
    model = handmade.small()
    units = units_of(model, handmade.axes(model), NetSettings(prior="l1"))
    net = fresh(NetSettings(prior="l1"))
    nn.init.constant_(net.body[3].bias, 50.0)  # far more for all units than between them
    moved = net(units).detach() - units.prior[units.first]
    assert float(moved.min()) < -1e-3
    assert float(moved.max()) > 1e-3


@pytest.mark.parametrize("left", [0.9, 0.1])
def test_a_correction_shrinks_where_norms_differ_less_than_where_it_was_learned(left: float, tmp_path: Path) -> None:
    settings = NetSettings(prior="l1", bound=0.25)
    model, alike = handmade.small(), handmade.small()
    axes = handmade.axes(alike)
    with torch.no_grad():
        for values in alike.parameters():  # sizes, so much as far from their mean
            values.copy_(left * values + (1 - left) * values.sign() * values.abs().mean())
    net = fresh(settings)
    fit_(net, [task(model)], ScorerSettings(stages=(ScorerStage(epochs=1, lr=1e-9),)))
    net.head.weight.data *= 100
    here, there = (units_of(known, handmade.axes(known), net.settings) for known in (model, alike))
    assert net.settings.spread == here.spread
    assert there.spread < here.spread
    moved, less = (float((net(units).detach() - units.prior[units.first]).abs().max()) for units in (here, there))
    follows = max(0.0, 2 * there.spread / here.spread - 1)
    assert moved > 0.2
    assert less <= 0.25 * follows + 1e-6
    assert (less > 0) == (follows > 0) == (left == 0.9)
    if not follows:
        by_norm = allocate.budget(axes, score(axes, criteria.l1(alike)), {"macs": 0.5}, normalise="mean", floor=0.0)
        assert budget(axes, score(axes, net.criterion(alike, axes)), 0.5) == by_norm
    save_scorer(tmp_path / "net.safetensors", net)
    assert load_scorer(tmp_path / "net.safetensors").settings == net.settings
    fit_(net, [task(alike)], ScorerSettings(stages=(ScorerStage(epochs=1, lr=1e-9),)))
    assert net.settings.spread == there.spread, "learned on both"


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_filter_comes_last(kind: str) -> None:
    model = handmade.small()
    with torch.no_grad():
        model.two.weight[2] = 0
        model.three.weight[2] = 0
        model.head.weight.view(10, 6, 16)[:, 5] = 0  # nobody reads unit 5
    found = scores_of(fresh(KINDS[kind]), model, handmade.axes(model))
    assert found["two"][2] == found["two"][5] == 0
    assert sorted((found["two"] == 0).nonzero().flatten().tolist()) == [2, 5]
    assert (found["one"] > 0).all()
    model.one.weight.data[3] = 0  # its bias is still there
    assert (scores_of(fresh(KINDS[kind]), model, handmade.axes(model))["one"] > 0).all()


@pytest.mark.parametrize("encoder", ["stats", "raw"])
def test_scaling_a_layer_before_a_batch_norm_changes_no_score(encoder: str) -> None:
    model = handmade.small()
    scaled = deepcopy(model)
    with torch.no_grad():
        scaled.one.weight *= 7
        scaled.one.bias *= 7
        scaled.norm.running_mean *= 7
        scaled.norm.running_var *= 49
    axes, net = handmade.axes(model), fresh(NetSettings(encoder=encoder, scale=False))  # type: ignore[arg-type]
    for name, values in scores_of(net, model, axes).items():
        torch.testing.assert_close(scores_of(net, scaled, axes)[name], values, rtol=1e-5, atol=1e-7)
    free = fresh(NetSettings(encoder=encoder))  # type: ignore[arg-type]
    assert not torch.allclose(scores_of(free, model, axes)["one"], scores_of(free, scaled, axes)["one"], rtol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("spend", ["network", "axis"])
def test_gates_are_the_plan_and_meet_the_budget_to_one_unit(share: float, spend: str) -> None:
    model, net = handmade.small(), fresh(NetSettings())
    axes = handmade.axes(model)
    units = units_of(model, axes, net.settings)
    raw = net(units)
    plan = budget(axes, net.positive(units, raw.detach()), share)
    count = budget_of(axes, "macs")
    gates = gates_of(axes, units, raw, plan, temperature=0.5, share=share, spend=spend, count=count)
    widths = {name: int(gate.sum()) for name, gate in gates.hard.items()}
    assert all(set(gate.tolist()) <= {0.0, 1.0} for gate in gates.hard.values())
    assert axes.count("macs", widths) <= share * axes.count("macs")
    for name, width in widths.items():
        if width < axes[name].units:
            assert axes.count("macs", {**widths, name: width + 1}) > share * axes.count("macs")
    for name, gate in gates.hard.items():
        kept = net.positive(units, raw.detach())[name][gate > 0]
        dropped = net.positive(units, raw.detach())[name][gate == 0]
        assert not len(dropped) or kept.min() >= dropped.max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["post", "init"])
def test_every_parameter_of_the_net_has_a_slope(kind: str, mode: str) -> None:
    model, net = handmade.small(), fresh(KINDS[kind]).train()
    ready = prepare(task(model), net.settings, 3)
    settings = ScorerSettings(mode=mode)  # type: ignore[arg-type]
    gates_loss(net, ready, 0, 0.1, 0.5, settings.stages[0], settings).backward()  # so small that the budget is exceeded
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_slope_counts_what_a_unit_gains_over_others_of_its_cost() -> None:
    """A gain that is the same per MAC for all units is spent already, so it moves no score."""
    model, net = handmade.small(), fresh(NetSettings())
    axes = handmade.axes(model)
    units, count = units_of(model, axes, net.settings), count_of(axes, "macs")
    raw = net(units).detach().requires_grad_()
    plan = budget(axes, net.positive(units, raw.detach()), 0.5)
    gates = gates_of(axes, units, raw, plan, temperature=0.5, share=0.5, spend="network", count=count)
    widths = torch.stack([gates.hard["one"].sum(), torch.tensor(10.0), gates.hard["two"].sum()])
    count(widths).backward()
    assert raw.grad is not None
    assert raw.grad.abs().max() <= 1e-3 * float(count(widths.detach()))


def test_differentiable_counts_are_exact() -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    for what, exact in (("macs", handmade.macs), ("params", handmade.params)):
        count = count_of(axes, what)
        for a, b in ((8, 6), (3, 2), (1, 1)):
            assert float(count(torch.tensor([a, 10, b]))) == exact(a, b) == axes.count(what, {"one": a, "two": b})
        widths = torch.tensor([4.0, 10.0, 3.0], dtype=torch.float64, requires_grad=True)
        count(widths).backward()
        assert widths.grad is not None
        assert float(widths.grad[0]) == exact(5, 3) - exact(4, 3)
    with pytest.raises(SecateurError, match="no such count; did you mean 'macs'"):
        count_of(axes, "mac")
