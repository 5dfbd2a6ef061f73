"""Sizes and counts as polynomials in the number of kept units, so that a budget is exact before any surgery.

A `Size` is the length of one tensor dimension: a sum of products, `((coefficient, (axis, ...)), ...)`, where an axis is
its position in the `Axes` it belongs to. A `Term` is a product of sizes; a count is a sum of terms.

Shape legend: S sizes, M monomials, T terms, F factors of a term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from secateur.core.errors import SecateurError, nearest

Size = tuple[tuple[int, tuple[int, ...]], ...]
Term = tuple[Size, ...]


def constant(value: int) -> Size:
    """A size that no cut changes."""
    return ((value, ()),)


def size_of(size: Size, kept: Sequence[int]) -> int:
    """The length when axis `a` keeps `kept[a]` units."""
    return sum(coefficient * prod(kept[a] for a in axes) for coefficient, axes in size)


def count(terms: Sequence[Term], kept: Sequence[int]) -> int:
    """Sum of products of sizes, exact in integers."""
    memo: dict[int, int] = {}
    total = 0
    for term in terms:
        product = 1
        for size in term:
            value = memo.get(id(size))
            if value is None:
                value = memo[id(size)] = size_of(size, kept)
            product *= value
        total += product
    return total


def merge(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The same sum with the constant terms added up into one."""
    fixed, moving = 0, []
    for term in terms:
        if all(axes == () for size in term for _, axes in size):
            fixed += prod(sum(coefficient for coefficient, _ in size) for size in term)
        else:
            moving.append(term)
    return tuple(moving) + (((constant(fixed),),) if fixed else ())


def terms_of(counts: Mapping[str, tuple[Term, ...]], what: str) -> tuple[Term, ...]:
    """The terms of the count `what`. Raises `SecateurError` where that was not counted."""
    if what not in counts:
        raise SecateurError(f"a budget on {what!r}", "no such count", nearest(what, list(counts)))
    return counts[what]


@dataclass(frozen=True, eq=False)
class Tables:
    """A count as arrays: `coefficients` (S, M), `factors` (M, degree), `places` (T, F).

    With `x` the kept units of all axes and a 1 behind them it is ``(coefficients @ x[factors].prod(1))[places].prod(1).sum()``.
    """

    coefficients: np.ndarray
    factors: np.ndarray
    places: np.ndarray


def tables(terms: Sequence[Term], axes: int) -> Tables:
    """The arrays of a count over so many axes: each size and each product of axes is computed once, and none in Python."""
    sizes: dict[Size, int] = {constant(1): 0}  # what shorter terms are filled up with
    places = [[sizes.setdefault(size, len(sizes)) for size in term] for term in terms]
    monomials: dict[tuple[int, ...], int] = {}
    entries = [(row, monomials.setdefault(product, len(monomials)), n) for size, row in sizes.items() for n, product in size]
    coefficients = np.zeros((len(sizes), len(monomials)), dtype=np.int64)
    for row, column, coefficient in entries:
        coefficients[row, column] += coefficient
    return Tables(coefficients, _padded(list(monomials), axes), _padded(places, 0))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
