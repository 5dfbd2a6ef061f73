"""What follows the int32 sums of a layer in int8. O outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secateur.runtime.coding import Code, Coding
from secateur.runtime.graph import Node
from secateur.runtime.structs import Activation, Op


@dataclass(frozen=True)
class Ending:
    """What follows the int32 sums of a layer: value = sum * scale + bias, activation, then bytes by `out_scale`.

    `scale`, `bias` (O,) float32 and `begin` (O,) int32, with which each sum begins. Where nothing but a clamp stands between
    sum and byte everything is measured in steps of the output, and `out_scale` is 0.
    """

    scale: np.ndarray
    bias: np.ndarray
    begin: np.ndarray
    low: float
    high: float
    other_scale: float
    other_shift: float
    out_scale: float


def _ending(
    codes: np.ndarray,
    steps: np.ndarray,
    bias: np.ndarray | None,
    *,
    source: Code,
    made: Code | None,
    other: Code | None,
    clamp: tuple[float, float] | None,
    smooth: bool,
) -> Ending:
    """The ending of a layer with weights `codes` times `steps`; `made` is None where the output stays float32."""
    scale = steps * source.scale
    added = np.zeros(len(codes)) if bias is None else bias.astype(np.float64)
    begin = (-source.zero * codes.sum(1, dtype=np.float64)).astype(np.int32)
    low, high = clamp or (0.0, 0.0)
    per, out_scale = 1.0, made.scale if made and smooth else 0.0
    if made and not smooth:
        per, out_scale = 1 / made.scale, 0.0
        scale, added = scale * per, added * per + made.zero
        low, high = low * per + made.zero, high * per + made.zero
    plus = (other.scale * per, other.shift * per) if other else (0.0, 0.0)
    return Ending(scale.astype(np.float32), added.astype(np.float32), begin, low, high, *plus, out_scale)


def coded_layer(
    node: Node, weight: np.ndarray, bias: np.ndarray | None, op: Op, coding: Coding, codes: Mapping[str, Code], *, real: bool
) -> tuple[np.ndarray, Ending]:
    """The weights of a layer as whole numbers, and what follows their sums, which is set in `op`; `real`: no bytes do."""
    whole, steps = coding.weights(node.name, weight)
    made = None if real else codes[node.name]
    other = codes[node.inputs[1]] if len(node.inputs) > 1 else None
    smooth = op.activation not in (Activation.NONE, Activation.CLAMP)
    clamp = (op.low, op.high) if op.activation == Activation.CLAMP else None
    end = _ending(whole, steps, bias, source=codes[node.inputs[0]], made=made, other=other, clamp=clamp, smooth=smooth)
    for name in ("low", "high", "other_scale", "other_shift", "out_scale"):
        setattr(op, name, getattr(end, name))
    return whole, end
