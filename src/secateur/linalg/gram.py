"""Truncation through the Gram matrix of the shorter side: a small symmetric eigenproblem in place of a full SVD.

Shape legend: B matrices, M <= N their sides, R = M singular values. Eigenvalues of M M^T are squared singular values, so
values below 1e-2 of the largest are near float32 rounding there, and `polar_of` leaves them out; a share of energy above
1e-5 is not moved by that. Nothing here asks for a number; on CUDA `torch.linalg.eigh` itself waits for the device, once per
call, which is one more reason to call it on stacks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.linalg.energy import kept_mask


class Spectrum(NamedTuple):
    """Squared singular values, ascending (B, R), and the left singular vectors of the same order in columns (B, M, R)."""

    energies: Tensor
    vectors: Tensor


def spectrum(matrices: Tensor) -> Spectrum:
    """The spectrum of `matrices` (B, M, N), M <= N, in float32 or wider, whatever autocast says."""
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices if matrices.dtype == torch.float64 else matrices.float()
        energies, vectors = torch.linalg.eigh(wide @ wide.mT)
    return Spectrum(energies.clamp(min=0), vectors)


def truncate(matrices: Tensor, discarded: float) -> tuple[Tensor, Tensor]:
    """`matrices` (B, M, N) without the directions that hold at most `discarded` of the energy, and their polar factor.

    Xu et al., 2020 (TRP): T^z = TSVD(W; e) and U V^T on what is kept. W_k = U_k U_k^T W needs no right vectors. With
    `discarded` 0 the matrices come back as they are, and the polar factor is that of their numerical rank.
    """
    wide = matrices if matrices.dtype == torch.float64 else matrices.float()
    found = spectrum(wide)
    if discarded <= 0:
        return matrices, polar_of(found, wide).to(matrices.dtype)
    mask = kept_mask(found.energies, discarded)
    with torch.autocast(matrices.device.type, enabled=False):
        inner = (found.vectors * mask[:, None, :]).mT @ wide  # B, R, N: S_k V_k^T
        kept = found.vectors @ inner
        polar = (found.vectors * _inverse_roots(found.energies, mask)[:, None, :]) @ inner
    return kept.to(matrices.dtype), polar.to(matrices.dtype)


def polar_of(found: Spectrum, matrices: Tensor) -> Tensor:
    """U V^T of `matrices` (B, M, N) over the directions that stand out of rounding."""
    eps = torch.finfo(found.energies.dtype).eps
    mask = found.energies > matrices.shape[-1] * eps * found.energies[:, -1:]
    with torch.autocast(matrices.device.type, enabled=False):
        scaled = found.vectors * _inverse_roots(found.energies, mask)[:, None, :]
        return scaled @ (found.vectors.mT @ matrices.to(found.energies.dtype))


def _inverse_roots(energies: Tensor, mask: Tensor) -> Tensor:
    """1 / singular value where `mask`, else 0; matrices of zeros give zeros."""
    return torch.where(mask & (energies > 0), energies.clamp(min=torch.finfo(energies.dtype).tiny).rsqrt(), 0)
