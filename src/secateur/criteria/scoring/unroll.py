"""The loss a gated network has after some steps of training: what pruning at initialisation asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.criteria.scoring.task import Prepared


def unrolled(prepared: Prepared, gates: Mapping[str, Tensor], first: int, steps: int, lr: float) -> dict[str, Tensor]:
    """Weights after `steps` steps of SGD on the gated network, from batch `first` on, without gradient.

    The step itself is taken as a constant: first-order MAML (Finn et al., 2017, section 5.2).
    """
    fixed = {name: gate.detach() for name, gate in gates.items()}
    weights = {name: p.detach().clone() for name, p in prepared.gated.model.named_parameters() if p.is_floating_point()}
    for step in range(steps):
        inputs, target, _ = prepared.batches[(first + step) % len(prepared.batches)]
        with torch.enable_grad():
            live = {name: weight.requires_grad_() for name, weight in weights.items()}
            value = prepared.task.loss(prepared.output(fixed, inputs, live), target)
            slopes = torch.autograd.grad(value, list(live.values()), allow_unused=True, materialize_grads=True)
        weights = {name: (w - lr * g).detach() for (name, w), g in zip(live.items(), slopes, strict=True)}
    return weights


def trained(prepared: Prepared, gates: Mapping[str, Tensor], batch: int, mode: str, steps: int, lr: float) -> Any:
    """The gated network's output on batch number `batch`; in mode "init" after `steps` on the batches that follow it."""
    weights = unrolled(prepared, gates, batch + 1, steps, lr) if mode == "init" else None
    return prepared.output(gates, prepared.batches[batch][0], weights)
