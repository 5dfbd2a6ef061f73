"""Low-rank approximations whose left-out energy is nearest to a given number, and the gradient that pushes away from them.

Chen et al., 2023 (RPG). Shape legend: B matrices, M <= N their sides, R = M singular values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.linalg.gram import spectrum


def tail_mask(energies: Tensor, tail: float) -> Tensor:
    """True for the squared singular values (B, R, ascending) that stay when the sum of the others is nearest to `tail`.

    The released code's `find_k`: the sum may end on either side of `tail`, and at least the smallest value goes.

    >>> tail_mask(torch.tensor([[0.1, 0.15, 0.75]]), 0.2).tolist()
    [[False, False, True]]
    """
    nearest = (energies.cumsum(-1) - tail).abs().argmin(-1, keepdim=True)
    return torch.arange(energies.shape[-1], device=energies.device) > nearest


def normalised(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`matrices` (B, M, N) of Frobenius norm 1, zeros left as they are, and the norms (B, 1, 1)."""
    wide = matrices if matrices.dtype == torch.float64 else matrices.float()
    norms = torch.linalg.matrix_norm(wide, keepdim=True)
    return wide / torch.where(norms > 0, norms, 1), norms


def tail_basis(unit: Tensor, tail: float) -> Tensor:
    """Left singular vectors (B, M, R) that the approximation of `unit` keeps, zeros in the place of the others."""
    found = spectrum(unit)
    return found.vectors * tail_mask(found.energies, tail)[:, None, :]


def repulsion(unit: Tensor, norms: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (B, M, N) of -||n - A||^2 by the weights w, and the distances ||n - A||^2 (B,).

    n = w / ||w|| and A = U_k U_k^T n is held constant, as in the released code. With R = n - A and e = ||R||^2 it is
    -2 (R - e n) / ||w||: +2 A / ||w|| where w is zero. Matrices of zeros give zeros.
    """
    with torch.autocast(unit.device.type, enabled=False):
        rest = unit - basis @ (basis.mT @ unit)
        distance = rest.square().sum((-2, -1), keepdim=True)
        push = (rest - distance * unit) * (-2 / torch.where(norms > 0, norms, 1))
    return push, distance.flatten()
