"""Low rank where the inputs are, and not where the weights are: weights seen through the covariance of what they read.

Shape legend: O out, I in, H x W kernel, D = I * H * W inputs of one output (channel-major), R values, L rows of an unfolding.
Everything is in float64: covariances have condition numbers that float32 does not hold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-9
"""Of the mean variance, added to every variance: directions without data keep a little weight, and roots an inverse."""


class Whitened(NamedTuple):
    """Energies of the responses, falling (R,), and the first layer's rows of the same order (R, L)."""

    energies: Tensor
    rows: Tensor


def responses(weight: Tensor, covariance: Tensor) -> Whitened:
    """Principal components of the responses of `weight` (O, D) to inputs of `covariance` (D, D).

    Zhang et al., 2016, eq. 4 to 7: the rank-r map nearest to y = W x in the mean is U_r U_r^T W, U_r the first eigenvectors
    of cov(y) = W C W^T. Rows are U^T W (O, D); the second layer is U, which `least_squares` finds again from the rows.
    """
    energies, vectors = torch.linalg.eigh(weight @ covariance @ weight.T)
    return Whitened(energies.flip(-1).clamp(min=0), vectors.flip(-1).T @ weight)


def through(matrix: Tensor, covariance: Tensor) -> Whitened:
    """The rows U^T C^-1/2 (R, L) of the best low-rank map y = M^T p of inputs p (L,) of `covariance` (L, L), M (L, N).

    With C^1/2 M = U S V^T, M^T ~ V_r S_r U_r^T C^-1/2 has the least mean squared error of its rank (Eckart and Young, 1936,
    on the whitened inputs). Energies are S^2.
    """
    root, inverse = roots(covariance)
    vectors, values, _ = torch.linalg.svd(root @ matrix, full_matrices=False)
    return Whitened(values.square(), vectors.T @ inverse)


def roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """C^1/2 and C^-1/2 of a symmetric positive C (L, L), its variances lifted by `RIDGE`."""
    energies, vectors = torch.linalg.eigh(covariance)
    lifted = energies.clamp(min=0) + RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(energies.dtype).tiny)
    return (vectors * lifted.sqrt()) @ vectors.T, (vectors * lifted.rsqrt()) @ vectors.T


def least_squares(weight: Tensor, features: Tensor, covariance: Tensor) -> Tensor:
    """The map (O, R) from `features` (R, D) of the inputs that is nearest to `weight` (O, D) in the mean over the inputs."""
    crossed = features @ covariance  # R, D
    gram = crossed @ features.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.lstsq(gram, crossed @ weight.T, driver="gelsd").solution.T


def patch_covariance(covariance: Tensor, kernel: tuple[int, int], keep: str) -> Tensor:
    """The mean covariance of what one tap of the kernel reads: (I * H)^2 of its columns for "column", I^2 for "point"."""
    height, width = kernel
    inputs = covariance.shape[0] // (height * width)
    split = covariance.reshape(inputs, height, width, inputs, height, width)
    if keep == "column":
        return torch.einsum("aijbkj->aibk", split).reshape(inputs * height, -1) / width
    return torch.einsum("aijbij->ab", split) / (height * width)
