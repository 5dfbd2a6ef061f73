"""Random scores, the baseline that every criterion has to beat."""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Criterion


def random(model: nn.Module, seed: int = 0) -> Criterion:
    """Scores: uniform on [0, 1), the same for the same `seed` and axis name, whatever else is scored.

    `model` is not read; every criterion takes it.
    """

    def score(axis: Axis) -> Tensor:
        generator = torch.Generator().manual_seed(crc32(f"{seed} {axis.name}".encode()))
        return torch.rand(axis.units, generator=generator)

    return score
