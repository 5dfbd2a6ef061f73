"""Two batches for the hand-made network, and the maps that the readers of its first axis read."""

from __future__ import annotations

import torch

import handmade


def data(batches: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return handmade.data(batches)


def maps(model: handmade.Small) -> torch.Tensor:
    """What the readers of the axis "one" read; (B, C, 4, 4)."""
    with torch.no_grad():
        return torch.cat([model.norm(model.one(x)).relu() for x, _ in data()])
