"""Batch-norm scale, the criterion of network slimming."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion
from secateur.criteria.places import parameters, places, plain


def bn_scale(model: nn.Module, default: Criterion | None = None) -> Criterion:
    """Scores: the absolute batch-norm weight of each unit, as it is now.

    Where several batch norms share the units (a residual sum), or a unit has several entries (after flattening), the mean.
    An axis without a batch norm gets its scores from `default`, say `l2(model)`; with none it raises `SecateurError`.

    Source: Liu et al., 2017 (Network Slimming), section 3; made for networks trained with their penalty on these weights.
    """
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    weights = {name: weight for name, weight in parameters(model).items() if name in names}
    scales = {weight: [plain(weight).abs().cpu()] for weight in weights.values()}

    def score(axis: Axis) -> Tensor:
        if any(slot.tensor in weights for slot in axis.slots):
            found = places(axis, weights)
            return torch.stack([place.gather(scales).mean(-1) for place in found]).mean(0)
        if default is None:
            do = "give a default criterion for such axes, as in bn_scale(model, default=l2(model)), or ignore this axis"
            raise SecateurError(f"bn_scale of axis {axis.name!r}", "no batch norm with weights on it", do)
        return default(axis)

    return score
