"""Shell patterns of names, as users give them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

from secateur.core.errors import SecateurError


def patterns(ignore: Any) -> tuple[str, ...]:
    """`ignore` as patterns. Raises `SecateurError` for one text, which would be read letter by letter, and for no list."""
    if isinstance(ignore, str) or not isinstance(ignore, Collection) or not all(isinstance(part, str) for part in ignore):
        raise SecateurError(f"ignore={ignore!r}", "no list of names", 'give a list of shell patterns, as ["stem", "layer1.*"]')
    return tuple(ignore)


def matches(name: str, ignore: Sequence[str]) -> bool:
    """Does one of the patterns mean `name`?"""
    return any(fnmatchcase(name, pattern) for pattern in ignore)
