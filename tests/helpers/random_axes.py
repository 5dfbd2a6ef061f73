"""Random chains of axes with scores that tie, and the widths that a plan leaves of them."""

from __future__ import annotations

import numpy as np
import torch

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.plan import Plan
from secateur.core.size import Size, Term, constant

SEEDS = range(30)


def network(seed: int) -> tuple[Axes, dict[str, torch.Tensor]]:
    """A random chain with concatenations, heads times head dims, a residual width and a fixed axis; scores with ties."""
    draw = np.random.default_rng(seed)
    kinds = ["channel", "hidden", "head", "head_dim", "width", "group"]
    axes = [
        Axis(f"axis{i}", kinds[i % len(kinds)], int(draw.integers(1, 40)), (), fixed="an output" if i == 3 else None)
        for i in range(int(draw.integers(4, 9)))
    ]

    def size() -> Size:
        parts = [
            (int(draw.integers(1, 17)), tuple(draw.integers(0, len(axes), draw.integers(0, 3))))
            for _ in range(draw.integers(1, 4))
        ]
        return tuple((coefficient, tuple(int(a) for a in product)) for coefficient, product in parts)

    def terms() -> tuple[Term, ...]:
        grow = [(((1, (i,)),), constant(int(draw.integers(1, 50)))) for i in range(len(axes))]
        return (*grow, *(tuple(size() for _ in range(draw.integers(1, 4))) for _ in range(12)))

    scores = {axis.name: torch.tensor(draw.integers(0, 12, axis.units) / 4) for axis in axes if axis.fixed is None}
    return Axes(tuple(axes), {}, {"params": terms(), "macs": terms()}), scores


def kept(axes: Axes, plan: Plan) -> dict[str, int]:
    """Axis name to width after `plan`."""
    after = plan.widths()
    return {axis.name: after.get(axis.name, (0, axis.units))[1] for axis in axes.free}
