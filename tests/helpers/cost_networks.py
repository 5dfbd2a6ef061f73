"""Small networks whose layers are timed, and a made-up table of their milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from secateur import trace
from secateur.core.axes import Axes
from secateur.measure.table import Entry, LatencyTable, layer_calls
from secateur.recipes import zoo

X = torch.zeros(2, 1, 8, 8)


def network() -> tuple[nn.Module, Axes]:
    torch.manual_seed(0)
    model = zoo.digits_resnet(widths=(8, 12, 16)).eval()
    return model, trace(model, X)


class Depthwise(nn.Module):
    """A depthwise and a grouped convolution between pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 3, groups=3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.d(self.c(self.b(self.a(x)).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def synthetic(model: nn.Module, example: torch.Tensor = X, rest: float = 0.5) -> LatencyTable:
    """A table in which a layer takes inputs * outputs / 1000 ms, with two points a side."""
    entries = {}
    for key, _, _, inputs, outputs in layer_calls(model, example):
        known = entries.get(key)
        inputs, outputs = max(inputs, known.inputs[1] if known else 2), max(outputs, known.outputs[1] if known else 2)
        sides = ((1, inputs), (1, outputs))
        entries[key] = Entry(*sides, tuple(tuple(i * o / 1000 for o in sides[1]) for i in sides[0]))
    return LatencyTable(entries, rest)
