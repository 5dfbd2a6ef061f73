"""What a Scoring Net is trained on: networks with their data, an allocator, and what the full network answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, evaluating, fits, flat, pairs, repeatable, to_device
from secateur.criteria.places import parameters
from secateur.criteria.scoring.flows import Flows
from secateur.criteria.scoring.gates import Allocate, budget_of
from secateur.criteria.scoring.matching import Matching, watching
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
    matching: Matching | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)

    def output(self, gates: Any, inputs: Any, weights: Any = None) -> Any:
        """The gated network's output, counted; `held` is then what the layers of `matching` put out.

        Raises `SecateurError` where gradients are asked for and no tensor of it has any.
        """
        self.forwards += 1
        with watching(self.gated.model, self.matching.layers if self.matching else ()) as self.held, fits(inputs):
            found = self.gated(gates, inputs, weights)
        moving = any(value.requires_grad for value in [*gates.values(), *(weights or {}).values()])
        if torch.is_grad_enabled() and moving and not _has_slope(found):
            do = "give a network that neither detaches what it returns nor returns whole numbers alone"
            raise SecateurError("training a Scoring Net", "outputs without gradients", do)
        return found

    def features(self, how: Objective, gates: Mapping[str, Tensor], batch: int) -> Tensor | float:
        """The distance of features at the last output, which was on batch number `batch`; 0 where `how` has no weight on it."""
        return self.matching.distance(self.held, gates, batch, how.layers) if self.matching and how.features else 0.0


def prepare(task: Task, net: NetSettings, limit: int, mode: str = "post", layers: Sequence[str] = ()) -> Prepared:
    """`task` made ready; in mode "init" the full network answers with the statistics of the batch. `layers` are to be matched.

    Batches that come but once are held. Raises `SecateurError` where there is no batch, or one that the network does not take,
    where nothing can be cut, and where weights that can are no numbers.
    """
    if not task.axes.free:
        raise SecateurError("training a Scoring Net", "no axis that can be cut", "give a network of which something can go")
    weights = parameters(task.model)
    for name in dict.fromkeys(slot.tensor for axis in task.axes.free for slot in axis.slots if slot.tensor in weights):
        if not bool(weights[name].isfinite().all()):
            raise SecateurError(
                "training a Scoring Net", f"{name!r} with numbers that are not finite", "mend the network first"
            )
    batches = repeatable(task.batches, max(limit, 20))
    task, device, held = replace(task, batches=batches, loss=_checked(task.loss)), device_of(task.model), []
    gated = Gated(task.axes.free, task.model)
    on_batch_statistics(gated.model)
    full = gated.model if mode == "init" else task.model
    matching: Matching | None = None
    with evaluating(task.model), torch.no_grad():
        for inputs, target in pairs(task.batches, limit):
            inputs, target = to_device(inputs, device), to_device(target, device)
            if layers and matching is None:
                matching = Matching(task.model, task.axes, layers, inputs)
            with watching(full, layers) as features, fits(inputs):
                held.append((inputs, target, gated({}, inputs) if mode == "init" else call(task.model, inputs)))
            if matching:
                matching.full.append(dict(features))
    if not held:
        raise SecateurError("training a Scoring Net", "no batch", "give data that can be iterated anew for every pass")
    slopes = Slopes(task.model, task.batches, task.loss) if net.gradients else None
    flows = Flows(task.model, task.axes, task.batches) if net.prior == "flows" else None
    units = units_of(task.model, task.axes, net, slopes, flows)
    passes = len(held) + (slopes.batches if slopes else 0) + sum(part.passes for part in (flows, matching) if part)
    return Prepared(task, units, gated, held, budget_of(task.axes, task.budget), passes, matching)


def _checked(loss: Loss) -> Loss:
    """`loss`, where a target that does not go with an output becomes one sentence, as does what is not one number."""
    asked, do = "training a Scoring Net", "give a loss(output, target) that returns one number"

    def checked(output: Any, target: Any) -> Tensor:
        with fits(output, target, "a loss on outputs"):
            value = loss(output, target)
        if not isinstance(value, (Tensor, float, int)):
            raise SecateurError(asked, f"a loss of type {type(value).__name__}", do)
        value = torch.as_tensor(value)
        if value.dim():
            raise SecateurError(asked, f"a loss of shape {list(value.shape)}", do)
        if torch.is_grad_enabled() and _has_slope(output) and not value.requires_grad:
            raise SecateurError(asked, "a loss that does not depend on the output", f"{do}, with its gradient")
        return value

    return checked


def _has_slope(output: Any) -> bool:
    """Do gradients flow through a tensor of `output`, or is there none to tell by?"""
    tensors = [value for value in flat(output) if isinstance(value, Tensor)]
    return not tensors or any(tensor.requires_grad for tensor in tensors)


def objective(
    prepared: Prepared,
    how: Objective,
    output: Any,
    target: Any,
    answer: Any,
    excess: Tensor | float,
    features: Tensor | float = 0.0,
) -> Tensor:
    """The loss of one batch: the task's, distillation from the full network's `answer`, the budget's excess, and the distance
    of `features`."""
    total = torch.as_tensor(excess) * how.budget + torch.as_tensor(features) * how.features
    if how.task:
        value = prepared.task.loss(output, target)
        if how.smoothing:
            value = (1 - how.smoothing) * value + how.smoothing * evenness(output, target)
        total = total + how.task * value
    if how.kl:
        total = total + how.kl * divergence(output, answer, how.temperature, class_dim(output, target))
    if how.logits:
        total = total + how.logits * squares(output, answer)
    return total


def class_dim(output: Any, target: Any = None) -> int:
    """Where the classes of logits are: 1 of (B, K) and of maps (B, K, H, W), the last of tokens (B, N, V).

    Of three dims it is 1 where the target holds whole numbers (B, L) that fit (B, K, L) and not (B, N, V).
    """
    if not isinstance(output, Tensor) or output.dim() != 3:
        return 1
    labels = isinstance(target, Tensor) and target.dim() == 2 and not target.is_floating_point()
    return 1 if labels and target.shape[1] == output.shape[2] != output.shape[1] else 2


def divergence(output: Any, answer: Any, temperature: float, dim: int = 1) -> Tensor:
    """T^2 KL(full || gated) over the classes in `dim` of logits (Hinton et al., 2015), the mean over all places that have
    classes; of other outputs the relative squares."""
    if not (isinstance(output, Tensor) and output.dim() >= 2 and output.shape[dim] > 1):
        return squares(output, answer)
    ours, theirs = (
        F.log_softmax(value.float() / temperature, dim).movedim(dim, -1).flatten(0, -2) for value in (output, answer)
    )
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def evenness(output: Any, target: Any) -> Tensor:
    """The mean of -log p over all classes and places: cross-entropy against the even distribution."""
    dim = class_dim(output, target)
    if not (isinstance(output, Tensor) and output.dim() >= 2 and output.shape[dim] > 1):
        found = f"an output of {list(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
        raise SecateurError("label smoothing", f"{found}, which is no logits", "set smoothing to 0")
    return -F.log_softmax(output, dim).mean()


def squares(output: Any, answer: Any) -> Tensor:
    """Mean squared difference of all tensors of real numbers, over the mean square of the full network's."""
    pairs = [(a, b) for a, b in zip(_flat(output), _flat(answer), strict=True) if a.is_floating_point()]
    if not pairs:
        raise SecateurError("distillation", "outputs without real numbers", "set kl and logits to 0")
    gaps = [(a.float() - b.float()).square().mean() / b.float().square().mean().clamp_min(1e-12) for a, b in pairs]
    return torch.stack(gaps).mean()


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = list(value.values()) if hasattr(value, "values") else list(value) if isinstance(value, (list, tuple)) else []
    return [tensor for part in parts for tensor in _flat(part)]
