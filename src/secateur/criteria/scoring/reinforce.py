"""Training by policy gradient: gates are drawn, and those that did well become likelier. For comparison only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.criteria.scoring.gates import excess_of
from secateur.criteria.scoring.network import ScoringNet
from secateur.criteria.scoring.settings import Objective, ScorerSettings
from secateur.criteria.scoring.task import Prepared, objective
from secateur.criteria.scoring.unroll import trained


@dataclass
class Baseline:
    """A moving average of the reward."""

    value: float | None = None

    def advantage(self, reward: float) -> float:
        """How much better than usual, before this one counts."""
        before = reward if self.value is None else self.value
        self.value = 0.9 * before + 0.1 * reward
        return reward - before


def reinforce_loss(
    net: ScoringNet,
    prepared: Prepared,
    batch: int,
    share: float,
    how: Objective,
    settings: ScorerSettings,
    baseline: Baseline,
) -> Tensor:
    """- advantage * log-likelihood of gates drawn from Bernoulli(sigma(s)); the reward is - loss - budget's excess.

    Williams, 1992, with a moving average as baseline. At least one unit of every axis stays.
    """
    raw = net(prepared.units)
    with torch.no_grad():
        drawn = torch.bernoulli(torch.sigmoid(raw))
        for name_raw, part in zip(raw.split(list(prepared.units.sizes)), drawn.split(list(prepared.units.sizes)), strict=True):
            if not part.any():
                part[name_raw.argmax()] = 1
        gates = prepared.units.split(drawn)
        output = trained(prepared, gates, batch, settings.mode, settings.unrolled, settings.inner_lr)
        excess = excess_of(prepared.task.axes, prepared.units, drawn, prepared.count, share)
        _, target, answer = prepared.batches[batch]
        features = prepared.features(how, gates, batch)
        reward = -float(objective(prepared, how, output, target, answer, excess, features))
    return baseline.advantage(reward) * F.binary_cross_entropy_with_logits(raw, drawn)
