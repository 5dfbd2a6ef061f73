"""A small network for trained rank pruning, and the truncated decomposition by numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.down = nn.Conv2d(10, 12, 3, stride=2, padding=1)
        self.point = nn.Conv2d(12, 12, 1)
        self.deep = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.wide(functional.relu(self.stem(x)))))
        return self.head(self.deep(self.point(functional.relu(self.down(x)))).mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def low(matrix: np.ndarray, discarded: float) -> tuple[np.ndarray, np.ndarray]:
    """TSVD(W; e) and U V^T, by numpy."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    k = next(k for k in range(len(s) + 1) if (s[k:] ** 2).sum() <= discarded * (s**2).sum())
    return (u[:, :k] * s[:k]) @ v[:k], u[:, :k] @ v[:k]
