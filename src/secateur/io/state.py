"""The state of a model as plain tensors: taken out with ties known, and put back whole or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError


def state_of(model: nn.Module, asked: str) -> dict[str, Tensor]:
    """Name to tensor of all parameters and persistent buffers, sharing memory with `model`.

    Raises `SecateurError` (beginning with `asked`) where the state holds more than dense tensors with values.
    """
    state = model.state_dict()
    for name, value in state.items():
        require_dense(name, value, asked)
    return state


def require_dense(name: str, value: Any, asked: str) -> None:
    """Raise `SecateurError` unless `value` is a dense tensor with values."""
    if not isinstance(value, Tensor):
        raise SecateurError(asked, f"{name[:80]!r}, state that is no tensor ({type(value).__name__})", "give tensors only")
    if value.is_meta:
        raise SecateurError(asked, f"{name[:80]!r} without values (device meta)", "build the model on a real device")
    if value.layout != torch.strided or value.is_quantized:
        raise SecateurError(asked, f"{name[:80]!r}, a sparse or quantized tensor", "make it dense first")


def require_model(model: Any, asked: str) -> None:
    """Raise `SecateurError` unless `model` is a built module."""
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise SecateurError(asked, f"{found} in place of a model", "give a torch.nn.Module, built")


def untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are one and the same, once; and the map from each further name to the first."""
    first: dict[Any, str] = {}
    tensors, aliases = {}, {}
    for name, value in state.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place], tensors[name] = name, value
    return tensors, aliases


def fill_(model: nn.Module, state: Mapping[str, Tensor], asked: str, *, keep_dtype: bool = False) -> None:
    """Copy every tensor of `state` into `model`; with `keep_dtype` the model takes the dtypes of `state`.

    Raises `SecateurError` that lists missing, unexpected and misshapen tensors; then the model is as before.
    """
    own = state_of(model, asked)
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    parts = [f"{word} {_some(names)}" for word, names in (("no", missing), ("an unknown", unexpected)) if names]
    both = [(name, state[name], own[name]) for name in own if name in state]
    wrong = [
        f"{n!r} of {list(new.shape)} where the model has {list(old.shape)}" for n, new, old in both if new.shape != old.shape
    ]
    if keep_dtype:
        wrong += [f"{n!r} of {new.dtype} where the model has {old.dtype}" for n, new, old in both if _kind(new) != _kind(old)]
    if parts or wrong:
        more = [f"{len(wrong) - 3} more that differ"] if len(wrong) > 3 else []
        found = "weights that do not fit: " + "; ".join([*parts, *wrong[:3], *more])
        raise SecateurError(asked, found, "build the architecture these weights were saved from")
    for alias, name in untie(own)[1].items():
        if not _same(state[alias], state[name]):
            raise SecateurError(
                asked, f"{alias!r} and {name!r} with different values", "build the model without tying these two"
            )
    if keep_dtype:
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in state and tensor.dtype != state[name].dtype:
                tensor.data = tensor.data.to(state[name].dtype)
    filled = OrderedDict(state)
    filled._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]  # some modules ask for its version
    try:
        model.load_state_dict(filled, strict=True)
    except (RuntimeError, ValueError) as error:
        raise SecateurError(asked, str(error).strip().splitlines()[-1].strip(), "give weights this model takes") from error


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    if one is other:
        return True
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and torch.equal(*bits)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name[:80]) for name in names[:3]) + more
