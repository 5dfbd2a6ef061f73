"""Weights as the kernels read them: row by row, the places of the non-zeros and their values.

O outputs, I inputs per group, KH x KW kernel; B blocks of R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from secateur.runtime.layout import Layout, Reach


@dataclass(frozen=True)
class Packed:
    """`words` int32 (entries, 1 + R): byte offset, R values as bits; `start` int32 (parts * B + 1,).

    Of bf16 an entry is a pair, (entries, 2 + R): two byte offsets, and for each row two values, the first in the low half.
    `rows` int32 (B, R), -1 for none; `bias` float32 (B, R).
    """

    words: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    bias: np.ndarray

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
    halves: bool = False,
) -> Packed:
    """Pack `weight` (O, columns) with `places` (O, columns) or (columns,), the byte offset each weight reads at.

    Rows come in order of their non-zeros, so that neighbours take equally long and a loop's end is foreseen; `ordered` keeps
    their own. In blocks of several rows a column is stored where any of them has a value. Columns are cut into `parts`; all
    rows of a part come before the next part. `halves`: in bf16, by pairs.
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
    if halves:
        words, counts = _paired(words, counts)
    start = np.zeros(parts * blocks + 1, np.int32)
    np.cumsum(counts, out=start[1:])
    offset = np.zeros(blocks * block, np.float32)
    if bias is not None:
        offset[:count] = bias[order]
    return Packed(words, start, rows.reshape(blocks, block), offset.reshape(blocks, block))


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
