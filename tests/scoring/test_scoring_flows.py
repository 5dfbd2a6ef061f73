"""What units carry: by slow loops and by gates, and a net that reads it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from scorers import SHORT, fresh, task
from secateur import criteria, score, trace
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import Flows, NetSettings, ScoringNet, fit_
from secateur.criteria.scoring.flows import lost, removed
from secateur.criteria.scoring.task import prepare


def gram(seed: int, units: int = 6) -> Tensor:
    parts = torch.randn(50, units, generator=torch.Generator().manual_seed(seed)).double()
    return parts.T @ parts / parts.sum(1).square().sum()


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(40, 5, generator=draw).double(), torch.zeros(40)) for _ in range(2)]


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_a_removal_that_tries_every_unit(seed: int) -> None:
    known = gram(seed)
    whole = float(known.sum())
    for ours, loss in (
        (lost, lambda kept, gone: 1 - max(float(known[kept].sum()), 0) ** 2 / (float(known[kept][:, kept].sum()) * whole)),
        (removed, lambda kept, gone: float(known[gone][:, gone].sum())),
    ):
        left, gone, found, most = list(range(6)), [], {}, 0.0
        while len(left) > 1:
            tried = {unit: loss([u for u in left if u != unit], [*gone, unit]) for unit in left}
            unit = min(tried, key=tried.__getitem__)
            left.remove(unit)
            gone.append(unit)
            found[unit] = most = max(most, tried[unit])
        values = ours(known)
        assert {unit: pytest.approx(float(values[unit])) for unit in found} == found
        assert float(values[left[0]]) == float(values.max()), "the last one is the dearest"


def test_what_is_carried_is_the_covariance_of_what_units_add_to_the_reader() -> None:
    model = perceptron()
    axes = trace(model, batches()[0][0][:1])
    hidden = torch.cat([model[:2](x) for x, _ in batches()])  # type: ignore[index]
    added = hidden[:, :, None] * model[2].weight.T  # type: ignore[index]
    added = added - added.mean(0)
    expected = torch.einsum("bno,bmo->nm", added, added)
    (found,) = Flows(model, axes, batches(), sample=1000).carried.values()
    torch.testing.assert_close(found, (expected / expected.sum()).detach())


def test_what_is_felt_is_the_slope_of_signed_outputs_by_gates() -> None:
    model, draw = perceptron(), torch.Generator().manual_seed(0)
    axes = trace(model, batches()[0][0][:1])
    found, (felt,) = 0.0, Flows(model, axes, batches()).felt.values()
    variance = 0.0
    for x, _ in batches():
        hidden, output = model[:2](x), model(x)  # type: ignore[index]
        signs = torch.randint(0, 2, output.shape, generator=draw).double() * 2 - 1
        rows = (hidden - hidden.mean(0)) * (signs @ model[2].weight)  # type: ignore[index]
        found, variance = found + rows.T @ rows, variance + float((output - output.mean(0)).square().sum().detach())
    torch.testing.assert_close(felt, (found / variance).detach())  # type: ignore[attr-defined]


def test_heads_have_flows_and_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(), torch.randn(3, 5, 16)
    axes = trace(model.eval(), x)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = Flows(model, axes, [(x, None)])
    heads = {axis.name for axis in axes.free if axis.kind == "head"}
    assert heads
    assert heads <= set(found.carried)
    assert heads <= set(found.felt)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_untrained_net_is_its_prior_and_training_keeps_it_near() -> None:
    model = handmade.small()
    net = ScoringNet(NetSettings(prior="flows", bound=0.25)).eval()
    known = task(model)
    units = prepare(known, net.settings, 3).units
    assert torch.equal(net(units).detach(), units.prior[units.first])
    fit_(net, [known], SHORT)
    assert float((net(units).detach() - units.prior[units.first]).abs().max()) <= 0.25 + 1e-6
    assert net.settings.spread == 0


def test_without_data_a_net_of_flows_is_l1() -> None:
    model = handmade.small()
    axes = handmade.axes(model)
    found = score(axes, fresh(NetSettings(prior="flows")).criterion(model, axes))
    norms = {name: values / values.mean() for name, values in score(axes, criteria.l1(model)).items()}
    assert torch.cat(list(found.values())).argsort().tolist() == torch.cat(list(norms.values())).argsort().tolist()


def test_no_batch_is_told() -> None:
    model = handmade.small()
    with pytest.raises(SecateurError, match="no batch"):
        fresh(NetSettings(prior="flows")).on(model, handmade.axes(model), [], F.cross_entropy)
