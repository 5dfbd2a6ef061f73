"""TOML text from plain values; the standard library only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def dumps(table: Mapping[str, Any]) -> str:
    """`table` as TOML: its values first, one section per nested table or
    row of a list of tables, tables inside sections inline; None is left out.

    >>> print(dumps({"seed": 0, "prune": {"keep": {"macs": 0.5}, "ignore": ["head*"]}}), end="")
    seed = 0
    <BLANKLINE>
    [prune]
    keep = { macs = 0.5 }
    ignore = ["head*"]
    """
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if v is not None and not _nested(v)]
    for name, section in table.items():
        for row in section if _nested(section) and not isinstance(section, Mapping) else ():
            lines += ["", f"[[{_key(name)}]]"] + [f"{_key(k)} = {_value(v)}" for k, v in row.items() if v is not None]
        if isinstance(section, Mapping):
            lines += ["", f"[{_key(name)}]"] + [f"{_key(k)} = {_value(v)}" for k, v in section.items() if v is not None]
    return "\n".join(lines) + "\n"


def _nested(value: Any) -> bool:
    """A section, or a list of them."""
    rows = value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, Mapping) or (bool(rows) and all(isinstance(row, Mapping) for row in rows))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(v) for v in value)}]"
    return repr(value)
