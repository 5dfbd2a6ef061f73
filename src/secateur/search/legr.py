"""LeGR: one affine map of filter norms per layer, found by evolution, makes norms comparable across layers.

Shape legend: A free axes, N units of one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Scores
from secateur.search.evolution import EvolutionSettings, Evolved, evolve


def legr(
    axes: Axes,
    norms: Scores,
    allocate: Callable[[Axes, Scores], Plan],
    settings: EvolutionSettings | None = None,
    *,
    share: float = 0.1,
    size: float = 0.3,
) -> Generator[Plan, float, Evolved[np.ndarray]]:
    """A search that returns (alpha, kappa) as an array (A, 2) and the plan of scores ``alpha_l * norm + kappa_l``.

    `norms` are squared L2 norms of the weights that write each unit (any score will do); `allocate` ranks units across axes as
    they are, as ``lambda axes, scores: allocate.budget(axes, scores, {"macs": 0.5}, normalise="none")``. A mutation touches the
    `share` of the axes (at least one): alpha is multiplied by exp(e), kappa moved by e times the deviation of the axis' norms,
    e normal with deviation `size`, which falls to half over the search.

    Source: Chin et al., 2020, algorithm 1, with its population of 64, tournament of 16 and 10 % of the layers. The paper tunes
    a candidate for some steps before it is judged; what the judge does is the caller's to say.
    """
    names = [axis.name for axis in axes.free]
    values = {name: torch.as_tensor(norms[name]).double() for name in names}
    spread = np.array([float(values[name].std(unbiased=False)) for name in names])

    def mutate(genome: np.ndarray, draw: np.random.Generator, progress: float) -> np.ndarray:
        child = genome.copy()
        touched = draw.choice(len(names), max(1, round(share * len(names))), replace=False)
        noise = size * (1 - progress / 2) * draw.standard_normal((2, len(touched)))
        child[touched, 0] *= np.exp(noise[0])
        child[touched, 1] += noise[1] * spread[touched]
        return child

    def plan_of(genome: np.ndarray) -> Plan:
        return allocate(axes, mapped(values, genome))

    return evolve(np.stack([np.ones(len(names)), np.zeros(len(names))], 1), mutate, plan_of, settings)


def mapped(norms: Scores, genome: np.ndarray) -> dict[str, Any]:
    """The scores a genome (A, 2) makes of `norms`, axes in their order."""
    return {name: row[0] * values + row[1] for (name, values), row in zip(norms.items(), genome, strict=True)}
