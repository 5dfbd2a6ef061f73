"""Counts of `Axes` as a differentiable function of real widths: the polynomials a budget is exact by, in torch.

Shape legend: A axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.size import tables, terms_of

Count = Callable[[Tensor], Tensor]
"""Widths of all axes (A,), real, to a count."""


def count_of(axes: Axes, what: str) -> Count:
    """A function equal to ``axes.count(what, ...)`` at whole widths (float64), with slopes between them.

    Raises `SecateurError` where `what` was not counted in the trace.
    """
    known = tables(terms_of(axes.terms, what), len(axes))
    matrix = torch.from_numpy(known.coefficients).double()
    factors, places = torch.from_numpy(known.factors), torch.from_numpy(known.places)

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
