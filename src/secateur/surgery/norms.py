"""Normalisations that reduce over units: which ones a library writes out itself, and how to reduce over the kept ones.

RMS norms outside `torch.nn` are recognised by what they compute and not by their name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.core.plan import Cut, Keep
from secateur.surgery.fingerprint import survivors, tensors

_KNOWN: dict[type, bool] = {}


def is_rms_norm(module: nn.Module) -> bool:
    """Does `module` compute x / rms(x) times its one vector of weights (or one plus it)?

    Asked once per class, on a copy with random weights, since a class computes the same thing at every size.
    """
    kind = type(module)
    if kind.__module__.startswith("torch.nn"):
        return False
    parameters = list(module.parameters())
    if len(parameters) != 1 or parameters[0].dim() != 1 or next(module.children(), None) is not None:
        return False
    if kind not in _KNOWN:
        _KNOWN[kind] = _computes_rms(module, parameters[0])
    return _KNOWN[kind]


def _computes_rms(module: nn.Module, weight: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    vector = torch.rand(weight.shape, generator=generator) + 0.5
    x = torch.randn((3, *weight.shape), generator=generator)
    twin = copy.deepcopy(module, {id(weight): nn.Parameter(vector, requires_grad=False)})
    try:
        with torch.no_grad():
            out = twin(x)
    except Exception:  # whatever a module that is no norm does with this input
        return False
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return False
    rms = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))
    return any(torch.allclose(out.float(), rms * scale, rtol=1e-3, atol=1e-3) for scale in (vector, 1 + vector))


def watch_rms(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Make every RMS norm module of `model` whose weight is in `masks` run on its kept entries alone; the rest is zero."""
    for name, module in model.named_modules():
        mask = masks.get(f"{name}.weight")
        if mask is not None and is_rms_norm(module):
            module.register_forward_hook(_on_kept(mask))


def _on_kept(mask: Tensor):  # type: ignore[no-untyped-def]
    kept = torch.nonzero(mask).squeeze(1)

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if out.shape[-1] != len(mask):  # the call below
            return None
        index = kept.to(out.device)
        name, weight = next(iter(module.named_parameters()))
        small = functional_call(module, {name: weight[index]}, (args[0][..., index],))
        return torch.zeros_like(out).index_copy(-1, index, small)

    return hook


def norm_masks(cuts: Sequence[Cut], model: nn.Module) -> dict[str, Tensor]:
    """Names of tensors of inexact axes to the mask of their kept entries."""
    inexact = [cut for cut in cuts if not cut.exact]
    if not inexact:
        return {}
    named = dict(tensors(model))
    slots = {slot.tensor for cut in inexact for slot in cut.slots if slot.dim >= 0 and named[slot.tensor].dim() == 1}
    lengths = {(name, 0): named[name].shape[0] for name in slots}
    every = [_only(cut, slots) for cut in cuts]
    masks = {}
    for (name, _), entries in survivors(Keep(tuple(every)), lengths).items():
        mask = torch.zeros(lengths[name, 0], dtype=torch.bool)
        mask[torch.from_numpy(entries)] = True
        masks[name] = mask
    return masks


def _only(cut: Cut, names: set[str]) -> Cut:
    return replace(cut, slots=tuple(slot for slot in cut.slots if slot.tensor in names and slot.dim == 0))


class KeptNorms(TorchFunctionMode):
    """Layer, RMS and group norms whose weight belongs to a cut axis reduce over the kept entries alone.

    Attention that scales by the width it finds is given that of the entries which are not silenced.
    """

    def __init__(self, masks: dict[str, Tensor], named: dict[str, Tensor], gated: dict[str, Tensor]) -> None:
        super().__init__()
        self.masks = {id(gated.get(name, named[name])): mask for name, mask in masks.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in (functional.layer_norm, functional.rms_norm, functional.group_norm):
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            mask = self.masks.get(id(weight))
            if mask is not None:
                return _NORMS[func](mask.to(args[0].device), *args, **kwargs)
        elif func is functional.scaled_dot_product_attention and len(args) > 1 and kwargs.get("scale") is None:
            awake = (args[0].flatten(0, -2) != 0).any(0) & (args[1].flatten(0, -2) != 0).any(0)
            kwargs = {**kwargs, "scale": float(max(int(awake.sum()), 1)) ** -0.5}
        return func(*args, **kwargs)


def _layer_norm(mask, x, normalized_shape, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    n = mask.sum()
    mean = torch.where(mask, x, 0).sum(-1, keepdim=True) / n
    variance = torch.where(mask, (x - mean) ** 2, 0).sum(-1, keepdim=True) / n
    out = (x - mean) * torch.rsqrt(variance + eps) * weight
    return out if bias is None else out + bias


def _rms_norm(mask, x, normalized_shape, weight=None, eps=None):  # type: ignore[no-untyped-def]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    square = torch.where(mask, x * x, 0).sum(-1, keepdim=True) / mask.sum()
    return x * torch.rsqrt(square + eps) * weight


def _group_norm(mask, x, num_groups, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    shape = x.shape
    kept = mask.reshape(1, num_groups, -1, 1)
    y = x.reshape(shape[0], num_groups, shape[1] // num_groups, -1)
    n = (kept.sum(2, keepdim=True) * y.shape[-1]).clamp(min=1)
    mean = torch.where(kept, y, 0).sum((2, 3), keepdim=True) / n
    variance = torch.where(kept, (y - mean) ** 2, 0).sum((2, 3), keepdim=True) / n
    wide = [1, -1] + [1] * (len(shape) - 2)
    out = ((y - mean) * torch.rsqrt(variance + eps)).reshape(shape) * weight.reshape(wide)
    return out if bias is None else out + bias.reshape(wide)


_NORMS: dict[Any, Any] = {functional.layer_norm: _layer_norm, functional.rms_norm: _rms_norm, functional.group_norm: _group_norm}
