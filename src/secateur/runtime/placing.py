"""What the engine can run, on values of which shapes, and the gaps of zeros its convolutions need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.coding import MOST, Code
from secateur.runtime.graph import Graph, Node, compute
from secateur.runtime.layout import Layout, Reach, reach
from secateur.runtime.structs import Activation

KINDS = {"clamp": Activation.CLAMP, "relu": Activation.CLAMP, "hardswish": Activation.HARDSWISH, "silu": Activation.SILU,
         "sigmoid": Activation.SIGMOID, "hardsigmoid": Activation.HARDSIGMOID, "gelu": Activation.GELU}  # fmt: skip


def shapes_of(graph: Graph, inputs: Iterable[Tensor]) -> dict[str, Any]:
    """Every value's meta tensor (or number), for inputs of these shapes."""
    values: dict[str, Any] = {name: value.to("meta") for name, value in graph.constants.items()}
    values |= {name: torch.empty_like(value, device="meta") for name, value in zip(graph.inputs, inputs, strict=True)}
    with torch.inference_mode():
        for node in graph.nodes:
            value = compute(node, [values[name] for name in node.inputs])
            values[node.name] = value.to("meta") if isinstance(value, Tensor) else value  # one made from nothing lies elsewhere
    return values


def gaps_of(graph: Graph, values: Mapping[str, Any]) -> dict[tuple[int, int], tuple[int, int]]:
    """Rows and columns of zeros that maps of each (height, width) need for the convolutions made there."""
    gaps: dict[tuple[int, int], tuple[int, int]] = {}

    def need(size: tuple[int, int], rows: int, columns: int) -> None:
        now = gaps.get(size, (0, 0))
        gaps[size] = (max(now[0], rows), max(now[1], columns))

    for node in graph.nodes:
        if node.op != "conv" or values[node.name].dim() != 4:
            continue
        before, after = tuple(values[node.inputs[0]].shape[2:]), tuple(values[node.name].shape[2:])
        if after == (1, 1) or before == (1, 1):
            continue
        rows, columns = reaches(node)
        width = columns.width(before[1], node.settings["stride"][1])
        need(after, 0, max(width - columns.low, after[1] + columns.high) - after[1])
        if before == after and node.settings["stride"] == (1, 1):
            need(after, max(-rows.low, rows.high), 0)
    return gaps


def reaches(node: Node) -> tuple[Reach, Reach]:
    """What a convolution reads, by rows and by columns."""
    kernel, s = node.tensors["weight"].shape[2:], node.settings
    first, second = (reach(kernel[d], s["stride"][d], s["padding"][d], s["dilation"][d]) for d in (0, 1))
    return first, second


def able(node: Node, values: Mapping[str, Any]) -> bool:
    """Can the engine run this node, on values of these shapes?"""
    names = (*node.inputs, node.name)
    if node.op == "torch" or any(not isinstance(values[n], Tensor) or values[n].dtype != torch.float32 for n in names):
        return False
    x, y = values[node.inputs[0]], values[node.name]
    if min(x.shape, default=0) < 1 or min(y.shape, default=0) < 1 or node.settings.get("activation") not in (None, *KINDS):
        return False
    if node.op == "linear":
        return x.dim() >= 2 and all(values[name].shape == y.shape for name in node.inputs[1:])
    if x.dim() != 4 and not (x.dim() == 2 and node.op in ("add", "act")):
        return False
    if node.op == "conv":
        tiny = (1, 1) in (tuple(x.shape[2:]), tuple(y.shape[2:]))
        plain = tuple(node.tensors["weight"].shape[2:]) == (1, 1) == node.settings["stride"] and node.settings["padding"] == (
            0,
            0,
        )
        return (plain or not tiny) and all(values[name].shape == y.shape for name in node.inputs[1:])
    if node.op == "add":
        return bool(values[node.inputs[1]].shape == x.shape)
    if node.op == "mul":
        shape = values[node.inputs[1]].shape
        return (
            len(shape) == 4
            and shape[:2] == x.shape[:2]
            and tuple(shape[2:]) == (1, 1)
            and x.shape[2:] != (1, 1)
            and not node.settings
        )
    if node.op == "adaptive":
        return tuple(node.settings["size"]) == (1, 1) or tuple(node.settings["size"]) == tuple(x.shape[2:])
    if node.op == "flatten":
        return tuple(x.shape[2:]) == (1, 1)
    if node.op in ("maxpool", "avgpool"):
        return tuple(x.shape[2:]) != (1, 1)
    return node.op in ("affine", "act", "cat") and (node.op != "affine" or tuple(x.shape[2:]) != (1, 1))


def placed(graph: Graph, values: Mapping[str, Any], dense: frozenset[str], codes: Mapping[str, Code] | None) -> set[str]:
    """What the engine runs: layers but those in `dense`, and what needs no weights where its input is.

    `codes`: what bytes stand for, where values become bytes.
    """
    found: set[str] = set()
    for node in graph.nodes:
        if node.name in dense or not able(node, values) or not (codes is None or _coded(node, codes)):
            continue
        follows = any(name in found for name in node.inputs) and all(
            name in found or name in graph.inputs for name in node.inputs
        )
        if node.op in ("conv", "linear") or follows:
            found.add(node.name)
    return found


def _coded(node: Node, codes: Mapping[str, Code]) -> bool:
    """Can bytes stand for all values of `node`, and int32 hold its sums?"""
    weight = node.tensors.get("weight")
    fits = weight is None or int((weight.reshape(len(weight), -1) != 0).sum(1).max()) <= MOST
    return fits and all(name in codes for name in (*node.inputs, node.name))


def only_outside(graph: Graph, on_engine: set[str]) -> set[str]:
    """Outputs of layers that the engine does not read again: they need not become bytes."""
    nodes = [node for node in graph.nodes if node.name in on_engine]
    return {node.name for node in nodes if node.op in ("conv", "linear")} - {name for node in nodes for name in node.inputs}


def direct(node: Node, rows: Reach, columns: Reach, read: Layout, made: Layout) -> bool:
    """Can the taps be shifts in the input as it lies?"""
    if node.settings["stride"] != (1, 1) or read.row != made.row or read.single:
        return False
    gap = read.row - read.width
    below = read.image // (read.row * read.lanes) - read.height
    fits = max(-columns.low, made.width + columns.high - read.width) <= gap
    ahead = (-rows.low * read.row - columns.low) * read.lanes <= read.lead
    return fits and ahead and max(-rows.low, made.height + rows.high - read.height) <= below
