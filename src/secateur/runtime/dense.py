"""A graph computed by PyTorch alone, in float32 or with values and weights of bf16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.graph import Graph, Node, compute, fill


def halved(node: Node) -> Node:
    """A layer with weights of bf16, images channels last as its fast kernels want them; other operations as they are."""
    if node.op not in ("conv", "linear"):
        return node
    form = torch.channels_last if node.op == "conv" else torch.contiguous_format
    return replace(node, tensors={key: _half(value, form) for key, value in node.tensors.items()})


def is_half(node: Node) -> bool:
    """Has `halved` made it?"""
    return node.op in ("conv", "linear") and node.tensors["weight"].dtype == torch.bfloat16


def run_node(node: Node, inputs: Sequence[Any]) -> Any:
    """What `node` computes: a halved layer rounds its inputs to bf16; other layers and PyTorch's own operations get float32."""
    if is_half(node):
        form = torch.channels_last if node.op == "conv" else torch.preserve_format
        return compute(node, [x.to(torch.bfloat16, memory_format=form) for x in inputs])
    if node.op in ("torch", "conv", "linear"):
        inputs = [single(x) for x in inputs]
    return compute(node, inputs)


def single(value: Any) -> Any:
    """A bf16 tensor in float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def run_dense(graph: Graph, inputs: Sequence[Tensor]) -> Any:
    """The output, computed by PyTorch alone."""
    values: dict[str, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    halves = any(is_half(node) for node in graph.nodes)
    for node in graph.nodes:
        compute_node = run_node if halves else compute
        values[node.name] = compute_node(node, [values[name] for name in node.inputs])
    return fill(graph.output, {name: single(value) for name, value in values.items()} if halves else values)


def halved_graph(graph: Graph) -> Graph:
    """The graph with all its layers halved."""
    return replace(graph, nodes=tuple(halved(node) for node in graph.nodes))


def _half(value: Tensor, form: torch.memory_format) -> Tensor:
    value = value.detach().to(torch.bfloat16)
    return value.contiguous(memory_format=form) if value.dim() == 4 else value.contiguous()
