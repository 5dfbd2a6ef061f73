"""Momentum and moments follow the parameters through a cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, optim

Replaced = Iterable[tuple[Tensor, Tensor, Mapping[int, np.ndarray]]]


def carry(optimizer: optim.Optimizer, replaced: Replaced) -> None:
    """Put each new parameter in the place of the old one, and cut every state tensor of its shape alike.

    Scalars (step counts) stay. State of another shape (factored moments) is dropped, and the optimizer builds it anew.
    """
    swaps = {id(old): (old, new, dims) for old, new, dims in replaced}
    for group in optimizer.param_groups:
        group["params"] = [swaps[id(p)][1] if id(p) in swaps else p for p in group["params"]]
    for old, new, dims in swaps.values():
        state = optimizer.state.pop(old, None)
        if state:
            cut = {name: _cut(value, old.shape, dims) for name, value in state.items()}
            if all(value is not None or state[name] is None for name, value in cut.items()):
                optimizer.state[new] = cut


def _cut(value: Any, shape: torch.Size, dims: Mapping[int, np.ndarray]) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape != shape:
        return None
    for dim, entries in dims.items():
        value = value.index_select(dim, torch.from_numpy(entries).to(value.device))
    return value
