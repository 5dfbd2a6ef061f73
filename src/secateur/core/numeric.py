"""What counts as a number where a user gives one."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def is_number(value: Any) -> bool:
    """Is it a real number, numpy's included, neither true, false nor NaN?

    >>> [is_number(value) for value in (1, 0.5, float("inf"), True, float("nan"), "1")]
    [True, True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
