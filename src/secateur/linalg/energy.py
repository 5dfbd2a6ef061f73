"""How many singular values hold a share of the energy.

Shape legend: B matrices, R singular values of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_mask(energies: Tensor, discarded: float, rest: Tensor | None = None) -> Tensor:
    """True for the squared singular values (B, R, ascending) that stay when at most `discarded` of each sum may go.

    Xu et al., 2020 (TRP), eq. 4: the smallest k with sum of the squares beyond k <= e * sum of all. `rest` (B,) is energy
    of smaller values that are not listed. A mask on the device and no number, so that nothing waits for it.
    """
    tails = energies.cumsum(-1)  # summed from the smallest, which loses nothing of the small ones
    tails = tails if rest is None else tails + rest[:, None]
    return tails > discarded * tails[..., -1:]


def energy_rank(matrices: Tensor, discarded: float) -> Tensor:
    """The rank (B,) each of `matrices` (B, M, N) needs when at most the share `discarded` of its energy may go.

    By singular values in float64 where the device has it: for deployment, where exactness counts and time does not.

    >>> energy_rank(torch.diag(torch.tensor([3.0, 1.0, 1.0]))[None], 0.1).tolist()
    [2]
    """
    wide = matrices.to(torch.float32 if matrices.device.type == "mps" else torch.float64)
    values = torch.linalg.svdvals(wide).flip(-1)
    return kept_mask(values.square(), discarded).sum(-1)
