"""The Scoring Net on the embedded digits, in minutes: better than norms before fine-tuning, at home and on another network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import allocate, criteria, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import ScorerSettings, ScoringNet, Task, fit_
from secateur.data import BatchSettings, digits, loaders
from secateur.recipes import zoo
from secateur.train import FitSettings, evaluate, fit

SHARE = 0.3
X = torch.zeros(1, 1, 8, 8)

pytestmark = pytest.mark.slow


def ranked(axes: Axes, scores: Any, share: float, normalise: Any = "none") -> Plan:
    return allocate.budget(axes, scores, {"macs": share}, normalise=normalise, floor=0.05)


def after_cut(model: nn.Module, plan: Plan, data: Any) -> float:
    """Test accuracy with batch norms re-estimated and no training."""
    small = plan.apply(model)
    repair.batchnorm(model, small, data.train.plain())
    return evaluate(small, data.test)["accuracy"]


def test_a_trained_net_beats_norms_before_fine_tuning() -> None:
    data = loaders(digits(), BatchSettings(batch=64, holdout=0, seed=0))
    torch.manual_seed(0)
    model = zoo.digits_resnet(1, (16, 32, 64))
    fit(model, data.train, FitSettings(epochs=6, lr=0.1))
    axes = trace(model.eval(), X)
    torch.manual_seed(0)
    net = ScoringNet()
    fit_(net, [Task(model, axes, data.train.plain(), F.cross_entropy, ranked)], ScorerSettings(keeps=(SHARE,)))
    learned = after_cut(model, ranked(axes, score(axes, net.criterion(model, axes)), SHARE), data)
    for rival in (criteria.l1(model), criteria.fpgm(model), criteria.random(model)):
        plan = ranked(axes, score(axes, rival), SHARE, "mean")
        assert learned > after_cut(model, plan, data) + 0.05
