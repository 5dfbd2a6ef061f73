"""Numbers as people read them: grouped digits, one unit per column, ratios, points.

Every function takes what a file said, whatever it is, and returns text that never reads "nan", "inf" or "None".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

UNKNOWN = "\u2013"  # en dash
MINUS = "\u2212"
TIMES = "\u00d7"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
ASCII = str.maketrans({TIMES: "x", MINUS: "-", UNKNOWN: "-"})


def number(value: Any) -> float | int | None:
    """`value` where it is a finite number, else None: NaN, infinity, text and truth values are no measurements."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def printable(text: str) -> str:
    """`text` without what neither XML nor a reader can use: control characters, and marks that turn its direction."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "", text)


def clean(text: Any) -> str:
    """`text` as one printable line."""
    return " ".join(printable(" ".join(str(text).split())).split())


def unit_for(values: Iterable[Any]) -> tuple[float, str]:
    """(factor, SI prefix) in which the largest of `values` is readable; one column is written in one unit.

    >>> unit_for([125_490_000, 41_000_000])
    (1000000.0, 'M')
    """
    largest = max((abs(value) for value in map(number, values) if value is not None), default=0)
    return next(((factor, prefix) for factor, prefix in PREFIXES if largest >= factor), PREFIXES[-1])


def places(largest: float) -> int:
    """Decimals for a column whose largest value is `largest`.

    >>> [places(x) for x in (1250, 125.49, 12.5, 1.25, 0.12)]
    [0, 1, 2, 2, 3]
    """
    return next((decimals for bound, decimals in ((1000, 0), (100, 1), (1, 2)) if largest >= bound), 3)


def fixed(value: float, decimals: int) -> str:
    """`value` with thousands grouped and a true minus sign.

    >>> fixed(853018, 0)
    '853,018'
    """
    text = f"{value:,.{decimals}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def ratio(value: Any, dense: Any) -> float | None:
    """`value` as a multiple of `dense`, or None where either is unknown or dense is not above 0."""
    value, dense = number(value), number(dense)
    return None if value is None or dense is None or dense <= 0 else value / dense


def times(share: float | None) -> str:
    """A ratio to dense, three significant digits from 0.001 on.

    >>> times(0.4711), times(1.0), times(0.98765)
    ('0.471×', '1×', '0.988×')
    """
    if share is None:
        return UNKNOWN
    if share == 1 or share == 0:
        return f"{share:g}{TIMES}"
    return f"{share:.1e}{TIMES}" if abs(share) < 0.001 else f"{fixed(share, 2 if abs(share) >= 1 else 3)}{TIMES}"


def factor(share: float) -> str:
    """How many times smaller: the inverse of a ratio to dense.

    >>> factor(0.4711)
    '2.12×'
    """
    inverse = 1 / share
    return f"{inverse:,.{2 if inverse < 100 else 0}f}{TIMES}"


def signed(value: float, decimals: int) -> str:
    """`value` with its sign written out, and none on zero.

    >>> signed(0.41, 1), signed(-1.29, 1), signed(-0.01, 1)
    ('+0.4', '−1.3', '0.0')
    """
    text = fixed(value, decimals)
    return f"+{text}" if float(text.replace(",", "").replace(MINUS, "-")) > 0 else text


def duration(seconds: Any) -> str:
    """A time span in the two largest units that say something.

    >>> duration(0.42), duration(71.3), duration(7384)
    ('0.4 s', '1 min 11 s', '2 h 3 min')
    """
    seconds = number(seconds)
    if seconds is None or seconds < 0:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def size(count: Any) -> str:
    """Bytes in decimal units.

    >>> size(1_736_000)
    '1.7 MB'
    """
    factor_, prefix = unit_for([count])
    value = number(count)
    return UNKNOWN if value is None else f"{fixed(value / factor_, 1 if prefix else 0)} {prefix}B"


def moment(value: Any) -> str:
    """An ISO time as a person writes it; other text unchanged.

    >>> moment("2026-10-03T09:14:05+00:00"), moment("2026-10-03T09:14:05.123456")
    ('2026-10-03 09:14:05 UTC', '2026-10-03 09:14:05')
    """
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return clean(value)
    zone = "" if time.tzinfo is None else " UTC" if not time.utcoffset() else time.strftime(" %z")
    return f"{time:%Y-%m-%d %H:%M:%S}{zone}"


def share(value: Any, decimals: int = 1) -> str:
    """A share between 0 and 1 as percent; rounding makes neither all nor nothing of it.

    >>> share(0.9321), share(0.9999), share(1)
    ('93.2 %', '> 99.9 %', '100.0 %')
    """
    known = number(value)
    if known is None:
        return UNKNOWN
    step = 10.0**-decimals
    if 100 - step / 2 <= 100 * known < 100:
        return f"> {fixed(100 - step, decimals)} %"
    return f"< {fixed(step, decimals)} %" if 0 < 100 * known < step / 2 else f"{fixed(100 * known, decimals)} %"


def plural(count: int, noun: str) -> str:
    """`count` and its noun; "axis" is the one irregular word here.

    >>> plural(1, "axis"), plural(3, "axis"), plural(1200, "unit")
    ('1 axis', '3 axes', '1,200 units')
    """
    nouns = noun if count == 1 else "axes" if noun == "axis" else f"{noun}s"
    return f"{count:,} {nouns}"
