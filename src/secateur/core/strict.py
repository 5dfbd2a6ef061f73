"""Strict reading of JSON from strangers: every surprise is one clear sentence."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from secateur.core import ranges
from secateur.core.errors import SecateurError, nearest

MEND = "write the plan again with secateur, or mend that entry"


def parse(text: str | bytes, asked: str) -> Any:
    """The value of strict JSON: no key twice, no NaN or infinity, UTF-8.

    Raises `SecateurError` that begins with `asked`, also for nesting deeper than the interpreter can follow.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError(f"the key {show(Counter(name for name, _ in pairs).most_common(1)[0][0])} twice")
        return value

    def constant(word: str) -> Any:
        raise ValueError(f"the number {word}")

    do = "give a complete JSON file as secateur writes it"
    try:
        text = text.decode("utf-8-sig") if isinstance(text, (bytes, bytearray)) else text
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise SecateurError(asked, f"no JSON at line {error.lineno}, column {error.colno} ({error.msg})", do) from None
    except UnicodeDecodeError:
        raise SecateurError(asked, "bytes that are no UTF-8 text", do) from None
    except RecursionError:
        raise SecateurError(asked, "JSON nested too deep to be real", do) from None
    except ValueError as error:
        raise SecateurError(asked, str(error).partition(";")[0], do) from None


def fields(value: Any, must: set[str], may: set[str], where: str) -> dict[str, Any]:
    """`value` as an object with the keys `must`, and perhaps some of `may`."""
    value = table(value, where)
    if missing := sorted(must - set(value)):
        raise bad(f"{where} without {missing[0]!r}", MEND)
    if unknown := sorted(set(value) - must - may):
        raise bad(f"{where} with the unknown key {show(unknown[0])}", nearest(unknown[0][:40], sorted(must | may)))
    return value


def _typed(kind: type, words: str) -> Callable[[Any, str], Any]:
    def check(value: Any, where: str) -> Any:
        if type(value) is not kind:
            raise bad(f"{show(value)} for {where}", f"give {words}")
        return value

    return check


table = _typed(dict, "an object of names and values")
array = _typed(list, "a list")


def integer(value: Any, low: int, high: int, where: str) -> int:
    """`value` as a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise bad(f"{show(value)} for {where}", f"give a whole number from {low} to {high}")
    return value


def name_of(value: Any, where: str) -> str:
    """`value` as a name that can be printed."""
    # a name is printed: control characters in a stranger's file would drive the reader's terminal
    if type(value) is not str or not value or not value.isprintable():
        raise bad(f"{show(value)} for {where}", "give a printable name")
    return value


def units_of(text: Any, units: int, where: str) -> tuple[int, ...]:
    """The units a text of ranges names, all below `units`."""
    if type(text) is not str or not re.fullmatch(r"[0-9 -]*", text):
        raise bad(f"{where} keeping {show(text)}", 'write kept units as ranges, "0 2 13-14"')
    # before the ranges are written out: "0-99999999999" is short text and much memory
    outside = next((number for number in re.findall(r"\d+", text) if len(number) > 9 or int(number) >= units), None)
    if outside:
        raise bad(f"{where} keeping unit {show(int(outside[:12]))} of {units}", f"units run from 0 to {units - 1}")
    try:
        return ranges.from_text(text)
    except ValueError as error:
        raise bad(f"{where}: {error}", MEND) from None


def bad(found: str, do: str) -> SecateurError:
    """The error of a plan that holds `found`."""
    return SecateurError("reading a plan", found, do)


def show(value: Any) -> str:
    """`value` in at most 60 characters."""
    text = f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
