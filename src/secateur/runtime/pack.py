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
) -> Packed:
    """Pack `weight` (O, columns) with `places` (O, columns) or (columns,), the byte offset each weight reads at.

    Rows come in order of their non-zeros, so that neighbours take equally long and a loop's end is foreseen; `ordered` keeps
    their own. In blocks of several rows a column is stored where any of them has a value. Columns are cut into `parts`; all
    rows of a part come before the next part.
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
    start = np.zeros(parts * blocks + 1, np.int32)
    np.cumsum(np.bincount(part * blocks + where, minlength=parts * blocks), out=start[1:])
    offset = np.zeros(blocks * block, np.float32)
    if bias is not None:
        offset[:count] = bias[order]
    return Packed(words, start, rows.reshape(blocks, block), offset.reshape(blocks, block))


def offsets(rows: Reach, columns: Reach, read: Layout, gathered: bool) -> np.ndarray:
    """Byte offsets (channels, KH * KW) of each tap in each input channel."""
    phases = rows.phases * columns.phases if gathered else 1
    channels = read.channels // phases
    taps = []
    for row_phase, row in rows.taps:
        for column_phase, column in columns.taps:
            phase = (row_phase - rows.first) * columns.phases + column_phase - columns.first if gathered else 0
            taps.append(phase * read.channel + (row * read.row + column) * read.lanes)
    return 4 * (np.arange(channels, dtype=np.int64)[:, None] * phases * read.channel + np.array(taps, np.int64))


def by_group(places: np.ndarray, weight: Tensor, groups: int) -> np.ndarray:
    """Offsets (columns,) for every output, or (O, columns) where each group reads channels of its own."""
    if groups == 1:
        return places.reshape(-1)
    parts = places.reshape(groups, -1)
    return np.repeat(parts, len(weight) // groups, axis=0)
