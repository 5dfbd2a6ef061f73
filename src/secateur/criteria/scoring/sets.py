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
    square of the axis. Of more than 64 inputs of a writer 64 are read, evenly spaced and the same for all units.
    """
    parts = [_kernels(place, plain(place.parameter)) for place in writers]
    found = _even(torch.cat(parts, 1))
    if slopes is not None:
        found = torch.cat([found, _even(torch.cat([_kernels(place, slopes.mean(place)) for place in writers], 1))], 2)
    return found


def _even(values: Tensor) -> Tensor:
    """`values` with a root mean square of 1."""
    return values / values.square().mean().sqrt().clamp_min(1e-12)


def _kernels(place: Place, tensor: Tensor) -> Tensor:
    """(N, M, 9) of one writer."""
    rows = tensor.float().cpu().movedim(place.dim, 0)[place.entries]  # (N, E, inputs, taps...)
    if rows.dim() < 3:
        rows = rows.unsqueeze(-1)
    rows = rows.flatten(1, 2)  # (N, M, taps...)
    if rows.shape[1] > MOST:
        rows = rows[:, torch.linspace(0, rows.shape[1] - 1, MOST).round().long()]
    units, members = rows.shape[:2]
    kernel = rows.reshape(units * members, 1, *_plane(rows.shape[2:]))
    height, width = kernel.shape[2:]
    if height > 3 or width > 3:
        kernel = F.adaptive_avg_pool2d(kernel, (min(height, 3), min(width, 3)))
        height, width = kernel.shape[2:]
    up, left = (3 - height) // 2, (3 - width) // 2
    return F.pad(kernel, (left, 3 - width - left, up, 3 - height - up)).reshape(units, members, TAPS)


def _plane(taps: tuple[int, ...]) -> tuple[int, int]:
    """Any kernel as height and width."""
    taps = tuple(taps) or (1, 1)
    return (1, taps[0]) if len(taps) == 1 else (int(torch.tensor(taps[:-1]).prod()), taps[-1])
