"""The contracts between the parts. Variants are wrappers around these, not subclasses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.plan import Plan

Batches = Iterable[tuple[Any, Any]]
"""(input, target) pairs; iterated anew for every pass."""
Criterion = Callable[[Axis], Tensor]
"""One score per unit, shape (N,), higher is dearer."""
Scores = Mapping[str, Tensor]
"""Axis name to scores of shape (N,)."""
Budget = Mapping[str, float]
"""What remains: {"macs": 0.5}, {"params": 0.3}; a share of the dense model."""
Allocator = Callable[[Axes, Scores, Budget], Plan]
Repair = Callable[[nn.Module, nn.Module, Batches], None]
"""(before, after, batches): only values of `after` change."""
Judge = Callable[[Plan], float]
Searcher = Generator[Plan, float, Plan]
"""Yields candidates, is sent their losses, returns one."""
Loss = Callable[[Any, Any], Tensor]
"""(output, target) to a scalar."""


class Hook(Protocol):
    """A method that acts during training, in three lines of the user's own loop."""

    def loss(self) -> Tensor | float:
        """Added to the task's loss before backward."""

    def after_backward(self) -> None:
        """Gradients are there."""

    def after_step(self) -> None:
        """Weights have moved."""

    def plan(self) -> Plan:
        """What training decided."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


def to_device(batch: Any, device: torch.device | str) -> Any:
    """`batch` (tensor, or list, tuple or dict of tensors) on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def call(model: nn.Module, batch: Any) -> Any:
    """`model` on one input: a tensor, a tuple of positional or a dict of named arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
