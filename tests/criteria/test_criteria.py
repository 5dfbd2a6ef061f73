"""What every criterion promises: finite scores that follow their units and leave the model as it was, and refusals."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

import handmade
from handmade import LOSS, data, owned
from secateur import allocate, criteria
from secateur.core.axes import Axes
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.criteria.scoring import ScorerSettings, ScorerStage

pytestmark = pytest.mark.usefixtures("one_thread")

BRIEF = ScorerSettings(stages=(ScorerStage(epochs=1),), limit=2)


def moved(model: nn.Module, plan: Plan) -> float:
    """How far a cut moves the outputs."""
    x, dense = data()[0][0], deepcopy(model).eval()
    with torch.no_grad():
        return float((plan.apply(dense)(x) - dense(x)).square().mean())


def half(axes: Axes, scores: Scores, share: float) -> Plan:
    """The allocator a Scoring Net is trained with."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none")


FACTORIES = {
    "random": criteria.random,
    "l1": criteria.l1,
    "l1 of writers": lambda model: criteria.l1(model, group=False),
    "l2": criteria.l2,
    "l2 of writers": lambda model: criteria.l2(model, group=False),
    "bn_scale": criteria.bn_scale,
    "fpgm": criteria.fpgm,
    "fpgm of groups": lambda model: criteria.fpgm(model, group=True),
    "taylor": lambda model: criteria.taylor(model, data(), LOSS),
    "taylor by units": lambda model: criteria.taylor(model, data(), LOSS, each="unit"),
    "taylor of all data by weights": lambda model: criteria.taylor(model, data(), LOSS, reduce="data", each="weight"),
    "taylor of all data": lambda model: criteria.taylor(model, data(), LOSS, reduce="data"),
    "lamp": criteria.lamp,
    "nisp": lambda model: criteria.nisp(model, handmade.axes(model)),
    "flows": lambda model: criteria.flows(model, handmade.axes(model), data()),
    "isomorphic": lambda model: criteria.isomorphic(model, handmade.axes(model), criteria.l2(model)),
    "per_cost": lambda model: criteria.per_cost(handmade.axes(model), criteria.l2(model)),
    "loss_curves": lambda model: criteria.loss_curves(
        handmade.axes(model), criteria.l2(model), lambda plan: moved(model, plan)
    ),
    "thinet": lambda model: criteria.thinet(model, data()),
    "rfp": lambda model: criteria.rfp(model, group=True),
    "obd": lambda model: criteria.obd(model, data(), LOSS),
    "group_fisher": lambda model: criteria.group_fisher(model, data(), LOSS),
    "hrank": lambda model: criteria.hrank(model, data(), default=criteria.l2(model)),
    "apoz": lambda model: criteria.apoz(model, data()),
    "chip": lambda model: criteria.chip(model, data()),
    "lasso": lambda model: criteria.lasso(model, data()),
    "snip": lambda model: criteria.snip(model, data(), LOSS),
    "grasp": lambda model: criteria.grasp(model, data(), LOSS),
    "synflow": lambda model: criteria.synflow(model, data()[0][0]),
    "three_sp": lambda model: criteria.three_sp(model, handmade.axes(model), data(), LOSS),
    "scoring_net": lambda model: criteria.scoring_net(
        model, data(), LOSS, axes=handmade.axes(model), allocate=half, settings=BRIEF
    ),
    "elimination": lambda model: criteria.elimination(model, data(30)),
    "cap": lambda model: criteria.cap(model, data(30)),  # fewer samples than a unit has entries explain everything at once
}
"""The conformance table: every criterion has a row."""
TIES = ("hrank", "apoz", "chip", "lasso", "cap", "elimination", "group_fisher", "rfp")
"""Ranks, shares and heights of merges can agree, and units that never fire add nothing."""
SIGNED = ("grasp",)
"""Dropping a unit may raise what is kept up."""


def test_every_criterion_has_a_row() -> None:
    assert {name.split()[0] for name in FACTORIES} == set(criteria.__all__) - {"score"}


