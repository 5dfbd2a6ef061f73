"""Functions called with arguments a recipe gives them, and a sentence where they do not take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

from secateur.core.errors import SecateurError, nearest

Result = TypeVar("Result")
TAKES = {"prune": "criterion", "search": "search", "lowrank": "method", "sparse": "method"}
"""Section of a recipe to what its `args` go to."""


def call_with(section: str, args: Mapping[str, Any], make: Callable[..., Result], /, *given: Any, **named: Any) -> Result:
    """What ``make(*given, **named)`` returns, some of `named` being the `args` of that section.

    Raises `SecateurError` where `make` does not take them: an unknown name, or text where it compares numbers.
    """
    asked, do = f"{section}.args = {dict(args)!r}", f"set args to what the {TAKES[section]} takes"
    known = _names(make, len(given))
    if known is not None and (unknown := [name for name in args if name in named and name not in known]):
        free = [name for name in known if name not in named or name in args]
        raise SecateurError(asked, f"no argument {unknown[0]!r}", f"{do}: {nearest(unknown[0], free)}")
    try:
        return make(*given, **named)
    except TypeError as error:
        if "argument" not in str(error) and "not supported between" not in str(error):
            raise
        raise SecateurError(asked, str(error), do) from None


def _names(make: Callable[..., Any], given: int) -> list[str] | None:
    """The arguments of `make` beyond those `given` by place that have names; None where it takes any."""
    parameters = list(signature(make).parameters.values())[given:]
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [each.name for each in parameters if each.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
