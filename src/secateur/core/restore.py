"""What a change in place that fails leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Inside, `model` may be changed in place; whatever is raised, its values are then as before. A copy of them is held."""
    held = {id(tensor): (tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in held.values():
                tensor.copy_(value)
        raise
