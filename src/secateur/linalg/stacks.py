"""Matrices of equal sides in one stack, so that every operation on them runs once.

Shape legend: B matrices, M <= N their sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PADDING = 0.25
"""The largest share of zeros in a stack: matrices whose longer sides differ go into one where that costs no more."""


class Part(NamedTuple):
    """The `rows` of a stack that are one tensor's: transposed if it was `tall`, filled up with zeros to the right."""

    name: str
    rows: int
    tall: bool
    columns: int


class Stack(NamedTuple):
    """`matrices` (B, M, N) with M <= N; `parts` says which rows are whose."""

    matrices: Tensor
    parts: tuple[Part, ...]


def stack(matrices: Mapping[str, Tensor]) -> list[Stack]:
    """`matrices` (each B, M, N) in few stacks: of one shorter side, dtype and device; tall ones transposed.

    Columns of zeros change no singular value, and no left vector.
    """
    alike: dict[tuple[object, ...], dict[str, Tensor]] = {}
    tall = {name: value.shape[-2] > value.shape[-1] for name, value in matrices.items()}
    for name, value in matrices.items():
        wide = value.mT if tall[name] else value
        alike.setdefault((wide.shape[1], wide.dtype, wide.device), {})[name] = wide
    found = []
    for rows in alike.values():
        for group in _groups(rows):
            width = max(value.shape[-1] for value in group.values())
            parts = tuple(Part(name, len(value), tall[name], value.shape[-1]) for name, value in group.items())
            found.append(Stack(torch.cat([_padded(value, width) for value in group.values()]), parts))
    return found


def unstack(parts: tuple[Part, ...], matrices: Tensor) -> dict[str, Tensor]:
    """Name to its matrices, as they were handed to `stack`."""
    split = matrices.split([part.rows for part in parts])
    return {
        part.name: (value.mT if part.tall else value)
        for part, whole in zip(parts, split, strict=True)
        for value in (whole[..., : part.columns],)
    }


def _groups(rows: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """`rows`, widest first, cut where a narrower one would bring too many zeros; each group in the order given."""
    found: list[list[str]] = []
    numbers = zeros = width = 0
    for name in sorted(rows, key=lambda name: -rows[name].shape[-1]):
        value = rows[name]
        more = value.numel() // max(value.shape[-1], 1) * (width - value.shape[-1])
        if not found or zeros + more > PADDING * (numbers + value.numel()):
            found, numbers, zeros, width, more = [*found, []], 0, 0, value.shape[-1], 0
        found[-1].append(name)
        numbers, zeros = numbers + value.numel(), zeros + more
    return [{name: rows[name] for name in rows if name in set(names)} for names in found]


def _padded(matrices: Tensor, width: int) -> Tensor:
    short = width - matrices.shape[-1]
    return functional.pad(matrices, (0, short)) if short else matrices
