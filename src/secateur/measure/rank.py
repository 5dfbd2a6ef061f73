"""How far weight matrices are from low rank, and what of their rows and columns is empty.

Shape legend: O outputs, I inputs (per group), K kernel positions; a weight is the matrix (O, I * K).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RankFacts:
    """Of one weight: numerical rank, the highest it could be, the rank that holds all but the share `tail` of its energy,
    outputs without any entry, and input channels without any."""

    rank: int
    full: int
    energy_rank: int
    empty_rows: int
    empty_columns: int


def rank_facts(model: nn.Module, *, names: Iterable[str] | None = None, tail: float = 0.2) -> dict[str, RankFacts]:
    """Name to facts of the weights of two dims and more (of `names` alone, where given), by singular values in float64.

    >>> rank_facts(nn.Linear(3, 2), names=["weight"])["weight"].full
    2
    """
    chosen = None if names is None else set(names)
    named = [(name, value) for name, value in model.named_parameters() if value.dim() > 1]
    return {name: facts_of(value.detach(), tail) for name, value in named if chosen is None or name in chosen}


def facts_of(weight: Tensor, tail: float) -> RankFacts:
    """The facts of one weight (O, I, ...)."""
    matrix = weight.flatten(1).cpu().double()
    values = torch.linalg.svdvals(matrix)
    energies = values.square().flip(0).cumsum(0)
    # as numpy.linalg.matrix_rank draws the line, for float32 weights
    least = values.amax() * max(matrix.shape) * torch.finfo(torch.float32).eps if len(values) else 0
    cube = weight.reshape(weight.shape[0], weight.shape[1], -1) != 0
    return RankFacts(
        rank=int((values > least).sum()),
        full=min(matrix.shape),
        energy_rank=int((energies > tail * energies[-1]).sum()),
        empty_rows=int((~cube.any(-1).any(1)).sum()),
        empty_columns=int((~cube.any(-1).any(0)).sum()),
    )
