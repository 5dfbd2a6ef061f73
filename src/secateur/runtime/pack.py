"""Weights as the kernels read them: row by row, the places of the non-zeros and their values.

O outputs, I inputs per group, KH x KW kernel; B blocks of R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from secateur.runtime.endings import Ending
from secateur.runtime.layout import Layout, Reach


@dataclass(frozen=True)
class Packed:
    """`words` int32 (entries, 1 + R): byte offset, R values as bits; `start` int32 (parts * B + 1,).

    Of bf16 an entry is a pair, (entries, 2 + R): two byte offsets, and for each row two values, the first in the low half. Of
    int8 it is four, (entries, 4 + R): four byte offsets, and for each row four values, the first in the lowest byte.
    `rows` int32 (B, R), -1 for none; `bias` float32 (B, R); of int8 `scale` float32 and `begin` int32 too, as in `Ending`.
    """

    words: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    bias: np.ndarray
    scale: np.ndarray | None = None
    begin: np.ndarray | None = None

    @property
    def block(self) -> int:
        """R."""
        return self.rows.shape[1]


def pack(
    weight: np.ndarray,
    places: np.ndarray,
    bias: np.ndarray | None,
    *,
    block: int = 1,
    parts: int = 1,
    ordered: bool = False,
    size: int = 4,
    end: Ending | None = None,
) -> Packed:
    """Pack `weight` (O, columns) with `places` (O, columns) or (columns,), the byte offset each weight reads at.

    Rows come in order of their non-zeros, so that neighbours take equally long and a loop's end is foreseen; `ordered` keeps
    their own. In blocks of several rows a column is stored where any of them has a value. Columns are cut into `parts`; all
    rows of a part come before the next part. `size`: bytes of a value, 2 in bf16, by pairs; 1 in int8, by fours: `weight` holds
    whole numbers then, and `end` what follows their sums.
    """
    count = len(weight)
    filled = weight != 0
    order = np.arange(count) if ordered or block > 1 else np.argsort(filled.sum(1), kind="stable")
    blocks = -(-count // block)
    rows = np.full(blocks * block, -1, np.int32)
    rows[:count] = order
    values = np.zeros((blocks * block, weight.shape[1]), np.float32)
    values[:count] = weight[order]
    grouped = values.reshape(blocks, block, -1)
    where, column = np.nonzero((grouped != 0).any(1))
    part = column * parts // max(weight.shape[1], 1)
    if parts > 1:
        sorted_ = np.lexsort((column, where, part))
        where, column, part = where[sorted_], column[sorted_], part[sorted_]
    words = np.empty((len(where), 1 + block), np.int32)
    words[:, 0] = places[column] if places.ndim == 1 else places[rows.reshape(blocks, block)[where, 0], column]
    words[:, 1:] = grouped[where, :, column].view(np.int32)
    counts = np.bincount(part * blocks + where, minlength=parts * blocks)
    if size < 4:
        words, counts = (_paired if size == 2 else _fours)(words, counts)
    start = np.zeros(parts * blocks + 1, np.int32)
    np.cumsum(counts, out=start[1:])

    def by_row(given: np.ndarray | None, kind: type) -> np.ndarray:
        made: np.ndarray = np.zeros(blocks * block, kind)
        if given is not None:
            made[:count] = given[order]
        return made.reshape(blocks, block)

    more = (by_row(end.scale, np.float32), by_row(end.begin, np.int32)) if end else ()
    return Packed(words, start, rows.reshape(blocks, block), by_row(bias, np.float32), *more)


def rounded(values: np.ndarray) -> np.ndarray:
    """bf16 as the upper halves of float32, to the nearest, ties to even: uint32 with zeros below."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), (bits | np.uint32(0x400000)) & np.uint32(0xFFFF0000), up)


def _paired(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries two by two within each block. An odd one is a pair with itself, of half its value each: with a zero beside it, an
    infinite input would give NaN.
    """
    odd = counts % 2 == 1
    ends = np.cumsum(counts)
    values = rounded(words[:, 1:].view(np.float32)).view(np.float32)
    last = ends[odd] - 1
    values[last] *= 0.5
    both = np.insert(np.concatenate([words[:, :1], rounded(values).view(np.int32)], 1), last, 0, axis=0)
    doubled = last + np.arange(len(last))  # where the copies went
    both[doubled] = both[doubled + 1]
    first, second = both[0::2], both[1::2]
    low = first[:, 1:].view(np.uint32) >> np.uint32(16)
    pairs = np.concatenate([first[:, :1], second[:, :1], (low | second[:, 1:].view(np.uint32)).view(np.int32)], 1)
    return np.ascontiguousarray(pairs), (counts + 1) // 2


def _fours(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries four by four within each block; what the last lacks are zeros where it reads anyway."""
    lacking = -counts % 4
    ends = np.cumsum(counts)
    places = np.arange(len(words)) + np.repeat(np.cumsum(lacking) - lacking, counts)
    offset = np.repeat(words[np.maximum(ends - 1, 0), 0] if len(words) else ends, counts + lacking)
    offset[places] = words[:, 0]
    values = np.zeros((len(offset), words.shape[1] - 1), np.uint32)
    values[places] = words[:, 1:].view(np.float32).astype(np.int8).view(np.uint8)
    four = values.reshape(-1, 4, values.shape[1]) << np.array([0, 8, 16, 24], np.uint32)[:, None]
    joined = np.bitwise_or.reduce(four, axis=1).view(np.int32)
    return np.ascontiguousarray(np.concatenate([offset.reshape(-1, 4).astype(np.int32), joined], 1)), (counts + lacking) // 4


def offsets(rows: Reach, columns: Reach, read: Layout, gathered: bool) -> np.ndarray:
    """Byte offsets (channels, KH * KW) of each tap in each input channel."""
    phases = rows.phases * columns.phases if gathered else 1
    channels = read.channels // phases
    taps = []
    for row_phase, row in rows.taps:
        for column_phase, column in columns.taps:
            phase = (row_phase - rows.first) * columns.phases + column_phase - columns.first if gathered else 0
            taps.append(phase * read.channel + (row * read.row + column) * read.lanes)
    return read.bytes * (np.arange(channels, dtype=np.int64)[:, None] * phases * read.channel + np.array(taps, np.int64))


def by_group(places: np.ndarray, weight: Tensor, groups: int) -> np.ndarray:
    """Offsets (columns,) for every output, or (O, columns) where each group reads channels of its own."""
    if groups == 1:
        return places.reshape(-1)
    parts = places.reshape(groups, -1)
    return np.repeat(parts, len(weight) // groups, axis=0)
