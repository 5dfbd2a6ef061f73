"""Repairs of block-diagonal layers: on plain layers with zeros between the blocks, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from secateur.surgery.fingerprint import tensors
from secateur.surgery.split import BlockDiagonal, gathered
from secateur.surgery.workers import expanded


@contextmanager
def unrolled(model: nn.Module) -> Iterator[nn.Module]:
    """`model` with plain layers in place of blocks; what is set there, the weights inside the blocks, is set in `model` after.

    A model without blocks is given as it is.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, BlockDiagonal)}
    if not blocks:
        yield model
        return
    whole = expanded(model)
    yield whole
    found = dict(tensors(whole))
    with torch.no_grad():
        for name, tensor in tensors(model):
            path, _, last = name.rpartition(".")
            if path in blocks and last == "weight":
                tensor.copy_(gathered(found[name], blocks[path].blocks))
            elif name in found:
                tensor.copy_(found[name])
