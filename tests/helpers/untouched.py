"""All of a model that a call must leave alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def everything(model: nn.Module) -> list[Any]:
    """All of a model that a call must leave alone."""
    state = [value.clone() for value in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [*state, modes, hooks, [p.requires_grad for p in model.parameters()], torch.get_rng_state()]


def unchanged(before: list[Any], model: nn.Module) -> bool:
    pairs = zip(before, everything(model), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
