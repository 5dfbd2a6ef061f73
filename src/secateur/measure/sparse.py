"""Multiply-accumulates that remain when products with a zero weight are left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secateur.measure.forward import forward, without_fastpath
from secateur.measure.vectors import VECTORS


def nonzeros(model: nn.Module) -> int | None:
    """Entries of all parameters that are not zero; None where a parameter has no values (meta)."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    return sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())


def shares(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameter name to (entries that are not zero, all entries)."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: (int(torch.count_nonzero(value.detach())), value.numel()) for name, value in named}


def sparse_macs(bones: nn.Module, batch: Any, filled: dict[str, tuple[int, int]]) -> int:
    """MACs of one forward of `bones` on `batch`, of each weight in the share of its entries that `filled` says.

    Every entry of a linear layer or convolution is used equally often (padding counted, as the dense count does), so the
    number is exact. A product of two weights counts the sparser one; products of activations count whole.
    """
    by_storage = {
        parameter.untyped_storage()._cdata: filled[name] for name, parameter in bones.named_parameters(remove_duplicate=False)
    }
    with without_fastpath(), sdpa_kernel(SDPBackend.MATH), _Count(by_storage) as count:
        forward(bones, batch)
    return count.macs


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the MACs of every operation PyTorch has a formula for."""

    def __init__(self, filled: dict[int, tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.filled, self.macs = filled, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket) or VECTORS.get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        result = func(*args, **kwargs)
        if formula is not None:
            macs = int(formula(*args, **kwargs, out_val=result)) // 2
            self.macs += min((macs * some // whole for some, whole in self._of(args)), default=macs)
        return result

    def _of(self, args: Any) -> list[tuple[int, int]]:
        """Filled and all entries of the weights among `args`, biases left out."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 1]
        found = [self.filled.get(tensor.untyped_storage()._cdata) for tensor in tensors]
        return [pair for pair in found if pair is not None and pair[1]]
