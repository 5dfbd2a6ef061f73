"""A training loop of three lines, as a user of a hook writes it, and random batches for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.core.protocols import Hook


def batches(
    count: int, seed: int = 1, *, size: int = 8, classes: int = 4, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """So many batches of four random images of 3 x `size` x `size`, with labels."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 3, size, size, generator=draw, dtype=dtype), torch.randint(0, classes, (4,), generator=draw))
        for _ in range(count)
    ]


def train(
    model: nn.Module,
    hook: Hook,
    data: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    watch: Callable[[], object] = lambda: None,
) -> None:
    """One step per batch; `watch` is called after each."""
    for x, y in data:
        (functional.cross_entropy(model(x), y) + hook.loss()).backward()
        hook.after_backward()
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()
        watch()
