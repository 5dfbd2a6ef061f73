"""Numbers as bytes: what a byte stands for, which range a value needs, and weights of 8 bits.

A byte q stands for scale * (q - zero). zero is 0 where no value is negative, as behind a ReLU, else 128. O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.runtime.graph import Graph, Node, compute

ASKED = "calibrating for int8"
Range = tuple[float, float]
"""The least and the largest value a byte has to stand for; 0 lies between."""
MOST = (2**31 - 1) // (255 * 128)
"""Non-zeros of a row whose sum surely fits in an int32."""


@dataclass(frozen=True)
class Code:
    """What bytes stand for: scale * (byte - zero)."""

    scale: float
    zero: int

    @property
    def shift(self) -> float:
        """What byte 0 stands for."""
        return -self.scale * self.zero


def code_of(known: Range) -> Code:
    """The code with the finest steps that reaches from the least to the largest value."""
    low, high = known
    scale = high / 255 if low >= 0 else max(-low / 128, high / 127)
    return Code(float(np.float32(scale if scale > 1e-30 else 1.0)), 0 if low >= 0 else 128)


def ranges_of(graph: Graph, batches: Iterable[Sequence[Tensor]]) -> dict[str, Range]:
    """The range of every float32 value of the graph over these inputs: from the least to the largest, and 0.

    Raises `SecateurError` where there are no inputs, they do not fit the model, or a value is infinite or no number.
    """
    found: dict[str, Range] = {}
    with torch.inference_mode():
        for inputs in batches:
            try:
                _widen_all(found, graph, inputs)
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
                reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
                raise SecateurError(
                    ASKED, f"inputs that do not fit the model ({reason})", "give what the model takes"
                ) from error
    if not found:
        raise SecateurError(ASKED, "no inputs", "give at least one batch")
    for name, value in graph.constants.items():
        _widen(found, name, value)
    return found


def _widen_all(found: dict[str, Range], graph: Graph, inputs: Sequence[Tensor]) -> None:
    values: dict[str, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for name in graph.inputs:
        _widen(found, name, values[name])
    for node in graph.nodes:
        values[node.name] = compute(node, [values[name] for name in node.inputs])
        _widen(found, node.name, values[node.name])


def _widen(found: dict[str, Range], name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or not value.numel():
        return
    low, high = (float(number) for number in torch.aminmax(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SecateurError(ASKED, f"{name} is not finite", "use float32 or bf16, or repair the model")
    before = found.get(name, (0.0, 0.0))
    found[name] = (min(before[0], low), max(before[1], high))


def require_finite(graph: Graph) -> None:
    """Raises `SecateurError` for weights that are infinite or no numbers: 8 bits have neither."""
    for node in graph.nodes:
        if any(not bool(value.isfinite().all()) for value in node.tensors.values()):
            layer = node.settings.get("layer", node.name)
            raise SecateurError(ASKED, f"weights of {layer} that are not finite", "use float32 or bf16")


def codes_of(graph: Graph, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Code]:
    """A code for every value with a range. Where bytes only move (pooling, concatenation) both sides have one code."""
    leader = {name: name for name in ranges}

    def of(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        if node.name in leader and _moves(node, values):
            for name in node.inputs:
                leader[of(name)] = of(node.name)
    joined: dict[str, Range] = {}
    for name, (low, high) in ranges.items():
        before = joined.get(of(name), (0.0, 0.0))
        joined[of(name)] = (min(before[0], low), max(before[1], high))
    return {name: code_of(joined[of(name)]) for name in ranges}


def _moves(node: Node, values: Mapping[str, Any]) -> bool:
    """Are the outputs of this node some of its inputs, or means of few?"""
    if node.op == "adaptive":
        return bool(values[node.inputs[0]].shape[2:] == values[node.name].shape[2:])
    return node.op in ("maxpool", "avgpool", "flatten", "cat")


def weight_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of at most 127 (as float32) and a scale for each row of `weight` (O, columns).

    The row's largest weight becomes 127: a smaller scale would be finer for the others, but in rows of up to thousands of
    non-zeros that saves less squared error than clipping the largest costs.
    """
    largest = np.abs(weight).max(1, initial=0.0).astype(np.float64)
    largest[largest < 1e-30] = 127.0
    scale = (largest / 127).astype(np.float32).astype(np.float64)
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.float32), scale


@dataclass(frozen=True, eq=False)
class Coding:
    """What a graph's numbers are as bytes: ranges of its values; its weights, rounded when first asked for."""

    ranges: Mapping[str, Range]
    known: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def weights(self, name: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`weight_codes` of the layer `name`."""
        if name not in self.known:
            codes, scale = weight_codes(weight)
            self.known[name] = codes.astype(np.int8), scale
        codes, scale = self.known[name]
        return codes.astype(np.float32), scale
