"""A plan seen without surgery: the weights that read a dropped unit are zero.

A unit matters only through its readers, so zeroing them computes what the cut model computes, batch norm included.
Where a normalisation reduces over the units, it is made to reduce over the kept ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.core.plan import Cut, Plan
from secateur.surgery.apply import apply
from secateur.surgery.fingerprint import survivors, tensors


class Preview(nn.Module):
    """Computes what `plan.apply(model)` would, at full size.

    Shares the parameters of `model` (later changes show) and owns copies of its buffers, so batch norm can be
    re-estimated on it. A plan of several steps is cut up to its last one, and that one is previewed.
    """

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        super().__init__()
        plan.check(model)
        if len(plan.steps) > 1:
            model = apply(Plan(plan.fingerprint, plan.steps[:-1]), model)
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.cuts = [cut for step in plan.steps[-1:] for cut in step.cuts if len(cut.kept) < cut.units]
        self._masks = dict(_masks(self.cuts, self.model))
        self._norms = _norm_masks(self.cuts, self.model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model with every dropped unit silenced."""
        named = dict(tensors(self.model))
        gated = {}
        for name, masks in self._masks.items():
            value = named[name]
            for mask in masks:
                value = value * mask.to(value)
            gated[name] = value
        with _KeptNorms(self._norms, named, gated) if self._norms else nullcontext():
            return functional_call(self.model, gated, args, kwargs, tie_weights=False)


def _masks(cuts: list[Cut], model: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Tensor name to the 0/1 masks, one per dim, that silence the dropped units."""
    named = dict(tensors(model))
    found: dict[str, dict[int, np.ndarray]] = {}
    for cut in cuts:
        dropped = np.asarray(cut.dropped)
        for slot in cut.slots:
            if slot.dim < 0 or (cut.gate == "read" and slot.role != "read"):
                continue
            mask = found.setdefault(slot.tensor, {}).setdefault(slot.dim, np.ones(named[slot.tensor].shape[slot.dim]))
            mask[slot.of(dropped).reshape(-1)] = 0
    for name, dims in found.items():
        rank = named[name].dim()
        yield name, [_along(torch.from_numpy(mask), dim, rank) for dim, mask in dims.items()]


def _along(mask: Tensor, dim: int, rank: int) -> Tensor:
    return mask.reshape([-1 if i == dim else 1 for i in range(rank)])


def _norm_masks(cuts: list[Cut], model: nn.Module) -> dict[str, Tensor]:
    """Names of tensors of inexact axes to the mask of their kept entries."""
    from secateur.core.plan import Keep

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
    from dataclasses import replace

    return replace(cut, slots=tuple(slot for slot in cut.slots if slot.tensor in names and slot.dim == 0))


class _KeptNorms(TorchFunctionMode):
    """Layer, RMS and group norms whose weight belongs to a cut axis reduce over the kept entries alone."""

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


_NORMS = {functional.layer_norm: _layer_norm, functional.rms_norm: _rms_norm, functional.group_norm: _group_norm}
