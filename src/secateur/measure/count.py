"""Parameters, multiply-accumulates and bytes of a model."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from secateur.core.facts import Facts
from secateur.core.running import to_device
from secateur.measure.forward import forward, prepare, without_fastpath
from secateur.measure.sparse import nonzeros, shares, sparse_macs
from secateur.measure.vectors import VECTORS


def facts(model: nn.Module, *example: Any) -> Facts:
    """Params, MACs and bytes of `model`, each tied tensor counted once; without an example the MACs stay unknown.

    Non-zeros are counted on values, and sparse MACs leave out products with a zero weight; both are unknown on meta.

    `example`: the positional arguments of one forward, or one dict of named ones. MACs are those of products
    (convolutions, linear layers, attention) at the batch size of the example, half of what
    `torch.utils.flop_counter` returns, and those with a vector, which it leaves out. Bytes are those of the state dict's
    tensors. `model` does not change.
    Raises `SecateurError` where the forward fails.

    >>> facts(nn.Linear(3, 2), torch.zeros(5, 3))
    Facts(params=8, macs=30, bytes=32, peak_memory=None, latency_ms=None, accuracy=None, loss=None, nonzeros=8, sparse_macs=30)
    """
    stored = {id(value): value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    params, filled = sum(parameter.numel() for parameter in model.parameters()), nonzeros(model)
    dense = macs(model, *example) if example else None
    return Facts(
        params=params,
        macs=dense,
        bytes=sum(value.numel() * value.element_size() for value in stored.values()),
        nonzeros=filled,
        sparse_macs=None if filled is None or dense is None else dense if filled == params else _sparse_macs(model, *example),
    )


def macs(model: nn.Module, *example: Any) -> int:
    """Multiply-accumulates of one forward, counted on shapes alone.

    A forward that reads values (`.item()`, a branch on data) cannot run on shapes and is counted on the model itself.
    Attention runs as plain products, since no counter knows every fused kernel.
    """
    batch = prepare(model, example)
    try:
        return _count(meta_copy(model).requires_grad_(False), to_device(batch, "meta"))
    except Exception:  # whatever the cause: values tell, and if the example is wrong they raise the error to show
        return _count(model, batch)


def _sparse_macs(model: nn.Module, *example: Any) -> int:
    batch, filled = prepare(model, example), shares(model)
    try:
        return sparse_macs(meta_copy(model), to_device(batch, "meta"), filled)
    except Exception:  # as in `macs`
        return sparse_macs(model, batch, filled)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, its tensors as plain attributes included; no value is copied."""
    attributes = chain.from_iterable(vars(module).values() for module in model.modules())
    memo: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in attributes if isinstance(t, Tensor)}
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    return deepcopy(model, memo)


def _count(model: nn.Module, batch: Any) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=VECTORS)
    with without_fastpath(), sdpa_kernel(SDPBackend.MATH), counter, _Einsum(counter) as more:
        forward(model, batch)
    return int(counter.get_total_flops()) // 2 + more.macs


class _Einsum(TorchFunctionMode):
    """Products of an einsum that PyTorch multiplies entry by entry, because all it sums over has one entry."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.macs = counter, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is not torch.einsum or len(args) != 3 or not isinstance(args[0], str):
            return func(*args, **(kwargs or {}))
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        operands, _, after = args[0].replace(" ", "").partition("->")
        one, two = operands.split(",")
        summed = set(one) & set(two) - set(after) if "->" in args[0] else set(one) & set(two) - {"."}
        if summed and self.counter.get_total_flops() == before:
            self.macs += out.numel()
        return out
