"""Truncation through the Gram matrix of the shorter side: a small symmetric eigenproblem in place of a full SVD.

Shape legend: B matrices, M <= N their sides, R <= M singular values. Eigenvalues of M M^T are squared singular values, so
values below 1e-2 of the largest are near float32 rounding there, and `polar_of` leaves them out; a share of energy above
1e-5 is not moved by that. On accelerators nothing here asks for a number; `torch.linalg.eigh` itself waits for CUDA, once
per call, which is one more reason to call it on stacks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, bmm

from secateur.linalg.energy import kept_mask


class Spectrum(NamedTuple):
    """Squared singular values, ascending (B, R), and the left singular vectors of the same order in columns (B, M, R).

    Where they are a part of all, the energy outside of them (B,) and U^T W (B, R, N), which finding them has left behind.
    """

    energies: Tensor
    vectors: Tensor
    rest: Tensor | None = None
    inner: Tensor | None = None


class Truncated(NamedTuple):
    """What is kept (B, M, N), its polar factor (B, M, N) unless unwanted, and left singular vectors to start from next time."""

    kept: Tensor
    polar: Tensor | None
    basis: Tensor | None


def spectrum(matrices: Tensor) -> Spectrum:
    """The spectrum of `matrices` (B, M, N), M <= N, in float32 or wider, whatever autocast says."""
    with _exactly(matrices):
        wide = _wide(matrices)
        energies, vectors = torch.linalg.eigh(bmm(wide, wide.mT))
    return Spectrum(energies.clamp(min=0), vectors)


def truncate(
    matrices: Tensor,
    discarded: float,
    *,
    most: Tensor | None = None,
    shrink: Tensor | None = None,
    polar: bool = True,
    basis: Tensor | None = None,
) -> Truncated:
    """`matrices` (B, M, N) without the directions that hold at most `discarded` of the energy, and their polar factor.

    Xu et al., 2020 (TRP): T^z = TSVD(W; e) and U V^T on what is kept. W_k = U_k U_k^T W needs no right vectors. With
    `discarded` 0, and neither of the next two, matrices come back as they are, the polar factor that of their numerical rank.
    `most` (B,) is the highest rank of each; `shrink` (B,) is taken from every singular value, those below it going:
    the proximal operator of that multiple of the nuclear norm (Cai et al., 2010). `basis` are the vectors of an earlier
    truncation of nearly the same matrices, from which `follow` starts where that is exact enough (on the CPU).
    """
    with _exactly(matrices):
        wide = _wide(matrices)
        found = follow(wide, basis, discarded) if basis is not None else None
        found = found or spectrum(wide)
        mask = _chosen(found, wide, discarded, most, shrink)
        whole = discarded <= 0 and most is None and shrink is None
        rank, gone = _counts(mask)
        removed = _removed(found, mask, gone) if not whole and shrink is None else None
        found, mask = _trimmed(found, mask, rank)
        inverse = torch.where(mask, found.energies, torch.inf).rsqrt()
        share = mask.to(inverse.dtype) if shrink is None else (1 - shrink[:, None] * inverse) * mask
        scales = ([] if whole or removed is not None else [share]) + ([inverse] if polar else [])
        made = [part.to(matrices.dtype) for part in _scaled(found, scales, wide)]
        if removed is not None:
            made.insert(0, torch.baddbmm(wide, removed, bmm(removed.mT, wide), alpha=-1).to(matrices.dtype))
    basis = found.vectors * mask[:, None, :] if matrices.device.type == "cpu" else None
    return Truncated(matrices if whole else made[0], made[-1] if polar else None, basis)


def _chosen(found: Spectrum, matrices: Tensor, discarded: float, most: Tensor | None, shrink: Tensor | None) -> Tensor:
    """True for the values (B, R) that stay."""
    mask = kept_mask(found.energies, discarded, found.rest) if discarded > 0 else _above_rounding(found, matrices)
    if most is not None:
        places = torch.arange(mask.shape[-1], 0, -1, device=mask.device)  # the largest is the last
        mask = mask & (places <= most[:, None])
    return mask if shrink is None else mask & (found.energies > shrink[:, None].square())


def _scaled(found: Spectrum, scales: list[Tensor], matrices: Tensor) -> list[Tensor]:
    """U diag(s) U^T W (B, M, N) for each s (B, R) of `scales`, by whichever order of products is shorter."""
    vectors, inner = found.vectors, found.inner
    sides, rank = vectors.shape[-2:]
    if not scales:
        return []
    left = torch.cat([vectors * scale[:, None, :] for scale in scales], 1)  # one product reads what it multiplies once
    if inner is None and rank * (len(scales) + 1) > sides * len(scales):
        made = bmm(bmm(left, vectors.mT), matrices)
    else:
        made = bmm(left, bmm(vectors.mT, matrices) if inner is None else inner)  # B, R, N: S V^T
    return list(made.split(sides, 1))


FEW = 2.5
"""Of how many vectors one may go so that taking away those that go is shorter than putting together those that stay."""
SMALL = 48
"""The side of a matrix below which the whole eigenproblem is as fast as a part of it."""
EXACT = 1e-3
"""The largest angle `follow` lets pass; what is kept is then wrong by that share of what is cut away, not of the weights."""
UPRIGHT = 0.5
"""What of each turned vector must be new beside those before it, or a Cholesky factor does not make them orthogonal."""


def follow(matrices: Tensor, basis: Tensor, discarded: float) -> Spectrum | None:
    """The spectrum of `matrices` (B, M, N) within the span of a power iteration from `basis` (B, M, R), or None.

    Between two truncations a rank does not grow while steps are short (Xu et al., 2020, theorem 2), so the directions kept
    last time, turned once by the Gram matrix, hold those of this time. None where that cannot be seen: more than the share
    `discarded` of the energy lies outside, or those to keep may be off by an angle above `EXACT`. The angle is
    the norm of their residual over the gap to the largest eigenvalue outside (Davis and Kahan, 1970); to directions inside
    that are dropped the residual has no part. To see it is to read numbers, which costs nothing on the CPU alone.
    """
    rank = basis.shape[-1]
    if matrices.device.type != "cpu" or discarded <= 0 or matrices.shape[-2] < SMALL or 2 * rank > matrices.shape[-2]:
        return None  # small eigenproblems, and those of high rank, take no longer
    span = _orthonormal(bmm(matrices, bmm(matrices.mT, basis.to(matrices.dtype))))
    if span is None:
        return None
    inner = bmm(span.mT, matrices)
    energies, turn = torch.linalg.eigh(bmm(inner, inner.mT))
    vectors, inner = bmm(span, turn), bmm(turn.mT, inner)
    total = matrices.square().sum((-2, -1))
    found = Spectrum(energies.clamp(min=0), vectors, (total - energies.sum(-1)).clamp(min=0), inner)
    return found if _is_exact(found, matrices, discarded, total) else None


def _is_exact(found: Spectrum, matrices: Tensor, discarded: float, total: Tensor) -> bool:
    """Do the vectors of `found` hold all that is to be kept of `matrices`, of energies `total` (B,), by an angle of `EXACT`?"""
    energies, vectors, rest, inner = found
    assert rest is not None
    assert inner is not None
    if not bool((rest <= discarded * total).all()):
        return False
    mask = kept_mask(energies, discarded, rest)
    residual = torch.baddbmm(vectors * energies[:, None, :], matrices, inner.mT, beta=-1)
    size = (residual.square().sum(-2) * mask).sum(-1).sqrt()
    lowest = torch.where(mask, energies, torch.inf).amin(-1)
    if bool((size <= EXACT * (lowest - rest)).all()):  # no eigenvalue outside is above their sum
        return True
    squares = bmm(matrices, matrices.mT).square().sum((-2, -1)) - energies.square().sum(-1)  # nor above the root of this
    return bool((size <= EXACT * (lowest - squares.clamp(min=0).sqrt())).all())


def _orthonormal(turned: Tensor) -> Tensor | None:
    """The columns (B, M, R) of `turned` made orthonormal by a Cholesky factor, None where they lean on each other.

    Columns that are nearly orthogonal, as eigenvectors turned by their own matrix are, lose nothing by it. Those that are
    zero stay so.
    """
    columns = turned / torch.linalg.vector_norm(turned, dim=-2, keepdim=True).clamp(min=torch.finfo(turned.dtype).tiny)
    gram = bmm(columns.mT, columns)
    sizes = gram.diagonal(dim1=-2, dim2=-1)
    sizes += sizes == 0  # a column of zeros stays one
    factor, wrong = torch.linalg.cholesky_ex(gram)
    if bool(wrong.any()) or float(factor.diagonal(dim1=-2, dim2=-1).min()) < UPRIGHT:
        return None
    return torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)


def polar_of(found: Spectrum, matrices: Tensor) -> Tensor:
    """U V^T of `matrices` (B, M, N) over the directions that stand out of rounding."""
    with _exactly(matrices):
        scaled = found.vectors * _inverse_roots(found.energies, _above_rounding(found, matrices))[:, None, :]
        return bmm(scaled, bmm(found.vectors.mT, matrices.to(found.energies.dtype)))


def _exactly(matrices: Tensor) -> AbstractContextManager[object]:
    """In the dtype that is asked for, whatever autocast says."""
    kind = matrices.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.dtype == torch.float64 else matrices.float()


def _above_rounding(found: Spectrum, matrices: Tensor) -> Tensor:
    return found.energies > matrices.shape[-1] * torch.finfo(found.energies.dtype).eps * found.energies[:, -1:]


def _counts(mask: Tensor) -> tuple[int, int | None]:
    """The most values any matrix keeps, and the most that any loses: all and unknown where looking waits for a device."""
    if mask.device.type != "cpu":
        return mask.shape[-1], None
    least, most = torch.stack(mask.sum(-1).aminmax()).tolist()
    return max(1, most), mask.shape[-1] - least


def _removed(found: Spectrum, mask: Tensor, gone: int | None) -> Tensor | None:
    """The vectors that go (B, M, D), others 0, where they are few, and known: taking them away is shorter."""
    if found.rest is not None or gone is None or FEW * gone > mask.shape[-1]:
        return None
    return found.vectors[:, :, :gone] * ~mask[:, None, :gone]


def _trimmed(found: Spectrum, mask: Tensor, rank: int) -> tuple[Spectrum, Tensor]:
    """Both for the last `rank` values alone."""
    inner = None if found.inner is None else found.inner[:, -rank:]
    return Spectrum(found.energies[:, -rank:], found.vectors[:, :, -rank:], found.rest, inner), mask[:, -rank:]


def _inverse_roots(energies: Tensor, mask: Tensor) -> Tensor:
    """1 / singular value where `mask`, else 0; matrices of zeros give zeros."""
    return torch.where(mask & (energies > 0), energies.clamp(min=torch.finfo(energies.dtype).tiny).rsqrt(), 0)
