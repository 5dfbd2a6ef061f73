"""Training a Scoring Net: objectives, optimizers, counts, modes, and what it is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from networks import ZOO
from scorers import SHORT, budget, data, fresh, task, uniform
from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.criteria.scoring.gates import gates_of
from secateur.criteria.scoring.task import class_dim, divergence, objective, prepare
from secateur.criteria.scoring.units import units_of
from secateur.surgery import Gated


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
    "prior='l2'.*known: flows, l1": lambda: NetSettings(prior="l2"),  # type: ignore[arg-type]
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
