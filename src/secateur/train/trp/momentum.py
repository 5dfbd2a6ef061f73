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
    """Take from the momentum of `layer` what lies outside both the kept left and the kept right singular vectors.

    `polar` (B, M, N) is P = U V^T of what was kept. What goes is (I - P P^T) V (I - P^T P): the part that leaves the
    matrices of this rank (its complement is their tangent space; Vandereycken, 2013, eq. 2.4), and that the next truncation
    would cut away. The parts that turn the kept vectors stay. So do the squared gradients of Adam, which are no direction.
    """
    state: Mapping[str, Any] = optimizer.state.get(layer.weight, {})
    for name in _MOMENTA:
        momentum = state.get(name)
        if isinstance(momentum, Tensor) and momentum.shape == layer.weight.shape:
            wide = unfold(momentum, layer.format).to(polar.dtype)
            left = polar @ (polar.mT @ wide)
            inside = left + ((wide - left) @ polar.mT) @ polar
            momentum.copy_(fold(inside, momentum.shape, layer.format))
