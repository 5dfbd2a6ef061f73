"""Criteria of the literature against slow loops and hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import nn
from torch.nn import functional as F

import handmade
from handmade import LOSS
from maps import data, maps
from secateur import criteria, score, trace
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.criteria.chip import independence

NAMES = ("hrank", "chip", "apoz", "thinet", "cap", "lasso")


def test_hrank_is_the_mean_rank_of_maps() -> None:
    model = handmade.small()
    model.norm.bias.data[2] = -1e3  # never fires
    found = criteria.hrank(model, data())(handmade.axes(model)["one"])
    ranks = [[np.linalg.matrix_rank(m.numpy()) for m in image] for image in maps(model)]
    np.testing.assert_allclose(found, np.mean(ranks, 0))
    assert found[2] == 0


def test_apoz_is_the_share_of_zeros() -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    x = maps(model)
    np.testing.assert_allclose(criteria.apoz(model, data())(axes["one"]), [(x[:, i] > 0).double().mean() for i in range(8)])
    with torch.no_grad():
        flat = model.last(model.two(x) + model.three(x)).relu()
    np.testing.assert_allclose(criteria.apoz(model, data())(axes["two"]), [(flat[:, i] > 0).double().mean() for i in range(6)])


def test_chip_is_the_fall_of_the_nuclear_norm() -> None:
    model = handmade.small()
    expected = np.zeros(8)
    for image in maps(model).flatten(2).numpy():
        for unit in range(8):
            rest = image.copy()
            rest[unit] = 0
            expected[unit] += np.linalg.norm(image, "nuc") - np.linalg.norm(rest, "nuc")
    found = criteria.chip(model, data())(handmade.axes(model)["one"])
    np.testing.assert_allclose(found, expected / 10, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 1, 9), (9, 1, 4), (3, 2, 5), (5, 3, 2), (1, 1, 3)])
def test_independence_of_blocks_on_either_side(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = np.linalg.norm(x.flatten(0, 1).numpy(), "nuc")
    for unit, found in enumerate(independence(x)):
        rest = x.clone()
        rest[unit] = 0
        assert float(found) == pytest.approx(whole - np.linalg.norm(rest.flatten(0, 1).numpy(), "nuc"), abs=1e-6)


@pytest.mark.parametrize("method", ["complete", "average"])
@pytest.mark.parametrize("similarity", [0.1, 0.4, 0.7])
def test_rfp_keeps_the_largest_of_each_cluster(method: str, similarity: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20, bias=False)).double()
    axis = Axis("0", "hidden", 20, (Slot("0.weight", 0, role="write"),))
    rows = model[0].weight.data.numpy()
    labels = fcluster(linkage(rows, method, metric="cosine"), 1 - similarity, "distance")
    norms = np.linalg.norm(rows, axis=1)
    expected = sorted(max(np.flatnonzero(labels == c), key=lambda i: norms[i]) for c in set(labels))
    scores = criteria.rfp(model, method=method)(axis)  # type: ignore[arg-type]
    assert np.flatnonzero(scores > 1 - similarity).tolist() == expected


def test_rfp_of_duplicates_zeros_and_one_unit() -> None:
    model = nn.Sequential(nn.Linear(2, 4, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, 0], [0, 0], [3, 0], [0, 1]]).double()
    axis = Axis("0", "hidden", 4, (Slot("0.weight", 0, role="write"),))
    np.testing.assert_allclose(criteria.rfp(model)(axis), [0, 0, 2, 1], atol=1e-12)
    assert criteria.rfp(nn.Linear(2, 1))(Axis("", "hidden", 1, (Slot("weight", 0, role="write"),))).tolist() == [2]


def lost(model: handmade.Small, units: list[int]) -> float:
    """Squared norm of what the readers of "one" lose with `units`."""
    x = torch.zeros_like(maps(model))
    x[:, units] = maps(model)[:, units]
    with torch.no_grad():
        return float(F.conv2d(x, model.two.weight, padding=1).square().sum() + F.conv2d(x, model.three.weight).square().sum())


@pytest.mark.parametrize("seed", range(4))
def test_thinet_removes_greedily(seed: int) -> None:
    model = handmade.small(seed)
    order: list[int] = []
    while len(order) < 8:
        order.append(min((u for u in range(8) if u not in order), key=lambda u: lost(model, [*order, u])))
    found = criteria.thinet(model, data())(handmade.axes(model)["one"])
    assert found.argsort().tolist() == order
    assert float(found.max()) == 7 / 8


def slopes(model: handmade.Small, axis: str, step: float = 1e-5) -> np.ndarray:
    """Per sample and unit, the derivative of its loss by a gate on the weights that read the unit, by differences."""
    readers = {"one": (model.two, model.three), "two": (model.head,)}[axis]
    per = {"one": 1, "two": 16}[axis]
    units = {"one": 8, "two": 6}[axis]
    found = np.zeros((10, units))
    samples = [(x[i : i + 1], y[i : i + 1]) for x, y in data() for i in range(len(x))]
    for number, (x, y) in enumerate(samples):
        for unit in range(units):
            losses = []
            for gate in (step, -step):
                held = [reader.weight.data.clone() for reader in readers]
                for reader in readers:
                    reader.weight.data[:, unit * per : (unit + 1) * per] *= 1 + gate
                with torch.no_grad():
                    losses.append(float(LOSS(model(x), y)))
                for reader, value in zip(readers, held, strict=True):
                    reader.weight.data.copy_(value)
            found[number, unit] = (losses[0] - losses[1]) / (2 * step)
    return found


@pytest.mark.parametrize("axis", ["one", "two"])
def test_group_fisher_sums_coupled_layers_before_squaring(axis: str) -> None:
    model = handmade.small()
    found = criteria.group_fisher(model, data(), LOSS)(handmade.axes(model)[axis])
    np.testing.assert_allclose(found, (slopes(model, axis) ** 2).mean(0) / 2, rtol=1e-5, atol=1e-10)


def test_obd_averages_squared_gradients_of_single_samples() -> None:
    model = handmade.small()
    squares = torch.zeros_like(model.one.weight)
    for x, y in data():
        for i in range(len(x)):
            squares += torch.autograd.grad(LOSS(model(x[i : i + 1]), y[i : i + 1]), model.one.weight)[0] ** 2
    expected = (model.one.weight.data**2 * squares / 10).sum((1, 2, 3)) / 2
    found = criteria.obd(model, data(), LOSS, group=False)(handmade.axes(model)["one"])
    torch.testing.assert_close(found, expected)
    assert (criteria.obd(model, data(), LOSS)(handmade.axes(model)["one"]) >= found).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lamp_is_the_share_of_what_is_as_large() -> None:
    model = nn.Sequential(nn.Linear(1, 4, bias=False))
    model[0].weight.data = torch.tensor([[2.0], [1.0], [0.0], [-3.0]])
    axis = Axis("0", "hidden", 4, (Slot("0.weight", 0, role="write"),))
    np.testing.assert_allclose(criteria.lamp(model)(axis), [4 / 13, 1 / 14, 0, 1])
    model[0].weight.data.zero_()
    assert criteria.lamp(model)(axis).tolist() == [0, 0, 0, 0]


def test_isomorphic_ranks_inside_groups_of_like_axes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    axes = trace(model, torch.randn(1, 3))
    base = score(axes, criteria.l2(model))
    ranks = score(axes, criteria.isomorphic(model, axes, lambda axis: base[axis.name]))
    every = torch.cat(list(base.values())).double()
    for name, values in base.items():
        expected = [(every <= float(v)).double().mean() for v in values.double()]
        np.testing.assert_allclose(ranks[name], expected)
    with pytest.raises(SecateurError, match="no such free axis"):
        criteria.isomorphic(model, axes, criteria.l2(model))(Axis("x", "hidden", 2, ()))


def test_unlike_axes_do_not_meet() -> None:
    """Scores of a convolution's axis a thousand times those of a linear one's change nothing."""
    model = handmade.small()
    axes = handmade.axes(model)
    ranks = score(
        axes, criteria.isomorphic(model, axes, lambda axis: torch.arange(axis.units) * (1.0 if axis.name == "one" else 1e3))
    )
    np.testing.assert_allclose(ranks["one"], np.arange(1, 9) / 8)
    np.testing.assert_allclose(ranks["two"], np.arange(1, 7) / 6)


@pytest.mark.parametrize("name", NAMES)
def test_without_readers_a_default_is_needed_and_the_model_stays(name: str) -> None:
    model = handmade.small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    axis = Axis("one", "channel", 8, (Slot("one.weight", 0, role="write"),))
    with pytest.raises(SecateurError, match="give a default criterion"):
        getattr(criteria, name)(model, data())(axis)
    assert torch.equal(getattr(criteria, name)(model, data(), default=criteria.l2(model))(axis), criteria.l2(model)(axis))
    getattr(criteria, name)(model, data())(handmade.axes(model)["one"])
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(SecateurError, match="found no batch"):
        getattr(criteria, name)(model, [])(handmade.axes(model)["one"])


@pytest.mark.parametrize("name", ["lasso", "cap", "elimination", "thinet", "apoz", "rfp", "lamp"])
def test_weights_that_are_no_numbers_are_told(name: str) -> None:
    model = handmade.small()
    model.one.weight.data[3, 0, 0, 0] = torch.nan
    given = (model,) if name in ("rfp", "lamp") else (model, data())
    with pytest.raises(SecateurError, match=r"infinite (values )?or (not a number|NaN)"):
        score(handmade.axes(model), getattr(criteria, name)(*given))
