"""Truncation through the Gram matrix of the shorter side: a small symmetric eigenproblem in place of a full SVD.

Shape legend: B matrices, M <= N their sides, R <= M singular values. Eigenvalues of M M^T are squared singular values, so
values below 1e-2 of the largest are near float32 rounding there, and `polar_of` leaves them out; a share of energy above
1e-5 is not moved by that. On accelerators nothing here asks for a number; `torch.linalg.eigh` itself waits for CUDA, once
per call, which is one more reason to call it on stacks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.linalg.energy import kept_mask


class Spectrum(NamedTuple):
    """Squared singular values, ascending (B, R), the left singular vectors of the same order in columns (B, M, R), and the
    energy outside of them (B,), None for none."""

    energies: Tensor
    vectors: Tensor
    rest: Tensor | None = None


class Truncated(NamedTuple):
    """What is kept (B, M, N), its polar factor (B, M, N) unless unwanted, and left singular vectors to start from next time."""

    kept: Tensor
    polar: Tensor | None
    basis: Tensor | None


def spectrum(matrices: Tensor) -> Spectrum:
    """The spectrum of `matrices` (B, M, N), M <= N, in float32 or wider, whatever autocast says."""
    with torch.autocast(matrices.device.type, enabled=False):
        wide = _wide(matrices)
        energies, vectors = torch.linalg.eigh(wide @ wide.mT)
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
    with torch.autocast(matrices.device.type, enabled=False):
        wide = _wide(matrices)
        found = follow(wide, basis, discarded) if basis is not None else None
        found = found or spectrum(wide)
        mask = kept_mask(found.energies, discarded, found.rest) if discarded > 0 else _above_rounding(found, wide)
        if most is not None:
            places = torch.arange(mask.shape[-1], 0, -1, device=mask.device)  # the largest is the last
            mask = mask & (places <= most[:, None])
        if shrink is not None:
            mask = mask & (found.energies > shrink[:, None].square())
        energies, vectors, mask = _trimmed(found, mask)
        inverse = _inverse_roots(energies, mask)  # B, R
        share = mask.to(energies.dtype) if shrink is None else (1 - shrink[:, None] * inverse) * mask
        whole = discarded <= 0 and most is None and shrink is None
        scales = ([] if whole else [share]) + ([inverse] if polar else [])
        made = [part.to(matrices.dtype) for part in _scaled(vectors, scales, wide)]
    kept = matrices if whole else made[0]
    return Truncated(kept, made[-1] if polar else None, vectors if matrices.device.type == "cpu" else None)


def _scaled(vectors: Tensor, scales: list[Tensor], matrices: Tensor) -> list[Tensor]:
    """U diag(s) U^T W (B, M, N) for each s (B, R) of `scales`, by whichever order of products is shorter."""
    sides, rank = vectors.shape[-2], vectors.shape[-1]
    left = [vectors * scale[:, None, :] for scale in scales]
    if rank * (len(scales) + 1) <= sides * len(scales):
        inner = vectors.mT @ matrices  # B, R, N: S V^T
        return [part @ inner for part in left]
    return [(part @ vectors.mT) @ matrices for part in left]


SMALL = 96
"""The side of a matrix below which the whole eigenproblem is as fast as a part of it."""
EXACT = 1e-3
"""The largest angle `follow` lets pass; what is kept is then wrong by that share of what is cut away, not of the weights."""


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
    gram = matrices @ matrices.mT
    basis = torch.linalg.qr(gram @ basis.flip(-1)).Q  # the largest first: what is orthogonalised last matters least
    image = gram @ basis
    energies, turn = torch.linalg.eigh(basis.mT @ image)
    energies, vectors = energies.clamp(min=0), basis @ turn
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    rest = (total - energies.sum(-1)).clamp(min=0)
    squares = gram.square().sum((-2, -1)) - energies.square().sum(-1)  # of the eigenvalues outside: none is above its root
    mask = kept_mask(energies, discarded, rest)
    residual = ((image @ turn - vectors * energies[:, None, :]).square().sum(-2) * mask).sum(-1).sqrt()
    lowest = torch.where(mask, energies, torch.inf).amin(-1)
    gap = lowest - torch.minimum(rest, squares.clamp(min=0).sqrt())
    exact = (rest <= discarded * total) & (residual <= EXACT * gap)
    return Spectrum(energies, vectors, rest) if bool(exact.all()) else None


def polar_of(found: Spectrum, matrices: Tensor) -> Tensor:
    """U V^T of `matrices` (B, M, N) over the directions that stand out of rounding."""
    with torch.autocast(matrices.device.type, enabled=False):
        scaled = found.vectors * _inverse_roots(found.energies, _above_rounding(found, matrices))[:, None, :]
        return scaled @ (found.vectors.mT @ matrices.to(found.energies.dtype))


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.dtype == torch.float64 else matrices.float()


def _above_rounding(found: Spectrum, matrices: Tensor) -> Tensor:
    return found.energies > matrices.shape[-1] * torch.finfo(found.energies.dtype).eps * found.energies[:, -1:]


def _trimmed(found: Spectrum, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energies, vectors and mask without what no matrix keeps, where looking at the mask does not wait for a device."""
    rank = max(1, int(mask.any(0).sum())) if mask.device.type == "cpu" else mask.shape[-1]
    return found.energies[:, -rank:], found.vectors[:, :, -rank:], mask[:, -rank:]


def _inverse_roots(energies: Tensor, mask: Tensor) -> Tensor:
    """1 / singular value where `mask`, else 0; matrices of zeros give zeros."""
    return torch.where(mask & (energies > 0), energies.clamp(min=torch.finfo(energies.dtype).tiny).rsqrt(), 0)
