"""The Scoring Net: what must hold whatever it has learned, and that it learns."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from networks import ZOO
from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet, Slopes, Task, fit_
from secateur.criteria.scoring.counts import count_of
from secateur.criteria.scoring.fit import gates_loss
from secateur.criteria.scoring.gates import budget_of, gates_of
from secateur.criteria.scoring.task import class_dim, divergence, objective, prepare
from secateur.criteria.scoring.units import units_of
from secateur.io import load_scorer, save_scorer
from secateur.surgery import Gated

KINDS = {
    "stats": NetSettings(),
    "raw": NetSettings(encoder="raw"),
    "stats and gradients": NetSettings(gradients=True),
    "raw and gradients": NetSettings(encoder="raw", gradients=True),
    "relative": NetSettings(relative=True),
    "relative and gradients": NetSettings(relative=True, gradients=True),
    "attention": NetSettings(context="attention"),
    "no context": NetSettings(context="none"),
    "prior": NetSettings(prior="l1"),
    "prior and gradients": NetSettings(prior="l1", gradients=True),
    "prior of raw": NetSettings(prior="l1", encoder="raw"),
}
SHORT = ScorerSettings(stages=(ScorerStage(epochs=2),), limit=3)


def data(batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    return handmade.data(batches, 12)


def budget(axes: Axes, scores: Any, share: float) -> Plan:
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.0)


def uniform(axes: Axes, scores: Any, share: float) -> Plan:
    return allocate.uniform(axes, scores, share)


def fresh(settings: NetSettings, seed: int = 0) -> ScoringNet:
    """A net whose head is awake: as it is built, only norms count."""
    torch.manual_seed(seed)
    net = ScoringNet(settings).eval()
    nn.init.normal_(net.head.weight, std=0.3)
    nn.init.normal_(net.twin.weight, std=0.1)
    if settings.prior != "none":
        net.twin.weight.data.abs_()
    return net


def scores_of(net: ScoringNet, model: nn.Module, axes: Axes) -> dict[str, Tensor]:
    slopes = Slopes(model, data(), F.cross_entropy) if net.settings.gradients else None
    return score(axes, net.criterion(model, axes, slopes))


def task(model: nn.Module, allocator: Any = budget) -> Task:
    return Task(model, handmade.axes(model), data(), F.cross_entropy, allocator)  # type: ignore[arg-type]


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


def test_distillation_runs_over_classes_wherever_they_are() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, theirs = torch.randn(6, 4, generator=draw), torch.randn(6, 4, generator=draw)
    expected = float(divergence(rows, theirs, 2.0))
    tokens, maps = ((lambda t: t.view(2, 3, 4)), (lambda t: t.view(2, 3, 1, 4).movedim(3, 1)))
    lines, labels = (lambda t: t.view(2, 3, 4).transpose(1, 2)), torch.zeros(2, 3, dtype=torch.int64)
    for lay, target, dim in ((tokens, labels, 2), (tokens, None, 2), (maps, labels, 1), (lines, labels, 1)):
        output, answer = lay(rows), lay(theirs)
        assert class_dim(output, target) == dim
        assert float(divergence(output, answer, 2.0, class_dim(output, target))) == pytest.approx(expected, rel=1e-5)
    ready = replace(prepare(task(handmade.small()), NetSettings(), 1), task=replace(task(handmade.small()), loss=no_loss))
    how = Objective(task=0, kl=1, temperature=2.0, budget=0)
    assert float(objective(ready, how, tokens(rows), labels, tokens(theirs), 0.0)) == pytest.approx(expected, rel=1e-5)


def no_loss(output: Any, target: Any) -> Tensor:
    raise AssertionError("not asked for")


def test_smoothing_is_torchs_own_where_the_loss_is_cross_entropy() -> None:
    draw = torch.Generator().manual_seed(0)
    ready = prepare(task(handmade.small()), NetSettings(), 1)
    output, target = torch.randn(5, 10, generator=draw), torch.tensor([1, 2, 3, 9, 0])
    found = objective(ready, Objective(kl=0, smoothing=0.2), output, target, output, 0.0)
    assert float(found) == pytest.approx(float(F.cross_entropy(output, target, label_smoothing=0.2)), rel=1e-5)
    with pytest.raises(SecateurError, match="no logits"):
        objective(
            replace(ready, task=replace(ready.task, loss=lambda out, y: out.sum())),
            Objective(smoothing=0.1),
            output[:, 0],
            target,
            output,
            0.0,
        )


def test_at_initialisation_the_full_network_answers_by_batch_statistics_and_teaches_nothing() -> None:
    model = handmade.small().eval()
    before = deepcopy(model.state_dict())
    ready = prepare(task(model), NetSettings(), 2, "init")
    twin = deepcopy(model).train()
    twin.drop.eval()
    for inputs, _, answer in ready.batches:
        torch.testing.assert_close(answer, twin(inputs))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [ScorerSettings(mode=mode).stages[0].objective.kl for mode in ("post", "init")] == [1.0, 0.0]  # type: ignore[arg-type]
    given = ScorerSettings(mode="init", stages=(ScorerStage(objective=Objective(kl=0.5)),))
    assert given.stages[0].objective.kl == 0.5


class Counting:
    """Batches and a model whose passes are counted."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = 0
        model.register_forward_pre_hook(lambda *_: setattr(self, "forwards", self.forwards + 1))


