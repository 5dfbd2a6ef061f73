"""A small network whose axes, slots and counts are written down by hand, so that tests need no tracer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis, Slot
from secateur.core.size import Size, Term, constant

LOSS = nn.CrossEntropyLoss()
"""Of the outputs of a `Small` and the labels of `data()`."""


class Small(nn.Module):
    """Convolution, batch norm, a second convolution whose output is added to a third's, flattening, linear."""

    def __init__(self, a: int = 8, b: int = 6) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, a, 3, padding=1)
        self.norm = nn.BatchNorm2d(a)
        self.two = nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.three = nn.Conv2d(a, b, 1, bias=False)
        self.last = nn.BatchNorm2d(b)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(b * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 4, 4) to (B, 10)."""
        x = self.norm(self.one(x)).relu()
        x = self.last(self.two(x) + self.three(x)).relu()
        return self.head(self.drop(x.flatten(1)))


def small(seed: int = 0, a: int = 8, b: int = 6) -> Small:
    """A `Small` with random weights and batch norms away from 1 and 0, in double precision and evaluation mode."""
    torch.manual_seed(seed)
    model = Small(a, b).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for norm in (model.norm, model.last):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def axes(model: Small) -> Axes:
    """Both free axes of `model`, a fixed one, and its counts at an input of (1, 3, 4, 4)."""
    a, b = model.one.out_channels, model.two.out_channels

    def point_wise(norm: str) -> tuple[Slot, ...]:
        return tuple(Slot(f"{norm}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var"))

    first = Axis(
        "one",
        "channel",
        a,
        (
            Slot("one.weight", 0, role="write"),
            Slot("one.bias", 0, role="write"),
            *point_wise("norm"),
            Slot("two.weight", 1, role="read"),
            Slot("three.weight", 1, role="read"),
        ),
    )
    second = Axis(
        "two",
        "channel",
        b,
        (
            Slot("two.weight", 0, role="write"),
            Slot("three.weight", 0, role="write"),
            *point_wise("last"),
            Slot("head.weight", 1, step=16, loops=((16, 1),), role="read"),
        ),
    )
    classes = Axis("head", "channel", 10, (Slot("head.weight", 0, role="write"),), fixed="it is an output of the model")
    fingerprint = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return Axes((first, classes, second), fingerprint, {"params": PARAMS, "macs": MACS})


def data(batches: int = 3, size: int = 5, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images and labels for a `Small`, in double precision."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(batches, size, 3, 4, 4, dtype=torch.float64, generator=draw)
    return list(zip(images, torch.randint(10, (batches, size), generator=draw), strict=True))


def owned(model: Small, axis: str, unit: int) -> dict[str, torch.Tensor]:
    """Views of all parameter entries of one unit, written out by hand."""
    if axis == "one":
        return {
            "one.weight": model.one.weight.data[unit],
            "one.bias": model.one.bias.data[unit],
            "norm.weight": model.norm.weight.data[unit],
            "norm.bias": model.norm.bias.data[unit],
            "two.weight": model.two.weight.data[:, unit],
            "three.weight": model.three.weight.data[:, unit],
        }
    return {
        "two.weight": model.two.weight.data[unit],
        "three.weight": model.three.weight.data[unit],
        "last.weight": model.last.weight.data[unit],
        "last.bias": model.last.bias.data[unit],
        "head.weight": model.head.weight.data[:, 16 * unit : 16 * unit + 16],
    }


WRITERS = {"one": ("one.weight",), "two": ("two.weight", "three.weight")}


def rows(model: Small, axis: Axis, group: bool) -> list[np.ndarray]:
    """Entries of each unit as one vector."""
    found = []
    for unit in range(axis.units):
        parts = owned(model, axis.name, unit)
        names = parts if group else WRITERS[axis.name]
        found.append(np.concatenate([parts[name].numpy().ravel() for name in names]))
    return found


A: Size = ((1, (0,)),)
B: Size = ((1, (2,)),)
FLAT: Size = ((16, (2,)),)
CLASSES: Size = ((1, (1,)),)
PARAMS: tuple[Term, ...] = (
    (A, constant(27)),
    (A, constant(3)),  # bias and batch norm
    (B, A, constant(9)),
    (B, A),
    (B, constant(2)),
    (CLASSES, FLAT),
    (CLASSES,),
)
MACS: tuple[Term, ...] = (
    (A, constant(27), constant(16)),
    (B, A, constant(9), constant(16)),
    (B, A, constant(16)),
    (CLASSES, FLAT),
)


def params(a: int, b: int) -> int:
    """Parameters of a `Small`, by hand."""
    return a * 3 * 9 + a + 2 * a + b * a * 9 + b * a + 2 * b + 16 * b * 10 + 10


def macs(a: int, b: int) -> int:
    """MACs of a `Small` on one image of 4 by 4, by hand."""
    return 16 * (a * 3 * 9 + b * a * 9 + b * a) + 16 * b * 10
