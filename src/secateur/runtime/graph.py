"""The network as the engine sees it: a list of operations with their tensors, and what each computes, in PyTorch's terms.

`Node.op` is one of the operations below, or "torch" for any other ATen operation, which PyTorch itself runs.
N images, C channels, O outputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
}
"""Activations without numbers of their own; "clamp" has `low` and `high`."""
SCALARS = {
    "mul": operator.mul,
    "add": operator.add,
    "sub": operator.sub,
    "floordiv": operator.floordiv,
    "getitem": operator.getitem,
}
"""Python operators that a captured network may contain: arithmetic on sizes, and picking one of several outputs."""


@dataclass(frozen=True)
class Ref:
    """A value by name, inside the arguments of a torch operation."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation. `inputs`: names of values; `tensors`: its weights; `settings`: plain numbers and words."""

    name: str
    op: str
    inputs: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def with_settings(self, **settings: Any) -> Node:
        """This node with some settings changed."""
        return replace(self, settings={**self.settings, **settings})


@dataclass(frozen=True)
class Graph:
    """`inputs`: names in the order of the arguments; `output`: tensors, tuples, lists and dicts with `Ref` for values."""

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    output: Any

    def users(self) -> dict[str, int]:
        """How often each value is read; an output counts."""
        count: dict[str, int] = {}
        for name in [name for node in self.nodes for name in node.inputs] + refs(self.output):
            count[name] = count.get(name, 0) + 1
        return count


def refs(value: Any) -> list[str]:
    """Names of the values inside nested arguments."""
    if isinstance(value, Ref):
        return [value.name]
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in refs(item)]
    if isinstance(value, (tuple, list)):
        return [name for item in value for name in refs(item)]
    return []


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Nested arguments with the values in place of their names."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Mapping):
        return {key: fill(item, values) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(fill(item, values) for item in value)
    return value


def activated(x: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The activation a node ends in."""
    kind = settings.get("activation")
    if kind == "clamp":
        return x.clamp(settings["low"], settings["high"])
    return ACTIVATIONS[kind](x) if kind else x


def compute(node: Node, inputs: Sequence[Any]) -> Any:
    """What `node` computes, by PyTorch; on meta tensors it gives shapes.

    `inputs` are in the order of `node.inputs`; for conv and linear a second one is the residual.
    """
    settings, tensors = node.settings, node.tensors
    if node.op == "torch":
        values = dict(zip(node.inputs, inputs, strict=True))
        return operation(settings["target"])(*fill(settings["args"], values), **fill(settings["kwargs"], values))
    x = inputs[0]
    if node.op in ("conv", "linear"):
        weight, bias = (
            tensor.to(x.device) if tensor is not None else None for tensor in (tensors["weight"], tensors.get("bias"))
        )
        if node.op == "conv":
            y = F.conv2d(x, weight, bias, *(settings[name] for name in ("stride", "padding", "dilation", "groups")))  # type: ignore[arg-type]
        else:
            y = F.linear(x, weight, bias)  # type: ignore[arg-type]
        if len(inputs) > 1 and not settings.get("after"):
            y = y + inputs[1]
        y = activated(y, settings)
        return y + inputs[1] if len(inputs) > 1 and settings.get("after") else y
    if node.op == "affine":
        scale, shift = (tensors[name].to(x.device).view(-1, *[1] * (x.dim() - 2)) for name in ("scale", "shift"))
        return activated(x * scale + shift, settings)
    if node.op == "add":
        return activated(x + inputs[1], settings)
    if node.op == "mul":
        return activated(x * inputs[1], settings)
    if node.op == "act":
        return activated(x, settings)
    if node.op == "maxpool":
        return F.max_pool2d(x, settings["kernel"], settings["stride"], settings["padding"], 1, settings["ceil"])
    if node.op == "avgpool":
        return F.avg_pool2d(x, settings["kernel"], settings["stride"], settings["padding"])
    if node.op == "adaptive":
        y = F.adaptive_avg_pool2d(x, settings["size"])
        return y.flatten(1) if settings.get("flat") else y
    if node.op == "flatten":
        return torch.flatten(x, 1)
    if node.op == "cat":
        return torch.cat(list(inputs), 1)
    raise ValueError(node.op)


def operation(target: str) -> Callable[..., Any]:
    """The function behind "aten.add.Tensor" or "operator.mul"."""
    space, name, *overload = target.split(".")
    if space == "operator":
        return SCALARS[name]
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, space), name), overload[0])
    return found