@pytest.mark.parametrize("gradients", [False, True])
def test_forwards_are_those_that_run(gradients: bool) -> None:
    model = handmade.small()
    given = Task(model, handmade.axes(model), data(12), F.cross_entropy, budget)
    counting = Counting(model)
    ready = prepare(given, NetSettings(gradients=gradients), 50)
    assert ready.forwards == counting.forwards == 12 + 10 * gradients


def test_lbfgs_fits_measured_changes_as_far_as_adam_in_twenty_times_as_many_epochs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        model[0].weight.normal_(std=0.5)
        model[2].weight.normal_()
    x = torch.randn(2, 64, 8, dtype=torch.float64)
    with torch.no_grad():
        given = Task(model, trace(model, x[0]), [(part, model(part).argmax(1)) for part in x], F.cross_entropy, budget)

    def reached(epochs: int, **stage: Any) -> float:
        settings = ScorerSettings(variant="regress", masks=20, stages=(ScorerStage(epochs=epochs, **stage),))
        return float(fit_(fresh(NetSettings()), [given], settings)[-1]["loss"])

    assert reached(3, optimizer="lbfgs", lr=1.0) < 1.1 * reached(60)


def test_lbfgs_looks_at_one_function_per_step() -> None:
    """Between two records: whole passes over the batches, at one temperature and share."""
    model, seen = handmade.small(), []

    def watched(axes: Axes, scores: Any, share: float) -> Plan:
        seen.append(share)
        return budget(axes, scores, share)

    settings = replace(SHORT, stages=(ScorerStage(epochs=2, optimizer="lbfgs", lr=0.5),), ramp=1.0)
    shares = []
    fit_(fresh(NetSettings()), [task(model, watched)], settings, on_epoch=lambda _: (shares.append(set(seen)), seen.clear()))
    assert [len(known) for known in shares] == [1, 1]
    assert shares[0] != shares[1]


def test_distillation_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw)
    total = 0.0
    for one, two in zip(ours, theirs, strict=True):
        p, q = (two / 2).softmax(0), (one / 2).softmax(0)
        total += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
    assert float(divergence(ours, theirs, 2.0)) == pytest.approx(4 * total / 4, rel=1e-5)


