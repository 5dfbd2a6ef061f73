"""Soft filter pruning: the lowest filters are set to zero again and again, and may grow back in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.train.slimming import Decide
from secateur.train.units import cuts_of, written


class SoftPruning:
    """The hook: after each `every` steps (an epoch in the paper) the units that `decide` drops are set to zero.

    They go on being trained, so a unit that matters grows back before the next time. Zero are the weights that write
    the unit; with `scales` also biases and norms, without which a norm behind still puts out its constant.
    `plan()` is the decision of the last time.

    Source: He et al., 2018 (Soft Filter Pruning), algorithm 1; `decide` by the L2 norm at one rate for all layers,
    ``lambda model: allocate.uniform(axes, score(axes, criteria.l2(model, group=False)), 0.7)``, is theirs.
    """

    def __init__(self, model: nn.Module, decide: Decide, *, every: int, scales: bool = False) -> None:
        if every < 1:
            raise SecateurError("soft pruning", f"every={every}", "give the steps between two prunings, at least 1")
        self.model, self.decide, self.every, self.scales = model, decide, every, scales
        self.step = 0

    def loss(self) -> float:
        """0: nothing is penalised."""
        return 0.0

    def after_backward(self) -> None:
        """Gradients stay as they are."""

    def after_step(self) -> None:
        """Count the step; prune where it is time."""
        self.step += 1
        if self.step % self.every == 0:
            self._prune()

    def plan(self) -> Plan:
        """What `decide` says of the model as it is."""
        return self.decide(self.model)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; the model has the rest."""
        return {"step": self.step, "every": self.every}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if state["every"] != self.every:
            found = f"every={state['every']} where the hook has {self.every}"
            raise SecateurError("going on with soft pruning", found, "make the hook as it was when it was saved")
        self.step = int(state["step"])

    @torch.no_grad()
    def _prune(self) -> None:
        for cut in cuts_of(self.decide(self.model), "soft pruning"):
            for parameter, dim, entries in written(self.model, cut, cut.dropped, scales=self.scales):
                parameter.index_fill_(dim, entries, 0)
