"""Truncation of many weights in one call, in place: what `linalg.truncate` does, without a tensor operation in between.

Shape legend: M <= N the sides of a weight as a matrix, R its rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.native.library import library, missing

LONGEST = 128
"""Rows above which the whole eigenproblem is left to LAPACK, whose blocks pay there."""
FOLLOWED = (80, 256)
"""Rows of matrices whose vectors are kept for the next time: below, the whole eigenproblem takes no longer; above, LAPACK's."""


class Job(ctypes.Structure):
    """One matrix; kernels/lowrank.h says what the fields mean."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "push", "basis", "scratch", "row", "column")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "even", "followed", "kept", "longest", "most", "rank")),
        ("discarded", ctypes.c_double),
    ]


@dataclass
class Matrices:
    """A weight's matrices: where their elements lie, and the vectors the last truncation left."""

    rows: Tensor  # B, M: offsets
    columns: Tensor  # N
    even: bool
    basis: Tensor | None = None  # R at most, M
    followed: int = 0

    @property
    def kept(self) -> int:
        """The most vectors worth keeping."""
        return self.rows.shape[1] // 2


def matrices_of(weight: Tensor, unfold: Callable[[Tensor], Tensor]) -> Matrices | None:
    """How the matrices (B, M, N) that `unfold` makes lie in `weight`; None where no kernel takes them."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.numel() or weight.layout != torch.strided:
        return None
    span = 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    if span != weight.numel():  # overlaps, or has gaps
        return None
    places = unfold(torch.arange(span).as_strided(weight.shape, weight.stride()))
    places = places.mT if places.shape[-2] > places.shape[-1] else places
    rows, columns = places[:, :, 0], places[0, 0] - places[0, 0, 0]
    if rows.shape[1] > FOLLOWED[1] or not torch.equal(places, rows[:, :, None] + columns):
        return None
    even = torch.equal(columns, torch.arange(len(columns)))
    found = Matrices(rows.contiguous(), columns.contiguous(), even)
    if len(rows) == 1 and FOLLOWED[0] <= rows.shape[1]:
        found.basis = torch.empty(found.kept, rows.shape[1])
    return found


def usable() -> bool:
    """Are there kernels here?"""
    return not missing()


def truncate_all(
    weights: Mapping[str, tuple[Tensor, Tensor | None, Matrices]], discarded: float, most: Mapping[str, int], threads: int
) -> list[str]:
    """Cut every weight in place, and write U V^T of what is kept to its push (of the same strides); the names of those left.

    `weights`: name to the weight, the push or None, and how its matrices lie. `most`: the highest rank of each, where there
    is one. Left as they are: those of more than `LONGEST` rows that have no vectors to start from which are exact enough.
    """
    lib = library()
    jobs = (Job * sum(len(matrices.rows) for _, _, matrices in weights.values()))()
    owners: list[str] = []
    step = 0
    for name, (weight, push, matrices) in weights.items():
        rows, columns = matrices.rows.shape[1], len(matrices.columns)
        step = max(step, lib.secateur_scratch(rows, columns))
        for number in range(len(matrices.rows)):
            job = jobs[len(owners)]
            job.weight, job.push = weight.data_ptr(), push.data_ptr() if push is not None else None
            job.row, job.column = matrices.rows.data_ptr() + 8 * rows * number, matrices.columns.data_ptr()
            job.rows, job.columns, job.even, job.longest = rows, columns, matrices.even, LONGEST
            job.discarded, job.most = discarded, most.get(name, rows)
            if matrices.basis is not None:
                job.basis, job.followed, job.kept = matrices.basis.data_ptr(), matrices.followed, matrices.kept
            owners.append(name)
    scratch = torch.empty(threads * step + 16)
    start = -(-scratch.data_ptr() // 64) * 64
    left = lib.secateur_truncate(ctypes.addressof(jobs), len(owners), start, step, threads)
    for name, job in zip(owners, jobs, strict=True):
        weights[name][2].followed = job.followed
    return list(dict.fromkeys(name for name, job in zip(owners, jobs, strict=True) if job.rank < 0)) if left else []
