"""What trained rank pruning leaves is deployed: costs of products, ranks by every rule, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from loops import batches
from secateur import TRP, SecateurError
from secateur.core.factor import Product
from secateur.measure import facts
from secateur.surgery import unfold
from secateur.testing import distance
from secateur.train import FitSettings, fit
from secateur.train.trp.layers import Layer
from secateur.train.trp.plan import relative_cost
from trp_network import net


@pytest.mark.parametrize(("form", "ratio"), [("channel", 5 * (6 * 9 + 10) / (6 * 10 * 9)), ("spatial", 5 * (18 + 30) / 540)])
def test_cost_ratios_of_the_paper(form, ratio):
    layer = Layer("wide", nn.Conv2d(6, 10, 3).weight, form)
    assert relative_cost(Product("wide", form, (5,)), layer) == pytest.approx(ratio)
    model = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, bias=False))
    x = torch.zeros(1, 6, 8, 8)
    plan = secateur.core.plan.factor({"0.weight": (10, 6, 3, 3)}, [Product("0", form, (5,))])
    assert facts(plan.apply(model), x).macs / facts(model, x).macs == pytest.approx(ratio)


@pytest.mark.parametrize("form", ["spatial", "channel", "decouple"])
@pytest.mark.parametrize("stride", [1, 2])
def test_cost_ratios_of_strided_layers_are_counted(form, stride):
    conv = nn.Conv2d(8, 8, 3, padding=1, stride=stride, bias=False)
    product = Product("0", form, (2,))
    x = torch.zeros(1, 8, 8, 8)
    plan = secateur.core.plan.factor({"0.weight": (8, 8, 3, 3)}, [product])
    counted = facts(plan.apply(nn.Sequential(conv)), x).macs / facts(nn.Sequential(conv), x).macs
    assert relative_cost(product, Layer("0", conv.weight, form, (stride, stride))) == pytest.approx(counted)


@pytest.mark.parametrize("form", ["spatial", "channel"])
def test_deployment_loses_nothing_that_training_had_removed(form):
    model = net().eval()
    method = TRP(model, format=form, energy=0.8)
    plan = method.plan({"value": 1e-4})
    x = batches(1)[0][0]
    assert plan
    assert distance(model, plan.apply(model), x) < 1e-5
    for product in plan.steps[0].products:
        weight = unfold(model.get_submodule(product.module).weight.detach(), form)
        assert product.ranks[0] == np.linalg.matrix_rank(weight.double().numpy(), tol=1e-4).max()


def test_ranks_by_energy_value_number_and_budget():
    model = net().eval()
    method = TRP(model, energy=1.0, format="spatial", stem=True)
    x = batches(1)[0][0]
    values = np.linalg.svd(unfold(model.wide.weight.detach(), "spatial")[0].numpy())[1]
    ranks = {p.module: p.ranks[0] for p in method.plan({"energy": 0.5}).steps[0].products}
    assert ranks["wide"] == next(k for k in range(99) if (values[k:] ** 2).sum() <= 0.5 * (values**2).sum())
    ranks = {p.module: p.ranks[0] for p in method.plan({"value": float(values[3])}).steps[0].products}
    assert ranks["wide"] == 4
    assert {p.ranks for p in method.plan({"rank": 3}).steps[0].products} == {(3,)}
    assert {p.module: p.ranks for p in method.plan({"rank": {"wide": 2}}).steps[0].products} == {"wide": (2,)}
    dense = facts(model, x)
    for way in ("macs", "params"):
        found = facts(method.plan({way: 0.7}, example=x).apply(model), x)
        assert 0.5 < getattr(found, way) / getattr(dense, way) <= 0.7
        assert not method.plan({way: 1.0}, example=x)
    with pytest.raises(SecateurError, match="least possible share"):
        method.plan({"macs": 0.01}, example=x)
    with pytest.raises(SecateurError, match="no example"):
        method.plan({"macs": 0.5})


def test_in_the_training_loop_with_a_checkpoint(tmp_path):
    def run(epochs: int, model: nn.Module) -> nn.Module:
        settings = FitSettings(epochs=epochs, lr=0.05, schedule="constant")
        fit(model, batches(3), settings, hooks=[TRP(model, every=2, energy=0.9)], checkpoint=tmp_path / "run.pt")
        return model

    model, again = run(2, net()), run(2, net(4))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items()), "read from disk"
    method = TRP(model, every=2, energy=0.9)
    small = method.plan({"rank": 3}).apply(model.eval())
    secateur.save(tmp_path / "small.safetensors", small, method.plan({"rank": 3}))
    loaded = secateur.load(tmp_path / "small.safetensors", into=net(3)).eval()
    assert distance(small, loaded, batches(1)[0][0]) == 0
