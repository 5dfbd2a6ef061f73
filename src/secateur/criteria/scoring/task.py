"""What a Scoring Net is trained on: networks with their data, an allocator, and what the full network answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, evaluating, pairs, to_device
from secateur.criteria.scoring.gates import Allocate, budget_of
from secateur.criteria.scoring.settings import NetSettings, Objective
from secateur.criteria.scoring.slopes import Slopes
from secateur.criteria.scoring.units import Units, units_of
from secateur.surgery import Gated, on_batch_statistics


@dataclass(frozen=True, eq=False)
class Task:
    """One network to learn on: its axes, training batches, loss, and the allocator that turns scores into plans.

    `budget` names the count the allocator spends, for slopes and for the penalty.
    """

    model: nn.Module
    axes: Axes
    batches: Batches
    loss: Loss
    allocate: Allocate
    budget: str = "macs"


@dataclass(eq=False)
class Prepared:
    """A task made ready: batches in memory, the full network's answers, the rows the net reads. `forwards` counts passes of
    the network over a batch."""

    task: Task
    units: Units
    gated: Gated
    batches: list[tuple[Any, Any, Any]]
    count: Callable[[Tensor], Tensor] | None
    forwards: int = field(default=0)

    def output(self, gates: Any, inputs: Any, weights: Any = None) -> Any:
        """The gated network's output, counted."""
        self.forwards += 1
        return self.gated(gates, inputs, weights)


def prepare(task: Task, net: NetSettings, limit: int) -> Prepared:
    """`task` made ready. Raises `SecateurError` where there is no batch or nothing to cut."""
    if not task.axes.free:
        raise SecateurError("training a Scoring Net", "no axis that can be cut", "give a network of which something can go")
    device, held = device_of(task.model), []
    with evaluating(task.model), torch.no_grad():
        for inputs, target in pairs(task.batches, limit):
            inputs, target = to_device(inputs, device), to_device(target, device)
            held.append((inputs, target, call(task.model, inputs)))
    if not held:
        raise SecateurError("training a Scoring Net", "no batch", "give data that can be iterated anew for every pass")
    slopes = Slopes(task.model, task.batches, task.loss) if net.gradients else None
    gated = Gated(task.axes.free, task.model)
    on_batch_statistics(gated.model)
    units = units_of(task.model, task.axes, net, slopes)
    return Prepared(task, units, gated, held, budget_of(task.axes, task.budget), len(held) * (3 if net.gradients else 1))


def objective(prepared: Prepared, how: Objective, output: Any, target: Any, answer: Any, excess: Tensor | float) -> Tensor:
    """The loss of one batch: the task's, distillation from the full network's `answer`, and the budget's excess."""
    total = torch.as_tensor(excess) * how.budget
    if how.task:
        total = total + how.task * prepared.task.loss(output, target)
    if how.kl:
        total = total + how.kl * divergence(output, answer, how.temperature)
    if how.logits:
        total = total + how.logits * squares(output, answer)
    return total


def divergence(output: Any, answer: Any, temperature: float) -> Tensor:
    """T^2 KL(full || gated) over dimension 1 of logits (Hinton et al., 2015); of other outputs the relative squares."""
    if not (isinstance(output, Tensor) and output.dim() >= 2 and output.shape[1] > 1):
        return squares(output, answer)
    ours, theirs = (F.log_softmax(value.float() / temperature, 1).movedim(1, -1).flatten(0, -2) for value in (output, answer))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def squares(output: Any, answer: Any) -> Tensor:
    """Mean squared difference of all tensors of real numbers, over the mean square of the full network's."""
    pairs = [(a, b) for a, b in zip(_flat(output), _flat(answer), strict=True) if a.is_floating_point()]
    gaps = [(a.float() - b.float()).square().mean() / b.float().square().mean().clamp_min(1e-12) for a, b in pairs]
    return torch.stack(gaps).mean()


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = list(value.values()) if hasattr(value, "values") else list(value) if isinstance(value, (list, tuple)) else []
    return [tensor for part in parts for tensor in _flat(part)]
