"""Muon for the matrices of a network, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, optim


class Muon(optim.Optimizer):
    """`torch.optim.Muon` on weights of two dims and more, kernels taken as matrices (O, rest), and AdamW on the others.

    One learning rate serves both: updates of matrices have the root mean square of AdamW's ("match_rms_adamw", Liu et al.,
    2025). Jordan et al., 2024, train first and last layers by AdamW; here they are matrices like all others.
    State has the shape of its parameter, whatever that is in memory, so it follows parameters through a cut.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, momentum: float, weight_decay: float, nesterov: bool) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            self._matrices(group, [p for p in trained if p.dim() > 1])
            self._rest(group, [p for p in trained if p.dim() <= 1])
        return value

    def _matrices(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        flat = [p.detach().reshape(p.shape[0], -1) for p in parameters]  # a copy where memory is in another order
        how = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        inner = optim.Muon(flat, adjust_lr_fn="match_rms_adamw", **how)
        for matrix, p in zip(flat, parameters, strict=True):
            assert p.grad is not None
            matrix.grad = p.grad.reshape(matrix.shape)
            if known := self.state[p]:
                inner.state[matrix] = {"momentum_buffer": known["momentum_buffer"].reshape(matrix.shape)}
        inner.step()
        for matrix, p in zip(flat, parameters, strict=True):
            self.state[p]["momentum_buffer"] = inner.state[matrix]["momentum_buffer"].reshape(p.shape)
            if matrix.data_ptr() != p.data_ptr():
                p.copy_(matrix.reshape(p.shape))

    def _rest(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if parameters:
            inner = optim.AdamW(parameters, group["lr"], weight_decay=group["weight_decay"])
            inner.state = self.state
            inner.step()