SETTINGS = {
    "network": SHORT,
    "axis": replace(SHORT, spend="axis"),
    "init": replace(SHORT, mode="init", unrolled=2),
    "regress": replace(SHORT, variant="regress", masks=20),
    "regress at initialisation": replace(SHORT, variant="regress", masks=8, mode="init"),
    "regress by LBFGS": replace(SHORT, variant="regress", masks=20, stages=(ScorerStage(epochs=1, optimizer="lbfgs", lr=0.5),)),
    "gates by Muon": replace(SHORT, stages=(ScorerStage(epochs=1, optimizer="muon"),)),
    "smoothed": replace(SHORT, stages=(ScorerStage(epochs=1, objective=Objective(smoothing=0.1)),)),
    "reinforce": replace(SHORT, variant="reinforce"),
    "stages": replace(
        SHORT,
        stages=(
            ScorerStage("warm", 1, Objective(task=1, kl=0), "sgd", 1e-2),
            ScorerStage("teach", 1, Objective(task=0, kl=0, logits=1), "adamw", 1e-3),
        ),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_training_repeats_and_leaves_the_network_alone(name: str) -> None:
    model = handmade.small()
    before = deepcopy(model.state_dict())
    allocator = uniform if name == "axis" else budget
    nets = [fresh(NetSettings()), fresh(NetSettings())]
    state = torch.get_rng_state()
    records = [fit_(net, [task(model, allocator)], SETTINGS[name]) for net in nets]
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers are his own"
    for one, two in zip(*records, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert records[0][-1]["forwards"] > 0
    assert all(torch.equal(a, b) for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True))
    start = fresh(NetSettings()).state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in nets[0].state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not nets[0].training


def test_training_finds_the_units_that_matter() -> None:
    """Half of the hidden units are noise that the head reads with large weights of zero sum: norms prefer them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        model[0].weight.normal_(std=0.3)
        model[2].weight.normal_(std=1.0)
        model[2].weight[:, 8:] = 3.0  # the same for both classes: no class gains
        model[0].weight[8:] *= 4
    x = torch.randn(4, 64, 8, dtype=torch.float64)
    with torch.no_grad():
        batches = [(part, model(part).argmax(1)) for part in x]
    axes = trace(model, x[0])
    (name,) = [axis.name for axis in axes.free]
    assert criteria.l1(model)(axes[name]).topk(8).indices.min() >= 8
    net = fresh(NetSettings())
    settings = ScorerSettings(stages=(ScorerStage(epochs=60, lr=1e-2),), soft=(1.0, 0.5))
    fit_(net, [Task(model, axes, batches, F.cross_entropy, budget, "macs")], settings)
    kept = net.criterion(model, axes)(axes[name]).topk(8).indices
    assert (kept < 8).sum() >= 7


@pytest.mark.parametrize("encoder", ["stats", "raw"])
@pytest.mark.parametrize("name", ZOO)
def test_any_axis_is_scored_and_the_exported_network_is_the_gated_one(name: str, encoder: str) -> None:
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, x = build().eval(), example()
    axes = trace(model, x)
    net = fresh(NetSettings(encoder=encoder))  # type: ignore[arg-type]
    scores = score(axes, net.criterion(model, axes))
    plan = allocate.uniform(axes, scores, 0.6)
    units = units_of(model, axes, net.settings)
    raw = net(units)
    gates = gates_of(axes, units, raw, plan, temperature=1.0, share=0.6, spend="axis", count=None)
    arguments = x if isinstance(x, tuple) else (x,)
    gated, cut = Gated(axes.free, model).eval()(gates.hard, x), plan.apply(model)(*arguments)
    first, second = (out[0] if isinstance(out, tuple) else out for out in (gated, cut))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    first.square().mean().backward()
    slopes = [p.grad for p in net.parameters() if p.grad is not None]
    assert sum(float(slope.abs().sum()) for slope in slopes) > 0
    assert all(torch.isfinite(slope).all() for slope in slopes)


BAD = {
    "encoder='row'.*did you mean 'raw'": lambda: NetSettings(encoder="row"),  # type: ignore[arg-type]
    "width=7": lambda: NetSettings(width=7),
    "prior='l2'.*known: l1": lambda: NetSettings(prior="l2"),  # type: ignore[arg-type]
    "bound=0": lambda: NetSettings(prior="l1", bound=0),
    "prior='l1' with scale=False": lambda: NetSettings(prior="l1", scale=False),
    "no weight on task": lambda: Objective(task=0, kl=0),
    "optimizer='adamm'.*did you mean 'adam": lambda: ScorerStage(optimizer="adamm"),  # type: ignore[arg-type]
    r"keeps=\(\)": lambda: ScorerSettings(keeps=()),
    "a loss that changes with the share": lambda: ScorerSettings(stages=(ScorerStage(optimizer="lbfgs"),), keeps=(0.5, 0.3)),
    "variant 'reinforce', whose loss": lambda: ScorerSettings(variant="reinforce", stages=(ScorerStage(optimizer="lbfgs"),)),
    "smoothing=1": lambda: Objective(smoothing=1),
    "no weight on task, kl": lambda: ScorerSettings(mode="init", stages=(ScorerStage(objective=Objective(task=0)),)),
    "soft=": lambda: ScorerSettings(soft=(1.0, 0.0)),
    "drop=": lambda: ScorerSettings(drop=(0.5, 0.1)),
    r"keeps=0\.5.*a list of numbers": lambda: ScorerSettings(keeps=0.5),  # type: ignore[arg-type]
    r"drop=\('a',": lambda: ScorerSettings(drop=("a", 0.5)),  # type: ignore[arg-type]
    "give a list of ScorerStage": lambda: ScorerSettings(stages=ScorerStage()),  # type: ignore[arg-type]
    "seed='a'": lambda: ScorerSettings(seed="a"),  # type: ignore[arg-type]
    "layers=5": lambda: Objective(features=1, layers=5),  # type: ignore[arg-type]
    "a stage of a Scoring Net": lambda: ScorerStage(name=5),  # type: ignore[arg-type]
    "a loss of shape": lambda: fit_(ScoringNet(), [replace(task(handmade.small()), loss=lambda out, y: out)], SHORT),
    "unrolled=0": lambda: ScorerSettings(unrolled=0),
    "no task": lambda: fit_(ScoringNet(), []),
    "no batch": lambda: fit_(ScoringNet(), [replace(task(handmade.small()), batches=[])], SHORT),
    "a loss of nan": lambda: fit_(
        ScoringNet(), [replace(task(handmade.small()), loss=lambda out, y: out.sum() * float("nan"))], SHORT
    ),
    "no axis that can be cut": lambda: fit_(
        ScoringNet(), [replace(task(handmade.small()), axes=handmade.axes(handmade.small()).ignore("*"))], SHORT
    ),
    "no gradients": lambda: ScoringNet(NetSettings(gradients=True)).criterion(
        handmade.small(), handmade.axes(handmade.small())
    ),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence(words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        BAD[words]()
