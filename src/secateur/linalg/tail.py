"""Low-rank approximations whose left-out energy is nearest to a given number, and the gradient that pushes away from them.

Chen et al., 2023 (RPG). Shape legend: B matrices, M <= N their sides, R = M singular values.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Subspace(NamedTuple):
    """Left singular vectors (B, M, D), zeros in the place of others: of what an approximation leaves `outside`, or of it."""

    vectors: Tensor
    outside: bool


def tail_space(unit: Tensor, tail: float) -> Subspace:
    """The side of the approximations of `unit` (B, M, N) of fewer vectors; on accelerators, which would wait, the kept."""
    found = spectrum(unit)
    kept = tail_mask(found.energies, tail)
    if kept.device.type != "cpu":
        return Subspace(found.vectors * kept[:, None, :], False)
    least, most = torch.stack(kept.sum(-1).aminmax()).tolist()
    gone = kept.shape[-1] - least
    if gone < most:
        return Subspace(found.vectors[:, :, :gone] * ~kept[:, None, :gone], True)
    return Subspace(found.vectors[:, :, kept.shape[-1] - most :] * kept[:, None, kept.shape[-1] - most :], False)


def repulsion(unit: Tensor, norms: Tensor, space: Subspace) -> tuple[Tensor, Tensor]:
    """Gradient (B, M, N) of -||n - A||^2 by the weights w, and the distances ||n - A||^2 (B,).

    n = w / ||w|| and A = U_k U_k^T n is held constant, as in the released code. With R = n - A and e = ||R||^2 it is
    -2 (R - e n) / ||w||: +2 A / ||w|| where w is zero. Matrices of zeros give zeros.
    """
    with torch.autocast(unit.device.type, enabled=False):
        inside = space.vectors @ (space.vectors.mT @ unit)
        rest = inside if space.outside else unit - inside
        distance = rest.square().sum((-2, -1), keepdim=True)
        push = (rest - distance * unit) * (-2 / torch.where(norms > 0, norms, 1))
    return push, distance.flatten()
