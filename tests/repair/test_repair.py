"""Batch-norm re-estimation against numpy."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from secateur import repair
from secateur.core.errors import SecateurError


def data(batches: int = 4, size: int = 6) -> list[tuple[torch.Tensor, None]]:
    """Inputs of the hand-made network; targets are not read."""
    draw = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 3, 4, 4, dtype=torch.float64, generator=draw) * 2 + 1, None) for _ in range(batches)]


def test_statistics_are_the_mean_over_batches() -> None:
    model = handmade.small()
    model.last.momentum = None
    repair.batchnorm(handmade.small(), model, data())
    means, variances = [], []
    for x, _ in data():
        y = model.one(x).detach().numpy()  # (B, C, H, W)
        means.append(y.mean((0, 2, 3)))
        variances.append(y.var((0, 2, 3), ddof=1))
    np.testing.assert_allclose(model.norm.running_mean, np.mean(means, 0), rtol=1e-10)
    np.testing.assert_allclose(model.norm.running_var, np.mean(variances, 0), rtol=1e-10)


def test_later_layers_see_batch_statistics_too() -> None:
    model = handmade.small()
    repair.batchnorm(model, model, data(1))
    x = model.one(data(1)[0][0]).detach().numpy()
    normal = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + model.norm.eps)
    weight, bias = (p.detach().numpy()[:, None, None] for p in (model.norm.weight, model.norm.bias))
    y = torch.from_numpy(np.maximum(normal * weight + bias, 0))
    expected = (model.two(y) + model.three(y)).detach().numpy()
    np.testing.assert_allclose(model.last.running_mean, expected.mean((0, 2, 3)), rtol=1e-8)


def test_nothing_but_statistics_changes() -> None:
    before, after = handmade.small(1), handmade.small().train()
    after.norm.eval()
    after.last.momentum = 0.3
    kept, other = deepcopy(after.state_dict()), deepcopy(before.state_dict())
    random = torch.get_rng_state()
    repair.batchnorm(before, after, data())
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, kept[key])}
    assert changed == {
        f"{norm}.{key}" for norm in ("norm", "last") for key in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert all(torch.equal(value, other[key]) for key, value in before.state_dict().items())
    assert (after.norm.momentum, after.last.momentum) == (0.1, 0.3)
    assert after.training
    assert after.last.training
    assert after.drop.training
    assert not after.norm.training
    assert torch.equal(torch.get_rng_state(), random), "dropout stays off"
    assert all(parameter.grad is None for parameter in after.parameters())


def test_it_mends_a_network_whose_statistics_are_wrong() -> None:
    model = handmade.small()
    repair.batchnorm(model, model, data())
    right = model.last.running_mean.clone()
    model.norm.running_mean += 5
    model.last.running_mean -= 3
    repair.batchnorm(model, model, data())
    assert torch.equal(model.last.running_mean, right)


def test_the_limit_counts_batches() -> None:
    one, other = handmade.small(), handmade.small()
    repair.batchnorm(one, one, data(4), limit=2)
    repair.batchnorm(other, other, data(2))
    assert torch.equal(one.last.running_var, other.last.running_var)
    assert one.norm.num_batches_tracked == 2


def test_without_running_statistics_there_is_nothing_to_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    before = deepcopy(model.state_dict())
    repair.batchnorm(model, model, [])  # would say that there is no batch
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(
    ("batches", "limit", "words"),
    [
        ([], None, "found no batch"),
        (data(), 0, "found no batch"),
        ([(torch.full((2, 3, 4, 4), torch.nan, dtype=torch.float64), None)], None, "statistics of 'norm' that are infinite"),
        ([(torch.zeros(2, 5, 4, 4, dtype=torch.float64), None)], None, "inputs of shape .2, 5, 4, 4."),
    ],
)
def test_a_failure_puts_the_old_statistics_back(batches: list, limit: int | None, words: str) -> None:  # type: ignore[type-arg]
    model = handmade.small().train()
    before = deepcopy(model.state_dict())
    with pytest.raises(SecateurError, match=words):
        repair.batchnorm(model, model, batches, limit)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert model.norm.momentum == 0.1


def test_a_batch_of_one_value_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(SecateurError, match="one value per channel in batch 1; give larger batches"):
        repair.batchnorm(model, model, [(torch.randn(4, 2), None), (torch.randn(1, 2), None)])
