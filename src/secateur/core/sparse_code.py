"""Ascending numbers below a bound as few bytes: positions of the entries of a sparse tensor.

Elias, 1974, and Fano, 1971: the low bits of every number stand next to each other; the high bits are the places of ones in
a row of bits. Two per cent of all positions take 0.15 bits per position, where entropy asks for 0.14 and a bitmap for 1.
Where a bitmap is shorter it is one. Equal sets give equal bytes. Both directions are whole-array operations.

Shape legend: N positions, C of them in the set.
"""

from __future__ import annotations

import numpy as np


def encode(positions: np.ndarray, size: int) -> bytes:
    """`positions` (C,), ascending, each from 0 to `size` - 1, as `code_length(C, size)` bytes.

    >>> decode(encode(np.array([3, 70, 99]), 100), 3, 100).tolist()
    [3, 70, 99]
    """
    count = len(positions)
    if count in (0, size):
        return b""
    positions = np.asarray(positions, dtype=np.int64)
    low = _low_bits(count, size)
    if low is None:
        bits = np.zeros(size, dtype=bool)
        bits[positions] = True
        return np.packbits(bits, bitorder="little").tobytes()
    tails = (positions[:, None] >> np.arange(low)) & 1  # C, low
    heads = np.zeros(count + ((size - 1) >> low) + 1, dtype=bool)
    heads[(positions >> low) + np.arange(count)] = True
    both = np.concatenate([tails.astype(bool).reshape(-1), heads])
    return np.packbits(both, bitorder="little").tobytes()


def decode(code: bytes, count: int, size: int) -> np.ndarray:
    """The positions (C,) that `encode` was given.

    Raises `ValueError` for bytes that it never writes: another length, another number of positions, positions that do not
    ascend or lie outside, bits set in the padding. Memory is a few times that of `code`.
    """
    if not 0 <= count <= size or len(code) != code_length(count, size):
        raise ValueError(f"{len(code)} bytes where {count} of {size} positions take another number")
    if count in (0, size):
        return np.arange(count, dtype=np.int64)
    low = _low_bits(count, size)
    bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8), bitorder="little")
    used = size if low is None else count * low + count + ((size - 1) >> low) + 1
    if bits[used:].any():
        raise ValueError("bits set behind the last position")
    tails = 0 if low is None else count * low
    places = np.flatnonzero(bits[tails:used])
    if len(places) != count:
        raise ValueError(f"{len(places)} positions where there should be {count}")
    if low is None:
        return places
    weights = np.left_shift(np.int64(1), np.arange(low, dtype=np.int64))
    found = ((places - np.arange(count)) << low) + bits[:tails].reshape(count, low) @ weights
    if (np.diff(found) <= 0).any() or found[-1] >= size:
        raise ValueError("positions that do not ascend or lie outside")
    return found


def code_length(count: int, size: int) -> int:
    """Bytes that `count` of `size` positions take; it depends on nothing else."""
    if count in (0, size):
        return 0
    low = _low_bits(count, size)
    return (size + 7) // 8 if low is None else (count * low + count + ((size - 1) >> low) + 8) // 8


def _low_bits(count: int, size: int) -> int | None:
    """Bits of each position that are written out, the best number of them; None where a bitmap is no longer."""
    ideal = max((size // count).bit_length() - 1, 0)
    cost, low = min((count * (low + 1) + ((size - 1) >> low) + 1, low) for low in (ideal, ideal + 1, max(ideal - 1, 0)))
    return low if cost < size else None
