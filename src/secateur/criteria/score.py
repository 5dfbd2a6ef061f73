"""Scores of a whole model."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion


def score(axes: Axes, criterion: Criterion) -> dict[str, Tensor]:
    """Axis name to one score per unit (N,), on the CPU, for every axis that can be cut.

    Raises `SecateurError` where the criterion returns another number of scores, or one that is infinite or not a number.
    """
    return {axis.name: _checked(axis.name, axis.units, criterion(axis)) for axis in axes.free}


def _checked(name: str, units: int, scores: Tensor) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu()
    if scores.shape != (units,):
        found = f"a tensor of shape {list(scores.shape)}"
        raise SecateurError(f"scores for axis {name!r}", found, f"return one score for each of its {units} units")
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        found = f"{scores[bad[0]].item()} for unit {bad[0]}"
        raise SecateurError(f"scores for axis {name!r}", found, "look for weights or losses that are infinite or not a number")
    return scores
