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
    """

    def __init__(self, params: Sequence[Tensor], lr: float, momentum: float, weight_decay: float, nesterov: bool) -> None:
        super().__init__(list(params), {"lr": lr})
        every = [p for group in self.param_groups for p in group["params"]]
        self._matrices = [(p, p.detach().view(p.shape[0], -1)) for p in every if p.dim() > 1]
        rest = [p for p in every if p.dim() <= 1]
        how: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._inner: dict[str, optim.Optimizer] = {}
        if self._matrices:
            views = [view for _, view in self._matrices]
            named: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
            self._inner["muon"] = optim.Muon(views, **how, **named)
        if rest:
            self._inner["adamw"] = optim.AdamW(rest, **how)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both, at the learning rate of the first group."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for parameter, view in self._matrices:
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        for inner in self._inner.values():
            for group in inner.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            inner.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {name: inner.state_dict() for name, inner in self._inner.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into both."""
        for name, inner in self._inner.items():
            inner.load_state_dict(state_dict[name])
