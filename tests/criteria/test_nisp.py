"""NISP against slow loops over weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import handmade
from secateur import criteria, score, trace


def test_nisp_hands_back_through_weights() -> None:
    model = handmade.small()
    axes = trace(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    found = score(axes, criteria.nisp(model, axes))
    head = model.head.weight.detach().abs().numpy()
    stream = np.array([head[:, c * 16 : (c + 1) * 16].sum() for c in range(6)])
    one = np.zeros(8)
    for layer in (model.two, model.three):
        weight = layer.weight.detach().abs().numpy()
        for o in range(6):
            for i in range(8):
                one[i] += weight[o, i].sum() * stream[o]
    units = {axis.units: axis.name for axis in axes.free}
    np.testing.assert_allclose(found[units[6]], stream / stream.max())
    np.testing.assert_allclose(found[units[8]], one / one.max())


def test_nisp_through_a_residual_stream_and_given_answers() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.down(self.up(x).relu()))

    torch.manual_seed(0)
    model = Stream().double()
    axes = trace(model, torch.zeros(1, 3, dtype=torch.float64))
    answers = next(axis.name for axis in axes if axis.units == 2)
    w = {name: p.detach().abs() for name, p in model.named_parameters()}
    final = torch.tensor([5.0, 0.5], dtype=torch.float64)
    late = w["head.weight"].T @ final
    inner = w["down.weight"].T @ late
    stream = late + w["up.weight"].T @ inner
    found = score(axes, criteria.nisp(model, axes, final={answers: final}))
    units = {axis.units: axis.name for axis in axes.free}
    torch.testing.assert_close(found[units[5]], inner / inner.max())
    torch.testing.assert_close(found[units[4]], stream / stream.max())


def test_nisp_goes_through_transposed_convolutions() -> None:
    """Their weights are (I, O, ...)."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), nn.Conv2d(5, 2, 1)
    model = nn.Sequential(*layers).double()
    axes = trace(model, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    found = score(axes, criteria.nisp(model, axes))
    late = np.abs(model[4].weight.detach().numpy()).sum((2, 3)).T @ np.ones(2)
    early = np.abs(model[2].weight.detach().numpy()).sum((2, 3)) @ late
    np.testing.assert_allclose(found["2"], late / late.max())
    np.testing.assert_allclose(found["0"], early / early.max())


def test_nisp_of_a_deep_network_stays_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.ReLU())]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    axes = trace(model, torch.zeros(1, 8, dtype=torch.float64))
    scores = score(axes, criteria.nisp(model, axes))
    assert all(float(value.max()) == 1 and float(value.min()) > 0 for value in scores.values())
