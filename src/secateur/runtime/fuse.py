"""Fewer passes over memory: batch norm goes into weights, activations and sums into the layer before them.

O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.graph import Graph, Node, refs


def fuse(graph: Graph) -> Graph:
    """The same network in fewer operations. Weights stay where they were zero."""
    return _activations(_sums(_activations(_norms(_shortcuts(graph)))))


def _shortcuts(graph: Graph) -> Graph:
    """A shortcut without weights (every second pixel, zeros for new channels) as the 1x1 convolution it is."""
    made = {node.name: node for node in graph.nodes}
    users = graph.users()
    nodes = []
    for node in graph.nodes:
        found = _padded_slices(node, made, users) if node.op == "torch" else None
        if found:
            start, step, before, after = found
            channels = node.settings["channels"]
            weight = torch.zeros(before + channels + after, channels, 1, 1)
            weight[before : before + channels, :, 0, 0] = torch.eye(channels)
            settings = {"stride": step, "padding": (0, 0), "dilation": (1, 1), "groups": 1}
            node = Node(node.name, "conv", (start,), {"weight": weight}, settings)
        nodes.append(node)
    return _live(replace(graph, nodes=tuple(nodes)))


def _padded_slices(node: Node, made: dict[str, Node], users: dict[str, int]) -> tuple[str, tuple[int, int], int, int] | None:
    """Source, steps and the channels padded in front and behind, where `node` pads channels of an image sliced in steps."""
    if node.settings["target"] not in ("aten.pad.default", "aten.constant_pad_nd.default") or "channels" not in node.settings:
        return None
    args = node.settings["args"]
    pads = list(args[1])
    mode, value = (args[2] if len(args) > 2 else "constant"), (args[3] if len(args) > 3 else 0)
    if node.settings["target"].endswith("nd.default"):
        mode, value = "constant", args[2] if len(args) > 2 else 0
    if mode != "constant" or value not in (0, 0.0, None) or len(pads) != 6 or any(pads[:4]) or min(pads) < 0:
        return None
    steps, name = [1, 1], node.inputs[0]
    while (
        name in made and made[name].op == "torch" and made[name].settings["target"] == "aten.slice.Tensor" and users[name] == 1
    ):
        given: tuple[Any, ...] = made[name].settings["args"]
        _, dim, begin, end, step = given + (None, 0, None, None, 1)[len(given) :]
        if begin not in (None, 0) or (end is not None and (not isinstance(end, int) or end < 2**31)):
            return None
        if dim in (2, 3):
            steps[dim - 2] *= step
        elif step != 1:
            return None
        name = made[name].inputs[0]
    return name, (steps[0], steps[1]), pads[4], pads[5]


def _norms(graph: Graph) -> Graph:
    """conv or linear, then batch norm: one layer. Products in float64, rounded once."""
    made = {node.name: node for node in graph.nodes}
    users = graph.users()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        before = made.get(node.inputs[0]) if node.inputs else None
        if (
            node.op == "affine"
            and before
            and before.op in ("conv", "linear")
            and users[before.name] == 1
            and before.name in nodes
        ):
            scale, shift = node.tensors["scale"], node.tensors["shift"]
            weight, bias = before.tensors["weight"], before.tensors.get("bias")
            folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
            moved = shift if bias is None else shift + bias.double() * scale
            del nodes[before.name]
            node = replace(before, name=node.name, tensors={"weight": folded.to(weight.dtype), "bias": moved.to(weight.dtype)})
        elif node.op == "affine":
            dtype = torch.float32
            node = replace(node, tensors={key: value.to(dtype) for key, value in node.tensors.items()})
        nodes[node.name] = node
        made[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))


def _activations(graph: Graph) -> Graph:
    """An activation goes into the operation before it, where nothing else reads that."""
    users = graph.users()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        before = nodes.get(node.inputs[0]) if node.inputs else None
        takes = before is not None and before.op in ("conv", "linear", "affine", "add", "mul")
        if node.op == "act" and before is not None and takes and users[before.name] == 1 and _open(before):
            del nodes[before.name]
            node = replace(before, name=node.name, settings={**before.settings, **node.settings})
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))


def _open(node: Node) -> bool:
    return not node.settings.get("activation") and not node.settings.get("after")


def _sums(graph: Graph) -> Graph:
    """A sum goes into the later of the two layers that make its terms, as its residual."""
    users = graph.users()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op == "add" and node.inputs[0] != node.inputs[1]:
            order = {name: place for place, name in enumerate(nodes)}
            terms = [nodes[name] for name in node.inputs if name in nodes]
            layers = [t for t in terms if t.op in ("conv", "linear") and len(t.inputs) == 1 and users[t.name] == 1]
            if layers:
                layer = max(layers, key=lambda term: order[term.name])
                other = node.inputs[1] if node.inputs[0] == layer.name else node.inputs[0]
                if not (layer.settings.get("activation") and node.settings.get("activation")):
                    after = 1 if layer.settings.get("activation") else 0
                    del nodes[layer.name]
                    settings = {**layer.settings, **node.settings, "after": after}
                    node = replace(layer, name=node.name, inputs=(layer.inputs[0], other), settings=settings)
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))


def _live(graph: Graph) -> Graph:
    """Without operations nobody reads."""
    needed = set(refs(graph.output))
    kept = []
    for node in reversed(graph.nodes):
        if node.name in needed:
            kept.append(node)
            needed |= set(node.inputs)
    return replace(graph, nodes=tuple(reversed(kept)))


def sparsity(weight: Tensor) -> float:
    """The share of zeros."""
    return 1.0 - float(torch.count_nonzero(weight)) / max(weight.numel(), 1)
