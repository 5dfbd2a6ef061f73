"""A criterion learned on the network it scores, or on others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.core.running import repeatable
from secateur.criteria.scoring.fit import Record, fit_
from secateur.criteria.scoring.gates import Allocate
from secateur.criteria.scoring.network import ScoringNet
from secateur.criteria.scoring.settings import NetSettings, ScorerSettings
from secateur.criteria.scoring.task import Task
from secateur.criteria.scoring.weigh import weighed

MOST = 20
"""Batches that `weighed`, `Slopes` and `Flows` look at, at most."""
OnTrained = Callable[[ScoringNet, list[Record]], None]


def scoring_net(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    axes: Axes,
    allocate: Allocate,
    net: NetSettings | ScoringNet | None = None,
    settings: ScorerSettings | None = None,
    budget: str = "macs",
    share: float | None = None,
    on_trained: OnTrained | None = None,
) -> Criterion:
    """Scores by a Scoring Net: trained here through gates on the frozen weights, or one that is already trained.

    `axes` are those of a trace of `model`; `allocate(axes, scores, share)` makes the plan each step is judged by, so give
    the one that will make the final plan, as ``lambda axes, scores, share: secateur.allocate.budget(axes, scores,
    {"macs": share}, normalise="none")``, and ask it for scores with ``normalise="none"``: a Scoring Net compares axes itself.
    `net` is how a fresh net is built (from `settings.seed`), or a trained `ScoringNet`, which is asked once and not trained;
    then `allocate` is not called, unless `share` is given: the net is then followed as far as `batches` bear out at this share,
    between not at all, which is L1, and altogether (`scoring.weighed`). `budget` names the count the allocator spends.
    ``on_trained(net, records)`` is told the net that was trained here, to be saved by `secateur.io.save_scorer`, and the
    records of `fit_`. The model does not change.
    """
    settings = settings or ScorerSettings()
    if not isinstance(net, (ScoringNet, NetSettings, type(None))) or not isinstance(settings, ScorerSettings):
        found = f"net of type {type(net).__name__}, settings of type {type(settings).__name__}"
        raise SecateurError("a Scoring Net", found, "give NetSettings or a trained net, as of load_scorer, and ScorerSettings")
    batches = repeatable(batches, max(settings.limit, MOST))
    task, given = Task(model, axes, batches, loss, allocate, budget), isinstance(net, ScoringNet)
    if not isinstance(net, ScoringNet):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            fresh = ScoringNet(net)
        records = fit_(fresh, [task], settings)
        net = fresh
        if on_trained:
            on_trained(net, records)
    learned = net.on(model, axes, batches, loss)
    return weighed(learned, task, share).criterion if given and share is not None else learned
