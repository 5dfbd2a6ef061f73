"""Small networks in double precision that tests cut, divide among workers and repair; their inputs, and repairs by name."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

import handmade
from secateur import repair, trace

REPAIRS = {
    "least_squares": repair.least_squares,
    "compensation": repair.compensation,
    "compensation rescaled": partial(repair.compensation, rescale=True),
    "mean_bias": repair.mean_bias,
    "two_sided": repair.two_sided,
}


def data(batches: int = 4, size: int = 30, seed: int = 3) -> list[tuple[torch.Tensor, None]]:
    """Inputs of the hand-made network."""
    return [(x, None) for x, _ in handmade.data(batches, size, seed)]


def chain_net(bias: bool = True) -> nn.Sequential:
    """Linear, ReLU, linear: 6 inputs, 10 units between, 7 outputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7, bias=bias)).double()


def cut(model: nn.Module, x: torch.Tensor, kept: list[int]):  # type: ignore[no-untyped-def]
    """The plan that keeps these units of the first free axis, and what it makes of the model."""
    plan = trace(model, x).plan({trace(model, x).free[0].name: kept})
    return plan, plan.apply(model)


def distance(model: nn.Module, small: nn.Module) -> float:
    """The mean square of the difference of outputs on `data()`."""
    with torch.no_grad():
        return float(torch.cat([model(x) - small(x) for x, _ in data()]).square().mean())


class Net(nn.Module):
    """Convolutions of all kinds and a head of three linear layers; a width of 1 is given so that every channel counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 12, 1, bias=False)
        self.three = nn.Conv2d(12, 8, 3, padding=1, stride=2, padding_mode="reflect")
        self.four = nn.Linear(8 * 4, 12)
        self.five = nn.Linear(12, 8)
        self.six = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.one(x)).relu()
        x = self.three(self.two(x).relu()).relu()
        x = self.four(x.flatten(1)).relu()
        return self.six(self.five(x).tanh())


X = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def network(seed: int = 0) -> Net:
    """A `Net` with random weights, in double precision and evaluation mode."""
    torch.manual_seed(seed)
    return Net().double().eval()


def planted(workers: int = 3, per: int = 4, noise: float = 0.0) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A chain whose inner layers are block-diagonal after hidden permutations; axis to the worker of each unit."""
    torch.manual_seed(0)
    draw = np.random.default_rng(1)
    n = workers * per
    model = nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))
    owners = {name: draw.permutation(np.arange(n) % workers) for name in ("0", "2", "4")}
    with torch.no_grad():
        for layer, reads in (("2", "0"), ("4", "2")):
            same = torch.from_numpy(owners[layer][:, None] == owners[reads])
            weight = model.get_submodule(layer).weight
            weight.copy_(torch.where(same, weight.sign() * (0.5 + weight.abs()), noise * weight))
    return model.double(), owners
