"""The contracts between the parts. Variants are wrappers around these, not subclasses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

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
Searcher = Generator[Plan | tuple[Plan, ...], Any, Plan]
"""Yields a candidate and is sent its loss, or yields several and is sent one loss each; returns one plan."""
JudgeMany = Callable[[Sequence[Plan]], Sequence[float]]
"""The losses of several plans, in their order; plans that do not depend on each other are judged at once."""
Loss = Callable[[Any, Any], Tensor]
"""(output, target) to a scalar."""


class Hook(Protocol):
    """A method that acts during training, in three lines of the user's own loop.

    One that has a method `attach` as well is handed the optimizer by `fit` and by the callbacks.
    """

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
