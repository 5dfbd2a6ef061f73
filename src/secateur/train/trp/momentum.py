"""Momentum that points where the weights have no rank left is taken away with it.

Shape legend: B matrices of sides M and N.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, optim

from secateur.surgery import fold, unfold
from secateur.train.trp.layers import Layer

_MOMENTA = ("momentum_buffer", "exp_avg")


def project_momentum_(optimizer: optim.Optimizer, layer: Layer, polar: Tensor) -> None:
    """Take from the momentum of `layer` what lies outside the kept left and right singular vectors: P P^T V P^T P.

    `polar` (B, M, N) is P = U V^T of what was kept. The squared gradients of Adam stay: they are no direction.
    """
    state: Mapping[str, Any] = optimizer.state.get(layer.weight, {})
    for name in _MOMENTA:
        momentum = state.get(name)
        if isinstance(momentum, Tensor) and momentum.shape == layer.weight.shape:
            wide = unfold(momentum, layer.format).to(polar.dtype)
            inside = polar @ (polar.mT @ wide @ polar.mT) @ polar
            momentum.copy_(fold(inside, momentum.shape, layer.format))
