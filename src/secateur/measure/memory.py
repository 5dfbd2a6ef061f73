"""Bytes of activations that a forward holds at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.measure.forward import forward, prepare, without_fastpath


def peak_memory(model: nn.Module, *example: Any) -> int:
    """Bytes that one forward in evaluation mode holds at most, its input included and the weights excluded.

    Counts what tensors own: the input, every intermediate result until nothing refers to it any more, the output.
    Scratch space inside an operation and what an allocator keeps in reserve are not counted, so the number is the same
    on every run. `example`: as in `facts`. Raises `SecateurError` where the forward fails.

    >>> peak_memory(nn.ReLU(), torch.zeros(10))  # ten floats in, ten out
    80
    """
    batch = prepare(model, example)
    watch = _Watch([*model.parameters(), *model.buffers()], batch)
    with without_fastpath(), watch:
        forward(model, batch)
    return watch.peak


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the result of every operation and remembers its storage until it is freed."""

    def __init__(self, weights: list[Tensor], batch: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.see(batch)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.see(result)
        return result

    def see(self, tensors: Any) -> None:
        """Forget storages that are gone, then take up those of `tensors`, which may be new."""
        gone = [key for key, (reference, _) in self.live.items() if reference.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            del self.live[key]
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.weights and storage._cdata not in self.live:
                    reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self.live[storage._cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
