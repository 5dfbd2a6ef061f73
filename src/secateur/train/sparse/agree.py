"""Masks under data parallelism: every process takes those of rank 0."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, distributed

Key = TypeVar("Key", bound=Hashable)


def agree(masks: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """`masks` as rank 0 has them; without several processes as they are.

    Gradients are averaged, so all ranks choose alike; where rounding on unlike devices decides a tie, this does. One broadcast.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return dict(masks)
    flat = torch.cat([mask.reshape(-1) for mask in masks.values()]).to(torch.uint8)
    distributed.broadcast(flat, 0)
    parts = flat.bool().split([mask.numel() for mask in masks.values()])
    return {name: part.view(mask.shape) for (name, mask), part in zip(masks.items(), parts, strict=True)}
