"""Network slimming: an L1 penalty on the scales of batch norms, by its sub-gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan

Decide = Callable[[nn.Module], Plan]
"""A model as trained so far to a plan, as ``lambda model: budget(axes, score(axes, bn_scale(model)), {"macs": 0.5})``."""


class Slimming:
    """The hook: `strength` times the sign of every batch-norm scale is added to its gradient; `decide` makes the plan.

    The plan of the paper keeps the largest scales of the whole network: ``lambda model: allocate.global_(axes,
    score(axes, criteria.bn_scale(model)), 0.4, normalise="none")``. Raises `SecateurError` where there is no scale.

    Source: Liu et al., 2017 (Network Slimming), eq. 1, with the sub-gradient of the authors' code; 1e-4 for VGG-19 and
    1e-5 for ResNet-164 there.
    """

    def __init__(self, model: nn.Module, decide: Decide, *, strength: float = 1e-4) -> None:
        norms = [module for module in model.modules() if isinstance(module, (_BatchNorm, nn.GroupNorm, nn.InstanceNorm2d))]
        self.scales: list[Tensor] = [norm.weight for norm in norms if isinstance(norm.weight, Tensor)]
        if not self.scales or strength < 0:
            found = "no norm with a scale" if not self.scales else f"strength={strength}"
            raise SecateurError("network slimming", found, "give a model with batch norms, and a strength from 0")
        self.model, self.decide, self.strength, self.step = model, decide, strength, 0

    def loss(self) -> float:
        """0: the penalty acts in `after_backward`."""
        return 0.0

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the sub-gradient."""
        for scale in self.scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)

    def after_step(self) -> None:
        """Count the step."""
        self.step += 1

    def plan(self) -> Plan:
        """What `decide` says of the model as it is."""
        return self.decide(self.model)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; the model has the rest."""
        return {"step": self.step, "strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if state["strength"] != self.strength:
            found = f"strength {state['strength']} where the hook has {self.strength}"
            raise SecateurError("going on with network slimming", found, "make the hook with the strength it was saved with")
        self.step = int(state["step"])
