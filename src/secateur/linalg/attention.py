"""How far apart the features of two networks are, whatever their widths.

Shape legend: B images of a batch, C channels, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.core.errors import SecateurError


def feature_distance(ours: Tensor, theirs: Tensor, channels: int | None = None) -> Tensor:
    """The mean squared distance of normalised maps of mean squares over channels; of outputs (B, C) the mean of 1 - cosine.

    `channels` is the dim they are in; unless it is given 1, and 2 of three dims (B, P, C) where both have as many positions.
    Raises `SecateurError` where positions differ, and where widths of (B, C) do.
    Source: Zagoruyko and Komodakis, 2017, eq. 2 (attention transfer, p = 2).
    """
    if ours.dim() < 3:
        if ours.shape != theirs.shape:
            found = f"features of shape {list(ours.shape)} where the teacher has {list(theirs.shape)}"
            raise SecateurError("feature matching", found, "name layers with positions, as convolutions have")
        return (1 - F.cosine_similarity(ours, theirs, 1)).mean()
    if channels is None:
        channels = 2 if ours.dim() == theirs.dim() == 3 and ours.shape[1] == theirs.shape[1] else 1
    one, two = (features.square().mean(channels).flatten(1) for features in (ours, theirs))
    if one.shape != two.shape:
        found = f"features of shape {list(ours.shape)} where the teacher has {list(theirs.shape)}"
        raise SecateurError("feature matching", found, "name layers with the same positions in both networks")
    return torch.sub(F.normalize(one, dim=1), F.normalize(two, dim=1)).square().sum(1).mean()
