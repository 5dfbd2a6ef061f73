"""Ranks chosen first and held while a network trains."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from loops import batches
from secateur import SecateurError, lowrank, repair
from secateur.core.factor import Format, Product
from secateur.core.plan import Plan, factor
from secateur.surgery import fingerprint, unfold
from secateur.train import FitSettings, fit, holding

X = torch.randn(6, 3, 10, 10, generator=torch.Generator().manual_seed(3))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def plan_of(model: nn.Module, *products: Product) -> Plan:
    return factor(fingerprint(model), products)


def ranks(model: nn.Module, name: str, form: Format) -> list[int]:
    return [int(torch.linalg.matrix_rank(part, rtol=1e-4)) for part in unfold(model.get_submodule(name).weight.detach(), form)]


def test_every_format_keeps_its_rank_through_training_and_the_cut_costs_nothing() -> None:
    model = net()
    plan = plan_of(model, Product("0", "channel", (4,)), Product("2", "spatial", (5,)), Product("6", "linear", (3,)))
    hooks = holding(model, plan)
    assert len(hooks) == 3
    start = copy.deepcopy(model)
    fit(model, batches(12, size=10, classes=10), FitSettings(epochs=2, lr=0.05), hooks=hooks)
    for product in plan.steps[0].products:  # type: ignore[union-attr]
        weight = model.get_submodule(product.module).weight
        assert ranks(model, product.module, product.format) == list(product.ranks)
        assert not torch.allclose(weight, start.get_submodule(product.module).weight, atol=1e-3), "it trained"
    model.eval()
    with torch.no_grad():
        assert torch.allclose(plan.apply(model)(X), model(X), atol=1e-5)


def test_training_starts_from_what_was_fitted_to_data() -> None:
    model = net().eval()
    plan = plan_of(model, Product("0", "channel", (3,)), Product("2", "spatial", (4,)))
    small = plan.apply(model)
    repair.whitened(model, small, [(X, None)], plan=plan)
    lowrank.merge_(model, small, plan)
    holding(model, plan)
    with torch.no_grad():
        assert torch.allclose(model(X), small(X), atol=1e-4)


def grouped() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2))


@pytest.mark.parametrize(
    ("made", "products", "words"),
    [
        (net, [Product("2", "tucker2", (3, 4))], "tucker2.*more than one matrix.*channel, spatial, linear"),
        (grouped, [Product("1", "channel", (2,), 2)], "'1', which has groups"),
    ],
)
def test_what_cannot_be_held_is_one_sentence(made: Callable[[], nn.Module], products: list[Product], words: str) -> None:
    model = made()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SecateurError, match=words):
        holding(model, plan_of(model, *products))
    with pytest.raises(SecateurError, match="not one factor step"):
        holding(model, Plan(fingerprint(model)))
    whole = plan_of(net(), Product("2", "channel", (3,)))
    for changes in ({"ranks": {"2": 1}}, {"format": "spatial"}, {"ignore": ["2"]}):
        with pytest.raises(SecateurError, match="the plan says"):
            holding(net(), whole, **changes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
