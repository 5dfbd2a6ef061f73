"""What tests of sparse training share: a small network, batches, every method by name, the rank term's loss written slowly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import loops
from secateur.train.sparse import Growth, Layout, Ramp, Rank, Sparse, acdc, gmp, granet, rigl, rpg, st3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.twin = nn.Conv2d(10, 10, 1)
        self.twin2 = nn.Conv2d(10, 10, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.wide(functional.relu(self.stem(x)))))
        return self.head(self.twin2(functional.relu(self.twin(x))).mean((2, 3)))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def batches(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    return loops.batches(count, seed, dtype=dtype)


SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}

METHODS: dict[str, Callable[..., Sparse]] = {
    "gmp": lambda m, **more: gmp(m, 0.1, 40, every=3, **more),
    "gmp erk": lambda m, **more: gmp(m, 0.1, 40, every=3, layout=Layout("erk"), **more),
    "gmp uniform": lambda m, **more: gmp(m, 0.1, 40, every=3, layout=Layout("uniform"), **more),
    "gmp occupancy": lambda m, **more: gmp(m, 0.2, 40, every=3, layout=Layout(occupancy=1), **more),
    "blocks": lambda m, **more: gmp(m, 0.25, 40, every=3, layout=Layout(pattern="2x1"), **more),
    "2:4": lambda m, **more: gmp(m, 0.5, 40, every=3, layout=Layout(pattern="1:2"), **more),
    "granet": lambda m, **more: granet(m, 0.1, 40, every=3, **more),
    "rigl": lambda m, **more: rigl(m, 0.1, 40, every=3, **more),
    "rigl random": lambda m, **more: rigl(m, 0.1, 40, every=3, start="random", **more),
    "random growth": lambda m, **more: Sparse(m, Ramp(0.1, 40, every=3), growth=Growth(score="random"), **more),
    "rpg b": lambda m, **more: rpg(m, 0.1, 40, every=3, **more),
    "rpg a": lambda m, **more: rpg(m, 0.1, 40, every=3, rank=Rank(0.3, 0.2, "step", 4), **more),
    "rpg blocks": lambda m, **more: rpg(m, 0.25, 40, every=3, layout=Layout(pattern="2x1"), **more),
    "st3": lambda m, **more: st3(m, 0.1, 40, **more),
    "rpg st3": lambda m, **more: rpg(m, 0.1, 40, reading="st3", **more),
    "acdc": lambda m, **more: acdc(m, 0.1, 40, **more),
    "rpg acdc": lambda m, **more: rpg(m, 0.1, 40, reading="acdc", **more),
}


def find_k(energies: np.ndarray, delta: float) -> int:
    """How many singular values the approximation keeps, by trying each number of left-out ones (at least one)."""
    tails = [abs(sum(energies[-left:]) - delta) for left in range(1, len(energies) + 1)]
    return len(energies) - 1 - int(np.argmin(tails))


def slow_loss(weights: list[Tensor], delta: float) -> Tensor:
    """The loss as the released code writes it: decompositions are constants, layers of zero loss do not count."""
    losses = []
    for w in weights:
        if not w.any():
            continue
        n = w.flatten(1) / w.norm()
        u, s, v = np.linalg.svd(n.detach().numpy(), full_matrices=False)
        k = find_k(s**2, delta)
        losses.append(-(n - torch.from_numpy((u[:, :k] * s[:k]) @ v[:k])).square().sum())
    return sum(losses) / len(losses)
