"""Shares of a count, exact."""

from __future__ import annotations

from fractions import Fraction

from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number


def limit(share: float, whole: int, asked: str) -> int:
    """The most that `share` of `whole` allows, the share being the decimal number that was written.

    0.29 of 100 is 29, although ``0.29 * 100 < 29`` in binary. Raises `SecateurError` naming what was `asked` unless the
    share is above 0 and at most 1.

    >>> limit(0.29, 100, "keep")
    29
    """
    if not is_number(share) or not 0 < share <= 1:
        raise SecateurError(asked, f"{share!r}", "say what remains, as a share above 0 and at most 1")
    return int(Fraction(repr(float(share))) * whole)


def at_least(count: int, whole: int) -> str:
    """The smallest share in four digits that allows `count` of `whole`.

    >>> at_least(1, 3)
    '0.3334'
    """
    return f"{-(-count * 10000 // max(whole, 1)) / 10000:.4f}"
