"""Taylor's criterion against finite differences and gradients one by one; losses that are none."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from handmade import LOSS, data, owned
from secateur import criteria
from secateur.core.axis import Axis, Slot
from secateur.core.errors import SecateurError

pytestmark = pytest.mark.usefixtures("one_thread")


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
