"""What counts as a number where a user gives one, and weights that are some."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from secateur.core.errors import SecateurError


def is_number(value: Any) -> bool:
    """Is it a real number, numpy's included, neither true, false nor NaN?

    >>> [is_number(value) for value in (1, 0.5, float("inf"), True, float("nan"), "1")]
    [True, True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def require_finite(weight: Tensor, asked: str, do: str) -> None:
    """Raise `SecateurError` for a `weight` that has no values, or some that are not finite."""
    if weight.is_meta:
        raise SecateurError(asked, "weights on the meta device, which have no values", "load weights first")
    if not bool(weight.isfinite().all()):
        raise SecateurError(asked, "weights that are not finite numbers", do)
