"""The closed forms: weights and a constant that bring a layer closest to its targets.

Shape legend: O outputs, D inputs of one output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.measure.moments import Moments

CUTOFF = 1e-12


def least_error(
    moments: Moments, weight: Tensor, *, intercept: bool, ridge: float, support: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weights (O, D) and constant (O,) with the smallest mean squared error, from those of `weight` (O, D).

    The correction ``(A + r)^-1 (B - A W')`` to `weight` is solved for, and not the weights themselves: what the data do not
    tell (inputs without variance) stays as it is. A and B are covariances of inputs with inputs and with targets, raw
    moments without `intercept`; r is `ridge` times the mean of A's diagonal. By Cholesky; a singular A by eigenvalues.
    `support` (O, D): each output has the weights that are True there, and is solved for with the others of its pattern.
    Raises `SecateurError` for a ridge that is no share.
    """
    if not is_number(ridge) or not 0 <= ridge < math.inf:
        do = "give a number from 0, the share of the mean variance that is added to each"
        raise SecateurError(f"ridge={ridge!r}", "no share", do)
    known = moments.centred() if intercept else moments
    if support is not None:
        return _masked(moments, known, weight, support, intercept=intercept, ridge=ridge)
    weight = weight + _correction(known, weight, ridge).T
    return weight, moments.y - weight @ moments.x if intercept else None


def _correction(known: Moments, weight: Tensor, ridge: float) -> Tensor:
    """What is to be added to the weights; (D, O)."""
    wrong = known.xy - known.xx @ weight.T
    regular = known.xx + ridge * known.xx.diagonal().mean() * torch.eye(len(known.xx), dtype=known.xx.dtype)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if failed:
        values, vectors = torch.linalg.eigh(regular)
        inverse = torch.where(values > CUTOFF * values.max(), 1 / values.abs().clamp_min(1e-300), 0.0)
        return (vectors * inverse) @ (vectors.T @ wrong)
    return torch.cholesky_solve(wrong, factor)


def _masked(
    moments: Moments, known: Moments, weight: Tensor, support: Tensor, *, intercept: bool, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """The solution for outputs that each have weights of their own."""
    weight = torch.where(support, weight, 0.0)
    patterns, kinds = support.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, columns = (kinds == number).nonzero().flatten(), pattern.nonzero().flatten()
        if len(columns):
            part = weight[rows][:, columns]
            weight[rows[:, None], columns] = part + _correction(restricted(known, columns, rows), part, ridge).T
    return weight, moments.y - weight @ moments.x if intercept else None


def restricted(moments: Moments, columns: Tensor, rows: Tensor) -> Moments:
    """The moments of those inputs and those outputs alone."""
    return Moments(moments.x[columns], moments.y[rows], moments.xx[columns][:, columns], moments.xy[columns][:, rows])
