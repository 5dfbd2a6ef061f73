"""Unit lists as text a person can read in a diff: "0 2 13-14"."""

from __future__ import annotations

from collections.abc import Iterable


def to_text(units: Iterable[int]) -> str:
    """Ascending units as ranges.

    >>> to_text([0, 2, 13, 14])
    '0 2 13-14'
    """
    parts: list[list[int]] = []
    for unit in units:
        if parts and unit == parts[-1][1] + 1:
            parts[-1][1] = unit
        else:
            parts.append([unit, unit])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def from_text(text: str) -> tuple[int, ...]:
    """The inverse of `to_text`.

    Raises `ValueError` where a unit is not a number, is negative, is named twice or out of order.

    >>> from_text("0 2 13-14")
    (0, 2, 13, 14)
    """
    units: list[int] = []
    for part in text.split():
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (not dash or last.isdecimal())):
            raise ValueError(f"{part!r} is no unit or range of units")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"{part!r} runs backwards")
        if high - low > 1 << 24:
            raise ValueError(f"{part!r} names more units than any axis has")
        if units and low <= units[-1]:
            raise ValueError(f"unit {low} comes after {units[-1]}: units ascend and none is named twice")
        units.extend(range(low, high + 1))
    return tuple(units)
