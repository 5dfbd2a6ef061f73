"""Compactors against hand arithmetic: they start as nothing, and fold into their layers at no loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hooked import backward, compactors, data, network
from secateur import trace
from secateur.core.errors import SecateurError
from secateur.train import Compactors, CompactorSettings, FitSettings, fit


def test_compactors_start_as_nothing_and_reset_gradients() -> None:
    model, axes = network()
    x = data(1)[0][0]
    model.eval()
    before = model(x)
    method = compactors(model, axes)
    torch.testing.assert_close(model(x), before)
    inner = {c.axis.name for c in method.compactors}
    assert "layer1.0.conv1" in inner
    assert all(len({s.tensor for s in c.axis.writers() if s.tensor.endswith("weight")}) == 1 for c in method.compactors)
    backward(model)
    c = method.compactors[0]
    c.chosen[1] = True
    with torch.no_grad():
        c.matrix.mul_(3)
    objective = c.matrix.grad.clone()
    method.after_backward()
    expected = objective + 0.5 * c.matrix.detach() / c.matrix.detach().norm(dim=1, keepdim=True)
    expected[1] = 0.5 * c.matrix.detach()[1] / c.matrix.detach()[1].norm()
    torch.testing.assert_close(c.matrix.grad, expected)


def test_compactors_fold_into_their_layers_and_the_cut_loses_nothing() -> None:
    model, axes = network()
    method = compactors(model, axes, more=3, lr=0.01, momentum=0.9, penalty=0.1)
    fit(model, data(), FitSettings(25, lr=0.02, schedule="constant", nesterov=False), hooks=[method])
    assert method.met()
    model.eval()
    x = data(1)[0][0]
    with torch.no_grad():
        hooked = model(x)
        goes = torch.cat([c.matrix.norm(dim=1)[c.chosen] for c in method.compactors])
        stays = torch.cat([c.matrix.norm(dim=1)[~c.chosen] for c in method.compactors])
        assert goes.max() < stays.min()
        for c in method.compactors:
            c.matrix[c.chosen] = 0
        hooked = model(x)
        method.merge_()
        torch.testing.assert_close(model(x), hooked)
        torch.testing.assert_close(method.plan().apply(model)(x), hooked)
    widths = {name: after for name, (_, after) in method.plan().widths().items()}
    assert axes.count("macs", widths) <= 0.6 * axes.count("macs")
    assert not any(m._forward_hooks for m in model.modules())


def test_compactors_refuse_norms_that_stand_elsewhere() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(x).relu()))

    model = Apart()
    assert Compactors(model, trace(model, torch.zeros(2, 3)), CompactorSettings({"params": 0.5})).compactors
    with pytest.raises(SecateurError, match="not stand right behind"):
        model(torch.randn(4, 3))
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    axes = trace(plain, torch.zeros(2, 3))
    with pytest.raises(SecateurError, match="no axis with one writer"):
        Compactors(plain, axes, CompactorSettings({"params": 0.5}))
