"""Polar factors U V^T of stacks of matrices.

Shape legend: B matrices, M and N their sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.linalg.gram import polar_of, spectrum

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan et al., 2024 (Muon): lifts small singular values by 3.4 per step, at the price of a spread of [0.68, 1.2]."""


def polar(matrices: Tensor) -> Tensor:
    """U V^T of `matrices` (B, M, N): by eigenvectors of the Gram matrix on the CPU, by Newton-Schulz on accelerators.

    The second is products alone, which accelerators are made for; on one core the first is faster and exact.
    """
    if matrices.device.type != "cpu":
        return newton_schulz(matrices)
    tall = matrices.shape[-2] > matrices.shape[-1]
    short = matrices.mT if tall else matrices
    wide = short.double()  # float32 would lose what lies below 1e-2 of the largest singular value
    factor = polar_of(spectrum(wide), wide).to(matrices.dtype)
    return factor.mT if tall else factor


def newton_schulz(matrices: Tensor, *, quintic: int = 6, cubic: int = 5) -> Tensor:
    """U V^T of `matrices` (B, M, N) by products alone, in float32 (bfloat16 lifts the noise of a null space to 0.3).

    Muon's steps bring singular values above 1e-3 of the Frobenius norm near 1, cubic steps (1.5 X - 0.5 X X^T X) to 1;
    with the steps given the error is then below 1e-3. Directions below 1e-6 stay small. Guard: a matrix that is zero, or
    ends in numbers that are not finite or not of a polar factor's norm, gives zeros: no push is better than a wild one.
    """
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices if matrices.dtype == torch.float64 else matrices.float()
        tall = wide.shape[-2] > wide.shape[-1]
        x = wide.mT if tall else wide
        norm = torch.linalg.matrix_norm(x, keepdim=True)
        x = x / torch.where(norm > 0, norm, 1)
        a, b, c = QUINTIC
        for _ in range(quintic):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        for _ in range(cubic):
            x = 1.5 * x - 0.5 * (x @ x.mT) @ x
        most = 1.1 * x.shape[-2] ** 0.5
        size = torch.linalg.matrix_norm(x, keepdim=True)
        x = torch.where((size <= most) & size.isfinite(), x, 0)
    return (x.mT if tall else x).to(matrices.dtype)
