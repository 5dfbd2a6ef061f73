"""How fast dense layers can be at most on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur.native.library import path
from secateur.runtime.graph import Graph, Node
from secateur.runtime.tune import peak

HARDWARE = "bf16"
"""In the name of instruction sets that have one for bf16; without it PyTorch's bf16 is slower than its float32."""


def dense_gain(halves: bool) -> float:
    """How many times the multiply-adds of float32 dense bf16 can do at most: more where the CPU has matrix registers."""
    if not halves or HARDWARE not in path():
        return 1.0
    matrix = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return 16.0 if matrix() else 2.0


def macs(node: Node, shape: Sequence[int]) -> int:
    """Multiply-adds of a dense layer with an output of `shape`."""
    weight = node.tensors["weight"]
    positions = torch.Size(shape).numel() // len(weight)
    return positions * weight.numel()


def layer_floor(node: Node, shapes: Mapping[str, Sequence[int]], threads: int) -> float:
    """Nanoseconds no dense kernel can beat on this machine."""
    return macs(node, shapes[node.name]) / peak(path(), threads) * 1e9


def dense_floor(graph: Graph, values: Mapping[str, Any], threads: int) -> float:
    """The same for all layers."""
    layers = [node for node in graph.nodes if node.op in ("conv", "linear")]
    return sum(layer_floor(node, {node.name: values[node.name].shape}, threads) for node in layers)
