"""Criteria of the literature against slow loops and hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn import functional as F

import handmade
from secateur import allocate, criteria, score, trace
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError
from secateur.criteria.cap import Unexplained, greedy_selection
from secateur.criteria.chip import independence
from secateur.criteria.lasso import lasso_path, lasso_units
from secateur.measure.moments import contributions, input_moments

LOSS = nn.CrossEntropyLoss()
NAMES = ("hrank", "chip", "apoz", "thinet", "cap", "lasso")


def data(batches: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return handmade.data(batches)


def maps(model: handmade.Small) -> torch.Tensor:
    """What the readers of the axis "one" read; (B, C, 4, 4)."""
    with torch.no_grad():
        return torch.cat([model.norm(model.one(x)).relu() for x, _ in data()])


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


def test_threshold_keeps_what_is_above_it() -> None:
    axes = handmade.axes(handmade.small())
    scores = {"one": torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 0.0, 0.0, 0.6]), "two": torch.zeros(6)}
    plan = allocate.threshold(axes, scores, 0.5)
    assert {cut.axis: cut.kept for cut in plan.steps[0].cuts} == {"one": (1, 7), "two": (0,)}
    assert allocate.threshold(axes, scores, 0.5, floor=0.5).widths() == {"one": (8, 4), "two": (6, 3)}


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


def test_lasso_path_against_coordinate_descent() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(50, 6)) @ draw.normal(size=(6, 6))
    y = x @ np.array([1.0, -2, 0, 0, 3, 0.1]) + draw.normal(size=50)
    gram, towards = x.T @ x / 50, x.T @ y / 50
    penalties, path = lasso_path(gram, towards)
    for place in (1, 3, len(penalties) - 1):
        beta = np.zeros(6)
        for _ in range(20000):
            for i in range(6):
                rest = towards[i] - gram[i] @ beta + gram[i, i] * beta[i]
                beta[i] = np.sign(rest) * max(abs(rest) - penalties[place], 0) / gram[i, i]
        np.testing.assert_allclose(path[:, place], beta, atol=1e-6)
    assert [len(lasso_units(gram, towards, most)) for most in (1, 2, 6)] == [1, 2, 6]


def test_a_lasso_score_is_the_penalty_at_which_the_unit_leaves_zero() -> None:
    """scikit-learn's coordinate descent on all rows has a coefficient just below the score and none just above."""
    model, x = handmade.small(), torch.cat([x for x, _ in data()])
    with torch.no_grad():
        hidden = maps(model)
        readers = [F.conv2d(hidden[:, i : i + 1], model.two.weight[:, i : i + 1], padding=1).flatten() for i in range(8)]
        others = [F.conv2d(hidden[:, i : i + 1], model.three.weight[:, i : i + 1]).flatten() for i in range(8)]
    features = torch.stack([torch.cat(pair) for pair in zip(readers, others, strict=True)], 1).double().numpy()
    scores = criteria.lasso(model, data())(handmade.axes(model)["one"]).numpy()
    scale = len(x) * 16 / len(features)  # means over positions there, over all numbers here
    for unit in np.flatnonzero(scores > 0):
        found = [
            Lasso(alpha=scores[unit] * scale * near, fit_intercept=False, tol=1e-12, max_iter=100_000)
            .fit(features, features.sum(1))
            .coef_[unit]
            for near in (0.99, 1.01)
        ]
        assert abs(found[0]) > 1e-9, unit
        assert found[1] == 0 or scores[unit] > 0.98 * scores.max(), unit


def test_lasso_with_all_channels_reproduces_the_outputs() -> None:
    model = handmade.small()
    known = input_moments(model, ["two"], data())["two"]
    blocks = torch.arange(72).reshape(8, 9)
    gram, towards = contributions(known, model.two.weight.data.flatten(1), blocks)
    _, path = lasso_path(gram.numpy(), towards.numpy())
    alive = gram.diagonal() > 0
    assert int(alive.sum()) > 5
    np.testing.assert_allclose(path[alive, -1], 1, atol=1e-6)
    np.testing.assert_allclose(path[~alive, -1], 0)


def test_contributions_are_inner_products() -> None:
    model, x = handmade.small(), maps(handmade.small())
    known = input_moments(model, ["two"], data())["two"]
    gram, towards = contributions(known, model.two.weight.data.flatten(1), torch.arange(72).reshape(8, 9))
    with torch.no_grad():
        parts = torch.stack([F.conv2d(x[:, i : i + 1], model.two.weight[:, i : i + 1], padding=1) for i in range(8)])
    positions = len(x) * 16
    torch.testing.assert_close(gram, torch.einsum("ibohw,jbohw->ij", parts, parts) / positions)
    torch.testing.assert_close(towards, torch.einsum("ibohw,bohw->i", parts, parts.sum(0)) / positions)


def test_lasso_prefers_what_the_original_needs() -> None:
    """Targets come from the original network: a unit whose readers were emptied there is not needed."""
    model, original = handmade.small(), handmade.small()
    for reader in (original.two, original.three):
        reader.weight.data[:, 1:] = 0
    found = criteria.lasso(model, data(4), original=original)(handmade.axes(model)["one"])
    assert int(found.argmax()) == 0


def test_cap_selects_what_explains_most_and_telescopes() -> None:
    model = handmade.small()
    known = input_moments(model, ["two"], data(6))["two"].centred()
    weight = model.two.weight.data.flatten(1)
    whole = float(((weight @ known.xx) * weight).sum())
    blocks = torch.arange(72).reshape(8, 9)
    order, gains = greedy_selection([Unexplained.of(known.xx, weight, blocks)])
    assert float(gains.sum()) == pytest.approx(whole, rel=1e-8)
    taken: list[int] = []
    before = 0.0
    for unit, gain in zip(order, gains, strict=True):
        explained = {u: _explained(known.xx, weight, blocks[[*taken, u]].flatten()) for u in range(8) if u not in taken}
        assert explained[unit] == pytest.approx(max(explained.values()), rel=1e-7)
        assert explained[unit] - before == pytest.approx(float(gain), abs=1e-7 * whole)
        before = explained[unit]
        taken.append(unit)
    scores = criteria.cap(model, data(6))(Axis("one", "channel", 8, (Slot("two.weight", 1, role="read"),)))
    assert scores.argsort(descending=True).tolist() == order
    assert float(scores.max()) == 1


def _explained(covariance: torch.Tensor, weight: torch.Tensor, at: torch.Tensor) -> float:
    towards = covariance[at] @ weight.T
    return float((towards * (torch.linalg.pinv(covariance[at][:, at], rtol=1e-12, hermitian=True) @ towards)).sum())


def test_cap_drops_copies_and_constants_first() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4)).double()
    model[0].weight.data[3], model[0].bias.data[3] = model[0].weight.data[1], model[0].bias.data[1]
    model[0].weight.data[4] = 0
    axis = Axis("0", "hidden", 5, (Slot("1.weight", 1, role="read"),))
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = criteria.cap(model, [(x, None)])(axis)
    copies = min(found[1], found[3])
    assert abs(float(copies)) < 1e-9
    assert abs(float(found[4])) < 1e-9


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
