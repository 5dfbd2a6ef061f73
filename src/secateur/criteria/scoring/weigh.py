"""How far to follow a Scoring Net on a network it was not trained on: as far as a few batches bear it out.

Shape legend: N units of one axis, U of all axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Criterion
from secateur.core.running import call, device_of, fits, pairs, repeatable, to_device
from secateur.criteria.l1 import l1
from secateur.criteria.score import score
from secateur.criteria.scoring.task import Task
from secateur.surgery import on_batch_statistics

TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Weighed:
    """Scores between those of L1 and those of a net; `losses` by the trust they were measured at."""

    criterion: Criterion
    trust: float
    losses: Mapping[float, float]


def weighed(learned: Criterion, task: Task, share: float, *, trusts: Sequence[float] = TRUSTS, limit: int = 20) -> Weighed:
    """The order of units by (1 - t) * place by L1 + t * place by `learned`, for the t of `trusts` with the least loss.

    Places are those among all units of the network, from 0 to 1; L1 is compared across axes over its mean. The network cut to
    `share` by `task.allocate` is judged by `task.loss` on the first `limit` batches, batch norms on the statistics of the
    batch: so many passes for each t, and no training. With 0 among `trusts` the plan is at worst that of L1, as far as these
    batches tell. Compare the scores across axes as they are (``normalise="none"``).
    Raises `SecateurError` where there is no batch, no loss is a number, or one of `trusts` is not from 0 to 1.
    """
    listed = isinstance(trusts, Sequence) and all(isinstance(trust, (int, float)) and 0 <= trust <= 1 for trust in trusts)
    if not listed or not trusts:
        raise SecateurError(f"trusts={trusts!r}", "no shares of trust", "give numbers from 0 to 1")
    task = replace(task, batches=repeatable(task.batches, limit))
    by_hand = {name: values / values.mean().clamp_min(1e-30) for name, values in score(task.axes, l1(task.model)).items()}
    norms, asked = _places(by_hand), _places(score(task.axes, learned))
    found: dict[float, tuple[float, dict[str, Tensor]]] = {}
    for trust in trusts:
        mixed = {name: (1 - trust) * norms[name] + trust * asked[name] for name in norms}
        found[trust] = _loss(task, task.allocate(task.axes, mixed, share).preview(task.model), limit), mixed
    best = min(found, key=lambda trust: math.inf if math.isnan(found[trust][0]) else found[trust][0])
    if not math.isfinite(found[best][0]):
        do = "look for weights, inputs and targets that are infinite or not a number"
        raise SecateurError("weighing a Scoring Net", f"a loss of {found[best][0]} at every trust", do)
    scores = found[best][1]

    def criterion(axis: Axis) -> Tensor:
        if axis.name not in scores:
            raise SecateurError(f"a score for axis {axis.name!r}", "no such free axis", nearest(axis.name, list(scores)))
        return scores[axis.name]

    return Weighed(criterion, best, {trust: value for trust, (value, _) in found.items()})


def _places(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The place (N,) of every unit among all (U,), from 0 to 1; equal ones in the order of their index."""
    if not scores:
        return {}
    flat = torch.cat([values.double() for values in scores.values()])
    order = torch.empty_like(flat)
    order[flat.argsort(stable=True)] = torch.linspace(0, 1, len(flat), dtype=flat.dtype)
    return dict(zip(scores, order.split([len(values) for values in scores.values()]), strict=True))


def _loss(task: Task, network: nn.Module, limit: int) -> float:
    device, total, count = device_of(task.model), 0.0, 0
    on_batch_statistics(network)
    with torch.no_grad():
        for inputs, target in pairs(task.batches, limit):
            with fits(inputs, target):
                total += float(task.loss(call(network, to_device(inputs, device)), to_device(target, device)))
            count += 1
    if not count:
        raise SecateurError("weighing a Scoring Net", "no batch", "give data that can be iterated anew for every pass")
    return total / count
