"""LASSO channel selection.

Shape legend: N units, A breakpoints of the path.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.protocols import Batches, Criterion
from secateur.criteria.features import otherwise, readers
from secateur.criteria.places import plain
from secateur.measure.layers import matrix
from secateur.measure.moments import Moments, contributions, paired_moments, stack


def lasso(
    model: nn.Module,
    batches: Batches,
    *,
    original: nn.Module | None = None,
    limit: int | None = None,
    sample: int | None = None,
    default: Criterion | None = None,
) -> Criterion:
    """Scores: the penalty below which each unit has a coefficient, on the exact LASSO path.

    ``min over beta of 1/2 |Y - sum_i beta_i X_i W_i|^2 + lambda |beta|_1``, means over all rows of `batches` (at most
    `limit`): X the inputs of the layers that read the axis in `model`, Y their outputs in `original`, less the bias.
    `sample`: rows of each batch that are taken, drawn at random. `original` has the layers of `model` with the same outputs;
    None is `model` itself. The units that score highest are those the path takes up first. An axis that no linear layer or
    convolution reads gets its scores from `default`; with none it raises `SecateurError`. Each axis makes its own pass, on
    the weights as they then are.

    Source: He et al., 2017 (Channel Pruning), eq. 2, step (i). The authors' code searches the penalty by bisection on a
    sample of rows; here the path is exact, on the N x N Gram matrix of all rows. Where a unit leaves the path again the
    first penalty counts. Errors of several readers add up.
    """

    def score(axis: Axis) -> Tensor:
        found = readers(model, axis)
        if not found:
            return otherwise(default, axis, "lasso", "no linear layer or convolution without groups that reads it")
        source = original or model
        moments = paired_moments(model, source, sorted({reader.name for reader in found}), batches, limit=limit, sample=sample)
        parts = []
        for reader in found:
            known = without_bias(moments[reader.name], source.get_submodule(reader.name))
            parts.append(contributions(known, plain(matrix(reader.module)), reader.blocks))
        gram, towards = stack(parts)
        penalties, path = lasso_path(gram.numpy(), towards.numpy())
        return torch.from_numpy(entered(penalties, path))

    return score


def entered(penalties: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The penalty at which each unit's coefficient leaves zero for the first time; 0 where it never does; (N,).

    Between two breakpoints a coefficient is linear in the penalty, so one that is not zero at a breakpoint left zero at the
    one before.
    """
    before = np.concatenate([penalties[:1], penalties[:-1]])
    return np.where(path != 0, before, 0.0).max(1)


def without_bias(moments: Moments, layer: nn.Module) -> Moments:
    """`moments` with the bias of `layer` taken from its outputs."""
    if not isinstance(layer.bias, Tensor):
        return moments
    bias = plain(layer.bias).double().cpu()
    return Moments(moments.x, moments.y - bias, moments.xx, moments.xy - moments.x[:, None] * bias)


def lasso_path(gram: np.ndarray, towards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Penalties (A,), falling to 0, and coefficients (N, A) that minimise ``1/2 b'Gb - b't + penalty |b|_1``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of units that are sums of others: they stay out
        penalties, _, path = lars_path_gram(towards.copy(), gram.copy(), n_samples=1, method="lasso", copy_Gram=True)
    return penalties, path


def lasso_units(gram: np.ndarray, towards: np.ndarray, most: int) -> list[int]:
    """At most `most` units: those with a coefficient at the smallest penalty of the path that leaves no more."""
    _, path = lasso_path(gram, towards)
    counts = (path != 0).sum(0)
    fits = np.flatnonzero(counts <= most)
    return np.flatnonzero(path[:, fits[-1]]).tolist()