@pytest.mark.parametrize("name", FACTORIES)
def test_one_finite_score_per_unit_and_the_model_unchanged(name: str) -> None:
    model = handmade.small().train()
    model.one.weight.requires_grad_(False)
    model.two.weight.grad = torch.ones_like(model.two.weight)
    model.last.eval()
    before = deepcopy(model.state_dict())
    scores = criteria.score(handmade.axes(model), FACTORIES[name](model))
    again = criteria.score(handmade.axes(model), FACTORIES[name](model))
    assert list(scores) == ["one", "two"]
    for axis, units in (("one", 8), ("two", 6)):
        assert scores[axis].shape == (units,)
        assert scores[axis].device.type == "cpu"
        assert not scores[axis].requires_grad
        assert torch.isfinite(scores[axis]).all()
        assert name in SIGNED or (scores[axis] >= -1e-9).all()
        assert name in TIES or len(set(scores[axis].tolist())) == units, "random weights tell all units apart"
        assert torch.equal(scores[axis], again[axis])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.one.weight.requires_grad
    assert model.two.weight.requires_grad
    assert model.training
    assert model.norm.training
    assert not model.last.training
    assert model.one.weight.grad is None
    assert torch.equal(model.two.weight.grad, torch.ones_like(model.two.weight))


@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "random"])
def test_scores_follow_a_permutation_of_the_units(name: str) -> None:
    model, order = handmade.small(), [3, 1, 0, 5, 2, 4]
    moved = deepcopy(model)
    for new, old in enumerate(order):
        for key, part in owned(moved, "two", new).items():
            part.copy_(owned(model, "two", old)[key])
    moved.last.running_mean.copy_(model.last.running_mean[order])
    moved.last.running_var.copy_(model.last.running_var[order])
    axis = handmade.axes(model)["two"]
    near = {"rtol": 1e-2, "atol": 1e-3} if name == "scoring_net" else {}  # training in single precision carries rounding on
    torch.testing.assert_close(FACTORIES[name](moved)(axis), FACTORIES[name](model)(axis)[order], **near)


def test_random_depends_on_seed_and_name_alone() -> None:
    model = handmade.small()
    one, other = Axis("a", "channel", 9, ()), Axis("b", "channel", 9, ())
    assert torch.equal(criteria.random(model)(one), criteria.random(handmade.small(5))(one))
    assert not torch.equal(criteria.random(model)(one), criteria.random(model)(other))
    for seed in (1, 1 << 32, -1):
        assert not torch.equal(criteria.random(model)(one), criteria.random(model, seed)(one))


def test_an_axis_of_another_model_is_refused() -> None:
    axes = handmade.axes(handmade.small())
    with pytest.raises(SecateurError, match=r"axis 'one': found 'one\.weight' of shape .* trace"):
        criteria.l1(handmade.small(a=4))(axes["one"])
    with pytest.raises(SecateurError, match="axis 'one': found no parameter"):
        criteria.l1(nn.Linear(2, 2))(axes["one"])
    table = Axis("table", "width", 2, (Slot("weight", 1, role="scale"),))
    with pytest.raises(SecateurError, match="no weight that writes its units; take group=True"):
        criteria.l2(nn.Linear(2, 2), group=False)(table)


def test_score_refuses_what_is_no_score() -> None:
    axes = handmade.axes(handmade.small())
    with pytest.raises(SecateurError, match=r"axis 'one': found a tensor of shape \[3\]; return one score for each of its 8"):
        criteria.score(axes, lambda axis: torch.zeros(3))
    with pytest.raises(SecateurError, match="axis 'one': found nan for unit 2"):
        criteria.score(axes, lambda axis: torch.tensor([0.0, 1.0] + [float("nan")] * (axis.units - 2)))
    model = handmade.small()
    model.one.weight.data[4] = float("inf")
    with pytest.raises(SecateurError, match="axis 'one': found inf for unit 4"):
        criteria.score(axes, criteria.l1(model))
