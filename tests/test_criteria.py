"""Criteria against slow loops, finite differences and hand arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from handmade import data
from secateur import allocate, criteria
from secateur.core.axes import Axes
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.criteria.scoring import ScorerSettings, ScorerStage

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than these tensors are worth."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def owned(model: handmade.Small, axis: str, unit: int) -> dict[str, torch.Tensor]:
    """Views of all parameter entries of one unit, written out by hand."""
    if axis == "one":
        return {
            "one.weight": model.one.weight.data[unit],
            "one.bias": model.one.bias.data[unit],
            "norm.weight": model.norm.weight.data[unit],
            "norm.bias": model.norm.bias.data[unit],
            "two.weight": model.two.weight.data[:, unit],
            "three.weight": model.three.weight.data[:, unit],
        }
    return {
        "two.weight": model.two.weight.data[unit],
        "three.weight": model.three.weight.data[unit],
        "last.weight": model.last.weight.data[unit],
        "last.bias": model.last.bias.data[unit],
        "head.weight": model.head.weight.data[:, 16 * unit : 16 * unit + 16],
    }


WRITERS = {"one": ("one.weight",), "two": ("two.weight", "three.weight")}


def rows(model: handmade.Small, axis: Axis, group: bool) -> list[np.ndarray]:
    """Entries of each unit as one vector."""
    found = []
    for unit in range(axis.units):
        parts = owned(model, axis.name, unit)
        names = parts if group else WRITERS[axis.name]
        found.append(np.concatenate([parts[name].numpy().ravel() for name in names]))
    return found


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


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("axis", ["one", "two"])
def test_norms_equal_numpy(axis: str, group: bool) -> None:
    model = handmade.small()
    where = handmade.axes(model)[axis]
    units = rows(model, where, group)
    both = partial(criteria.l1, biases=True), partial(criteria.l2, biases=True)
    np.testing.assert_allclose(both[0](model, group)(where), [np.abs(u).sum() for u in units], rtol=1e-12)
    np.testing.assert_allclose(both[1](model, group)(where), [np.linalg.norm(u) for u in units], rtol=1e-12)
    bare = deepcopy(model)
    with torch.no_grad():
        for name, parameter in bare.named_parameters():
            parameter.mul_(0.0 if name.endswith("bias") else 1.0)
    for criterion, with_biases in zip((criteria.l1, criteria.l2), both, strict=True):
        torch.testing.assert_close(criterion(model, group)(where), with_biases(bare, group)(where))


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("axis", ["one", "two"])
def test_fpgm_equals_a_double_loop(axis: str, group: bool) -> None:
    model = handmade.small()
    where = handmade.axes(model)[axis]
    units = rows(model, where, group)
    expected = [sum(np.linalg.norm(a - b) for b in units) for a in units]
    np.testing.assert_allclose(criteria.fpgm(model, group)(where), expected, rtol=1e-10)


def test_fpgm_of_squares_is_what_torch_pruning_computes_tensor_by_tensor() -> None:
    model = handmade.small()
    where = handmade.axes(model)["two"]
    weights = [{key: part.detach().numpy() for key, part in owned(model, "two", unit).items()} for unit in range(where.units)]
    keys = [key for key in weights[0] if model.get_parameter(key).ndim > 1]
    expected = [sum(np.linalg.norm(one[key] ** 2 - other[key] ** 2) for key in keys for other in weights) for one in weights]
    np.testing.assert_allclose(criteria.fpgm(model, squares=True)(where), expected, rtol=1e-10)
    assert len(keys) > 1


def test_fpgm_sees_signs_and_finds_duplicates() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).float()
    model[0].weight.data = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [3.0, 4.0]])
    axis = Axis("0", "hidden", 3, (Slot("0.weight", 0, role="write"),))
    assert criteria.fpgm(model)(axis).tolist() == [10.0, 20.0, 10.0]
    assert criteria.fpgm(model, squares=True)(axis).tolist() == [0.0, 0.0, 0.0]


def test_bn_scale_is_the_absolute_weight_and_the_mean_where_several_share_a_unit() -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    torch.testing.assert_close(criteria.bn_scale(model)(axes["one"]), model.norm.weight.data.abs())
    pair = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(4))
    pair[0].weight.data, pair[1].weight.data = torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -5.0, 0.0, 1.0])
    axis = Axis("x", "channel", 2, (Slot("0.weight", 0), Slot("1.weight", 0, step=2, loops=((2, 1),))))
    assert criteria.bn_scale(pair)(axis).tolist() == [(1 + 4) / 2, (2 + 0.5) / 2]


def test_bn_scale_without_a_batch_norm_needs_a_default() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    axis = Axis("0", "hidden", 4, (Slot("0.weight", 0, role="write"), Slot("1.weight", 0)))
    with pytest.raises(SecateurError, match=r"axis '0': found no batch norm .* default"):
        criteria.bn_scale(model)(axis)
    assert torch.equal(criteria.bn_scale(model, default=criteria.l2(model))(axis), criteria.l2(model)(axis))


@pytest.mark.parametrize("axis", ["one", "two"])
def test_taylor_equals_the_slope_of_the_loss_by_a_gate(axis: str) -> None:
    model, (first, second) = handmade.small(), data(2)
    where = handmade.axes(model)[axis]
    expected = {"batch": np.zeros(where.units), "data": np.zeros(where.units)}
    for unit in range(where.units):
        for part in owned(model, axis, unit).values():
            slopes = [slope(model, part, *batch) for batch in (first, second)]
            expected["batch"][unit] += np.mean(np.abs(slopes))
            expected["data"][unit] += np.abs(np.mean(slopes))
    for reduce, scores in expected.items():
        found = criteria.taylor(model, [first, second], LOSS, reduce=reduce, each="unit")(where)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, scores, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("axis", ["one", "two"])
def test_taylor_by_weights_adds_what_each_would_change_alone(axis: str) -> None:
    model, both = handmade.small(), data(2)
    where = handmade.axes(model)[axis]
    products = []
    for x, y in both:
        model.zero_grad()
        LOSS(model.eval()(x), y).backward()
        moved = deepcopy(model)
        for name, parameter in moved.named_parameters():
            parameter.data = parameter.data * model.get_parameter(name).grad
        products.append([np.concatenate([v.flatten() for v in owned(moved, axis, u).values()]) for u in range(where.units)])
    alone = [np.mean([np.abs(batch[unit]).sum() for batch in products]) for unit in range(where.units)]
    mean = [np.abs(np.mean([batch[unit] for batch in products], 0)).sum() for unit in range(where.units)]
    model.zero_grad()
    for reduce, expected in (("batch", alone), ("data", mean)):
        found = criteria.taylor(model, both, LOSS, reduce=reduce, each="weight")(where)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(SecateurError, match="give 'unit' or 'weight'"):
        criteria.taylor(model, both, LOSS, each="batch")  # type: ignore[arg-type]


def slope(model: nn.Module, part: torch.Tensor, x: torch.Tensor, y: torch.Tensor, step: float = 1e-5) -> float:
    """Central difference of the loss when `part` is scaled by 1 + gate."""
    value, losses = part.clone(), []
    for gate in (step, -step):
        part.copy_(value * (1 + gate))
        with torch.no_grad():
            losses.append(float(LOSS(model(x), y)))
    part.copy_(value)
    return (losses[0] - losses[1]) / (2 * step)


def test_taylor_counts_batch_norm() -> None:
    model = handmade.small()
    only = Axis("two", "channel", 6, (Slot("last.weight", 0), Slot("last.bias", 0)))
    assert (criteria.taylor(model, data(), LOSS)(only) > 0).any(), "a unit that never fires has a score of 0"


def test_taylor_stops_at_the_limit_and_reads_dicts() -> None:
    model = handmade.small()
    axis = handmade.axes(model)["one"]
    limited = criteria.taylor(model, [*data(1), *data(2)], LOSS, limit=1)(axis)
    named = [({"x": x}, {"label": y}) for x, y in data(1)]
    assert torch.equal(limited, criteria.taylor(model, data(1), LOSS)(axis))
    assert torch.equal(limited, criteria.taylor(model, named, lambda out, y: LOSS(out, y["label"]))(axis))


BAD_LOSSES = {
    "loss of nan in batch 0": lambda out, y: out.sum() * float("nan"),
    r"loss of shape \[5, 10\] in batch 0": lambda out, y: out,
    "loss of type float in batch 0": lambda out, y: out.sum().item(),
    "loss that does not depend": lambda out, y: out.detach().sum(),
}


@pytest.mark.parametrize("words", BAD_LOSSES)
def test_taylor_refuses_a_loss_that_is_no_finite_scalar(words: str) -> None:
    model = handmade.small().train()
    model.one.weight.requires_grad_(False)
    with pytest.raises(SecateurError, match=words):
        criteria.taylor(model, data(), BAD_LOSSES[words])
    assert model.training
    assert not model.one.weight.requires_grad


def test_taylor_refuses_no_batches_and_an_unknown_reduction() -> None:
    with pytest.raises(SecateurError, match="found no batch"):
        criteria.taylor(handmade.small(), [], LOSS)
    with pytest.raises(SecateurError, match="'batch' or 'data'"):
        criteria.taylor(handmade.small(), data(), LOSS, reduce="sum")  # type: ignore[arg-type]


def test_random_depends_on_seed_and_name_alone() -> None:
    model = handmade.small()
    one, other = Axis("a", "channel", 9, ()), Axis("b", "channel", 9, ())
    assert torch.equal(criteria.random(model)(one), criteria.random(handmade.small(5))(one))
    assert not torch.equal(criteria.random(model)(one), criteria.random(model)(other))
    for seed in (1, 1 << 32, -1):
        assert not torch.equal(criteria.random(model)(one), criteria.random(model, seed)(one))


def test_units_of_packed_projections_gather_all_their_parts() -> None:
    """Rows 0-1, 4-5 and 8-9 of a packed q, k, v belong to head 0 of two heads of two."""
    model = nn.Sequential(nn.Linear(3, 12, bias=False))
    axis = Axis("heads", "head", 2, (Slot("0.weight", 0, step=2, loops=((3, 4), (2, 1)), role="write"),))
    weight = model[0].weight.data
    expected = [weight[[0, 1, 4, 5, 8, 9]].abs().sum(), weight[[2, 3, 6, 7, 10, 11]].abs().sum()]
    torch.testing.assert_close(criteria.l1(model)(axis), torch.stack(expected))
    listed = Axis("heads", "head", 2, (Slot("0.weight", 0, index=((0, 1, 4, 5, 8, 9), (2, 3, 6, 7, 10, 11)), role="write"),))
    torch.testing.assert_close(criteria.fpgm(model)(listed), criteria.fpgm(model)(axis))


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    axis = Axis("width", "width", 4, (Slot("0.weight", 1, role="write"), Slot("1.weight", 1, role="read")))
    torch.testing.assert_close(criteria.l1(model)(axis), model[0].weight.data.abs().sum(0))
    second = Axis("width", "width", 4, (Slot("1.weight", 1, role="read"),))
    torch.testing.assert_close(criteria.l1(model)(second), criteria.l1(model)(axis))


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_half_precision_does_not_overflow(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False)).half()
    model[0].weight.data = torch.tensor([[300.0] * 4, [500.0] * 4]).half()
    axis = Axis("0", "hidden", 2, (Slot("0.weight", 0, role="write"),))
    expected = {"l1": [1200.0, 2000.0], "l2": [600.0, 1000.0], "fpgm": [400.0, 400.0]}[name]
    assert getattr(criteria, name)(model)(axis).tolist() == expected


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
