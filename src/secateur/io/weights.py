"""Weights that others saved: plain safetensors, or what torch.save wrote of a state dict. No code in them is run."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.io.container import header_of, tensors_of
from secateur.io.files import read_bytes, shown
from secateur.io.state import fill_, require_dense, require_model, state_of, untie
from secateur.surgery import duplicate

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_PICKLES = (b"PK\x03\x04", b"\x80")


def load_weights(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """A copy of `into` filled with the weights at `path`; the model's dtypes stay, `into` is untouched.

    Reads safetensors and state dicts of `torch.save`, bare or under "state_dict", "model_state_dict", "model" or "net";
    the prefixes of DataParallel ("module.") and torch.compile ("_orig_mod.") go. Of tied tensors one is enough.
    Raises `SecateurError` where the file is damaged, holds objects other than tensors (they would run code), holds NaN,
    or does not fit, with the names that are missing and unexpected.
    """
    asked = f"loading the weights {shown(path)}"
    require_model(into, asked)
    state = _read(read_bytes(path, "weights"), asked)
    model = duplicate(into)
    own = state_of(model, asked)
    state = _strip(state, own)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}  # files older than the counter, and many after it, do without
    for alias, name in untie(own)[1].items():
        if (alias in state) != (name in state):
            state[alias] = state[name] = state[alias if alias in state else name]
    fill_(model, state, asked)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise SecateurError(asked, f"NaN in {name!r}", "give weights of a training that did not diverge")
    return model


def _read(data: bytes, asked: str) -> dict[str, Tensor]:
    """Name to tensor in safetensors or pickled `data`."""
    if not data.startswith(_PICKLES) or data[8:9] == b"{":
        if data.startswith((b"version https://git-lfs", b"<")):
            raise SecateurError(
                asked, "text in place of weights (a download that failed, or a Git LFS pointer)", "download it again"
            )
        if "plan" in header_of(data, asked).metadata:
            raise SecateurError(asked, "a compressed model with its plan", "use secateur.load for it")
        return tensors_of(data, asked)
    state = _unwrap(_unpickle(data, asked))
    if not isinstance(state, Mapping) or not state:
        found = (
            "no tensors" if isinstance(state, Mapping) else f"an object of type {type(state).__name__} in place of a state dict"
        )
        raise SecateurError(asked, found, "save model.state_dict() and give that file")
    for name, value in state.items():
        require_dense(str(name), value, asked)
    return {str(name): value for name, value in state.items()}


def _unpickle(data: bytes, asked: str) -> Any:
    do = "save model.state_dict() and give that file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # a damaged pickle fails in any way there is: struct, index, key, attribute, recursion, memory
    except Exception as error:
        text = str(error)
        if names := re.search(r"GLOBAL (\S{1,80})|nsupported class (\S{1,80})|Can only \w+ (\S{1,80})", text):
            found = f"{next(filter(None, names.groups()))}, an object that could run code"
            raise SecateurError(asked, found, do) from error
        if "TorchScript" in text:
            raise SecateurError(asked, "a TorchScript program", do) from error
        if "weights_only" in text.lower() or "weights only" in text.lower():
            raise SecateurError(asked, "a checkpoint that holds more than tensors, or is damaged", do) from error
        raise SecateurError(
            asked, f"a damaged or truncated checkpoint ({type(error).__name__})", "copy or download it again"
        ) from error


def _unwrap(value: Any) -> Any:
    """The state dict inside a training checkpoint."""
    if isinstance(value, Mapping) and not all(isinstance(part, Tensor) for part in value.values()):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
        return value if inner is None else inner
    return value


def _strip(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes of wrappers, unless the model's own names begin so."""
    for _ in range(4):
        for prefix in _PREFIXES:
            if state and all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in own):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
