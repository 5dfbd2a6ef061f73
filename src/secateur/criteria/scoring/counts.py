"""Counts of `Axes` as a differentiable function of real widths: the polynomials a budget is exact by, in torch.

Shape legend: A axes, S sizes, M monomials, T terms, F factors of a term.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.size import Size

Count = Callable[[Tensor], Tensor]
"""Widths of all axes (A,), real, to a count."""


def count_of(axes: Axes, what: str) -> Count:
    """A function equal to ``axes.count(what, ...)`` at whole widths (float64), with slopes between them.

    Raises `SecateurError` where `what` was not counted in the trace.
    """
    if what not in axes.terms:
        raise SecateurError(f"a budget on {what!r}", "no such count", nearest(what, list(axes.terms)))
    sizes: dict[Size, int] = {((1, ()),): 0}
    terms = [[sizes.setdefault(size, len(sizes)) for size in term] for term in axes.terms[what]]
    monomials: dict[tuple[int, ...], int] = {}
    entries = [(row, monomials.setdefault(names, len(monomials)), n) for size, row in sizes.items() for n, names in size]
    matrix = torch.zeros(len(sizes), len(monomials), dtype=torch.float64)  # (S, M)
    for row, column, coefficient in entries:
        matrix[row, column] += coefficient
    factors, places = _padded(list(monomials), len(axes)), _padded([tuple(term) for term in terms], 0)

    def count(widths: Tensor) -> Tensor:
        now = torch.cat([widths.double(), torch.ones(1, dtype=torch.float64)])  # the last stands for "no axis"
        return (matrix @ now[factors].prod(1))[places].prod(1).sum()

    return count


def unit_costs(axes: Axes, what: str) -> Tensor:
    """The share of the whole count that goes with the next unit dropped from each axis (A,); zeros where nothing is counted."""
    if what not in axes.terms:
        return torch.zeros(len(axes), dtype=torch.float64)
    whole = max(axes.count(what), 1)
    costs = [whole - axes.count(what, {a.name: a.units - 1}) if a.fixed is None and a.units > 1 else 0 for a in axes]
    return torch.tensor(costs, dtype=torch.float64) / whole


def _padded(rows: list[tuple[int, ...]], fill: int) -> Tensor:
    wide = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[fill] * (wide - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), wide)
