"""Multiply-accumulates that PyTorch's flop counter leaves out: products with a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _product(matrix: Tensor, vector: Tensor, *, out_val: Any = None, **_: Any) -> int:
    """Operations (two per multiply-accumulate) of a matrix, or a vector, times a vector."""
    return 2 * matrix.numel()


def _added(bias: Tensor, matrix: Tensor, vector: Tensor, *, out_val: Any = None, **_: Any) -> int:
    """The same where a vector is added to the product."""
    return 2 * matrix.numel()


_product._get_raw = _added._get_raw = True  # type: ignore[attr-defined]  # they take tensors, not shapes

VECTORS: dict[Any, Callable[..., int]] = {aten.mv: _product, aten.dot: _product, aten.vdot: _product, aten.addmv: _added}
"""ATen operation to its formula, as `torch.utils.flop_counter.flop_registry` has them."""
