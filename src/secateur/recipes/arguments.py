"""Functions called with arguments a recipe gives them, and a sentence where they do not take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from secateur.core.errors import SecateurError

Result = TypeVar("Result")
TAKES = {"prune": "criterion", "search": "search", "lowrank": "method", "sparse": "method"}
"""Section of a recipe to what its `args` go to."""


def call_with(section: str, args: Mapping[str, Any], make: Callable[..., Result], /, *given: Any, **named: Any) -> Result:
    """What ``make(*given, **named)`` returns, some of `named` being the `args` of that section.

    Raises `SecateurError` where `make` does not take them: an unknown name, or text where it compares numbers.
    """
    try:
        return make(*given, **named)
    except TypeError as error:
        if "argument" not in str(error) and "not supported between" not in str(error):
            raise
        do = f"set args to what the {TAKES[section]} takes"
        raise SecateurError(f"{section}.args = {dict(args)!r}", str(error), do) from None
