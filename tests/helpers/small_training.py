"""A network, random images and a view of its weights: all that a test needs for a training of a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur import data


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))


def batches(count: int = 50, **settings: Any) -> data.Batches:
    dice = torch.Generator().manual_seed(7)
    x = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=dice)
    y = torch.randint(0, 10, (count,), generator=dice)
    return replace(data.Batches(x, y, batch=16, augment=data.Augment(crop=1, flip=True), shuffle=True), **settings)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])
