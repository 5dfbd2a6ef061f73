"""Random images of whole numbers."""

from __future__ import annotations

import torch


def images(count: int, *, colours: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, colours, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
