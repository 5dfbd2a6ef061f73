"""A unit's weights as a set of kernels, for the encoder that reads the model itself.

Shape legend: N units, M members of the set, K taps of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.criteria.places import Place, plain
from secateur.criteria.scoring.slopes import Slopes

TAPS = 9
MOST = 64


def sets_of(writers: Sequence[Place], slopes: Slopes | None) -> Tensor:
    """(N, M, 9) or, with gradients, (N, M, 18): one member per input the unit is computed from, a kernel on 3 x 3 taps.

    Other kernels are laid on 3 x 3: single taps in the middle, larger ones averaged. Weights are divided by the root mean
    square of the axis. Of more than 64 inputs of a writer each unit shows the 64 of largest norm, wherever they stand.
    """
    rows = [_members(place, plain(place.parameter)) for place in writers]
    chosen = [_largest(members) for members in rows]
    found = _even(torch.cat([_kernels(members, index) for members, index in zip(rows, chosen, strict=True)], 1))
    if slopes is None:
        return found
    told = [_kernels(_members(w, slopes.mean(w)), index) for w, index in zip(writers, chosen, strict=True)]
    return torch.cat([found, _even(torch.cat(told, 1))], 2)


def _even(values: Tensor) -> Tensor:
    """`values` with a root mean square of 1."""
    return values / values.square().mean().sqrt().clamp_min(1e-12)


def _members(place: Place, tensor: Tensor) -> Tensor:
    """All inputs of each unit of one writer (N, M, taps...)."""
    rows = tensor.float().cpu().movedim(place.dim, 0)[place.entries]  # (N, E, inputs, taps...)
    rows = (rows if rows.dim() > 2 else rows.unsqueeze(-1)).flatten(1, 2)
    return rows if rows.dim() > 2 else rows.unsqueeze(-1)


def _largest(members: Tensor) -> Tensor:
    """(N, up to 64): where the members of largest norm of each unit stand."""
    norms = members.flatten(2).square().sum(2)
    return norms.sort(dim=1, descending=True, stable=True).indices[:, :MOST]


def _kernels(members: Tensor, index: Tensor) -> Tensor:
    """Those of the members (N, M, taps...) that `index` (N, up to 64) names, as (N, up to 64, 9)."""
    rows = members[torch.arange(len(members))[:, None], index]
    units, count = rows.shape[:2]
    kernel = rows.reshape(units * count, 1, *_plane(rows.shape[2:]))
    height, width = kernel.shape[2:]
    if height > 3 or width > 3:
        kernel = F.adaptive_avg_pool2d(kernel, (min(height, 3), min(width, 3)))
        height, width = kernel.shape[2:]
    up, left = (3 - height) // 2, (3 - width) // 2
    return F.pad(kernel, (left, 3 - width - left, up, 3 - height - up)).reshape(units, count, TAPS)


def _plane(taps: tuple[int, ...]) -> tuple[int, int]:
    """Any kernel as height and width."""
    taps = tuple(taps) or (1, 1)
    return (1, taps[0]) if len(taps) == 1 else (int(torch.tensor(taps[:-1]).prod()), taps[-1])
