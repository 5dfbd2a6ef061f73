"""Criteria that look at weights alone, norms, medians and scales of batch norms, against numpy and slow loops."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from handmade import owned, rows
from secateur import criteria
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError

pytestmark = pytest.mark.usefixtures("one_thread")


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
