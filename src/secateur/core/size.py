"""Sizes and counts as polynomials in the number of kept units, so that a budget is exact before any surgery.

A `Size` is the length of one tensor dimension: a sum of products, `((coefficient, (axis, ...)), ...)`, where an axis is
its position in the `Axes` it belongs to. A `Term` is a product of sizes; a count is a sum of terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

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
