"""Training by regression: scores whose sum over dropped units is the measured change of the loss.

Shape legend: M masks, U units.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.criteria.scoring.network import ScoringNet
from secateur.criteria.scoring.settings import ScorerSettings
from secateur.criteria.scoring.task import Prepared
from secateur.criteria.scoring.unroll import trained


def measured(prepared: Prepared, settings: ScorerSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Dropped units (M, U) as ones, and the change of the loss each mask makes (M,), on the same batch with and without it."""
    dropped, changes = [], []
    whole: dict[int, float] = {}
    low, high = settings.drop
    for number in range(settings.masks):
        batch = number % len(prepared.batches)
        masks = []
        for size in prepared.units.sizes:
            share = low + (high - low) * torch.rand((), generator=generator).item()
            count = min(size - 1, round(share * size))
            masks.append(torch.ones(size).index_fill(0, torch.randperm(size, generator=generator)[:count], 0))
        kept = torch.cat(masks)
        if batch not in whole:
            whole[batch] = _loss(prepared, settings, torch.ones_like(kept), batch)
        changes.append(_loss(prepared, settings, kept, batch) - whole[batch])
        dropped.append(1 - kept)
    return torch.stack(dropped), torch.tensor(changes)


def regression_loss(net: ScoringNet, prepared: Prepared, dropped: Tensor, changes: Tensor) -> Tensor:
    """Huber loss of ``sum of softplus(s) over dropped units`` against the changes, both over the changes' mean size."""
    size = changes.abs().mean().clamp_min(1e-12)
    scores = F.softplus(net(prepared.units)) * ~prepared.units.dead
    return F.huber_loss(dropped @ scores / size, changes / size)


def _loss(prepared: Prepared, settings: ScorerSettings, kept: Tensor, batch: int) -> float:
    gates = prepared.units.split(kept)
    with torch.no_grad():
        output = trained(prepared, gates, batch, settings.mode, settings.unrolled, settings.inner_lr)
        return float(prepared.task.loss(output, prepared.batches[batch][1]))
