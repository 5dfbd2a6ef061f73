"""Lasso and CAP: which channels explain what their readers compute, against coordinate descent and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn
from torch.nn import functional as F

import handmade
from maps import data, maps
from secateur import criteria
from secateur.core.axis import Axis, Slot
from secateur.criteria.cap import Unexplained, greedy_selection
from secateur.criteria.lasso import lasso_path, lasso_units
from secateur.measure.moments import contributions, input_moments


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
