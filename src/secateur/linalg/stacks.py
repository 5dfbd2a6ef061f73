"""Matrices of equal sides in one stack, so that every operation on them runs once.

Shape legend: B matrices, M <= N their sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """`matrices` (B, M, N) with M <= N; `parts` says which rows are whose: (name, count, transposed)."""

    matrices: Tensor
    parts: tuple[tuple[str, int, bool], ...]


def stack(matrices: Mapping[str, Tensor]) -> list[Stack]:
    """`matrices` (each B, M, N) in as few stacks as they have pairs of sides, dtypes and devices; tall ones transposed."""
    alike: dict[tuple[object, ...], list[tuple[str, Tensor, bool]]] = {}
    for name, value in matrices.items():
        tall = value.shape[-2] > value.shape[-1]
        value = value.mT if tall else value
        alike.setdefault((value.shape[1:], value.dtype, value.device), []).append((name, value, tall))
    return [
        Stack(torch.cat([value for _, value, _ in rows]), tuple((name, len(value), tall) for name, value, tall in rows))
        for rows in alike.values()
    ]


def unstack(parts: tuple[tuple[str, int, bool], ...], matrices: Tensor) -> dict[str, Tensor]:
    """Name to its matrices, as they were handed to `stack`."""
    split = matrices.split([count for _, count, _ in parts])
    return {name: value.mT if tall else value for (name, _, tall), value in zip(parts, split, strict=True)}
