"""The module tree of a model with tensors that have shapes but no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.graph.execute import SMALL
from secateur.surgery import clone, follow_heads, forget, tensors


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, in eval mode, with attention that takes its sizes from its tensors."""
    if not isinstance(model, nn.Module):
        raise SecateurError("a model", f"an object of type {type(model).__name__}", "give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise SecateurError("a model", "a scripted module", "give the nn.Module it was made of; script what comes out")
    memo: dict[int, Any] = {}
    try:
        for _, tensor in tensors(model):
            if id(tensor) not in memo:
                memo[id(tensor)] = _bone(tensor)
        bones = clone(model, memo)
    except Exception as error:  # a model may hold anything, itself among its parts too
        do = "keep what cannot be copied out of the module's attributes"
        raise SecateurError("a copy of the model's module tree", f"{type(error).__name__}: {error}", do) from error
    return forget(follow_heads(bones.eval()))


def _bone(tensor: Tensor) -> Tensor:
    """A parameter or buffer without memory; small tables of whole numbers keep their values, since forwards read them."""
    if not tensor.is_floating_point() and not tensor.is_complex() and not tensor.is_meta and tensor.numel() <= SMALL:
        return tensor.detach().cpu().clone()
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of one call: a tensor, a tuple of arguments or a dict of named ones."""
    if example is None:
        do = "give a tensor, a tuple of positional or a dict of named arguments of the model's forward"
        raise SecateurError("a trace", "no example input", do)
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    return (example,), {}


def on_meta(value: Any) -> Any:
    """`value` with large tensors moved to the meta device and small ones to the CPU, values kept; containers are rebuilt."""
    if isinstance(value, Tensor):
        return value.detach().to("meta" if value.numel() > SMALL // 16 or value.is_meta else "cpu")
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: on_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(on_meta(item) for item in value)
    return value
