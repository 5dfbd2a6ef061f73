"""Normalisations that reduce over units: which ones a library writes out itself, and how to reduce over the kept ones.

RMS norms outside `torch.nn` are recognised by what they compute and not by their name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secateur.core.plan import Cut, Keep
from secateur.surgery.fingerprint import survivors, tensors

_KNOWN: dict[type, bool] = {}
FUNCTIONAL = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Their subclasses call the functions that `KeptNorms` stands in for."""


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


def is_norm(module: nn.Module) -> bool:
    """Has `module`, of another library, vectors of one length and nothing else, as normalisations have (and their activation)?

    Where such a module reduces over as many units, a cut is its own forward on the kept ones.
    """
    if type(module).__module__.startswith("torch.nn") or not module._parameters or isinstance(module, FUNCTIONAL):
        return False
    if any(child is not None and next(child.parameters(), None) is not None for child in module._modules.values()):
        return False
    shapes = {tuple(p.shape) for p in module._parameters.values() if p is not None}
    return len(shapes) == 1 and len(shape := shapes.pop()) == 1 and shape[0] > 1


def watch_norms(model: nn.Module, masks: Mapping[str, Tensor]) -> list[RemovableHandle]:
    """Make every norm module of `model` whose vectors are in `masks` run on its kept entries alone; the rest is zero.

    Removing the returned handles undoes it.
    """
    handles = []
    for name, module in model.named_modules():
        if is_norm(module):
            mask = masks.get(f"{name}.{next(iter(module._parameters))}".lstrip("."))
            if mask is not None:
                handles.append(module.register_forward_hook(_on_kept(mask)))
    return handles


def _on_kept(mask: Tensor):  # type: ignore[no-untyped-def]
    kept = torch.nonzero(mask).squeeze(1)
    busy = False

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        nonlocal busy
        if busy or out.shape != args[0].shape:
            return None
        busy = True
        index = kept.to(out.device)
        try:
            dim = _unit_dim(module, args[0], len(mask))
            other = (args[0] + 1).index_copy(dim, index, args[0].index_select(dim, index))
            if torch.equal(module(other, *args[1:]).index_select(dim, index), out.index_select(dim, index)):
                return None  # each entry is on its own
            cut = {name: parameter[index] for name, parameter in module.named_parameters()}
            twin = _told(module, len(mask), len(kept))
            small = functional_call(twin, cut, (args[0].index_select(dim, index), *args[1:]))
        finally:
            busy = False
        return torch.zeros_like(out).index_copy(dim, index, small)

    return hook


def _told(module: nn.Module, before: int, after: int) -> nn.Module:
    """`module`, its tensors shared, with the attributes that hold the length of its vectors changed."""
    twin = copy.copy(module)
    for key, value in vars(module).items():
        if type(value) is int and value == before:
            vars(twin)[key] = after
        elif isinstance(value, (tuple, list)) and list(value) == [before]:
            vars(twin)[key] = type(value)([after])
    return twin


def _unit_dim(module: nn.Module, x: Tensor, units: int) -> int:
    """The dim of `x` that the module's vectors lie along: where the others can have any size."""
    dims = [dim for dim, n in enumerate(x.shape) if n == units]
    for dim in dims[:-1]:
        shape = [(11, 13, 17, 19, 23)[i % 5] for i in range(x.dim())]
        shape[dim] = units
        try:
            if module(x.new_ones(shape)).shape == torch.Size(shape):
                return dim
        except RuntimeError:
            continue
    return dims[-1]


def norm_masks(cuts: Sequence[Cut], model: nn.Module) -> dict[str, Tensor]:
    """Names of tensors of inexact axes to the mask of their kept entries, in the tensor's shape.

    They are vectors, and the weights of layer norms over several dims.
    """
    inexact = [cut for cut in cuts if not cut.exact]
    if not inexact:
        return {}
    named = dict(tensors(model))
    wide = {
        f"{name}.weight".lstrip(".") for name, module in model.named_modules() if isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    }
    held = [slot for cut in inexact for slot in cut.slots if slot.dim >= 0]
    slots = {slot.tensor for slot in held if named[slot.tensor].dim() == 1 or slot.tensor in wide}
    lengths = {(name, dim): n for name in slots for dim, n in enumerate(named[name].shape)}
    masks = {name: torch.ones(named[name].shape, dtype=torch.bool) for name in slots}
    for (name, dim), entries in survivors(Keep(tuple(_only(cut, slots) for cut in cuts)), lengths).items():
        kept = torch.zeros(lengths[name, dim], dtype=torch.bool)
        kept[torch.from_numpy(entries)] = True
        masks[name] &= kept.reshape([-1 if i == dim else 1 for i in range(masks[name].dim())])
    return masks


def _only(cut: Cut, names: set[str]) -> Cut:
    return replace(cut, slots=tuple(slot for slot in cut.slots if slot.tensor in names and slot.dim >= 0))


class KeptNorms(TorchFunctionMode):
    """Layer, RMS and group norms whose weight belongs to a cut axis reduce over the kept entries alone.

    A mask of real numbers weighs the entries in mean and variance; zeros and ones leave out and keep.

    Attention that scales by the width it finds is given that of the entries which are not silenced, and kernels that are
    standardised (Qiao et al., 2019) are standardised over those.
    """

    def __init__(
        self, masks: dict[str, Tensor], named: dict[str, Tensor], gated: dict[str, Tensor], gates: dict[str, list[Tensor]]
    ) -> None:
        super().__init__()
        self.gates = {gated[name].untyped_storage().data_ptr(): (gated[name].shape, gate) for name, gate in gates.items()}
        self.masks = {id(gated.get(name, named[name])): mask for name, mask in masks.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in (functional.layer_norm, functional.rms_norm, functional.group_norm):
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            mask = self.masks.get(id(weight))
            if mask is not None:
                return _NORMS[func](mask.to(args[0].device), *args, **kwargs)
            if weight is None and func is not functional.group_norm:
                awake = (args[0].flatten(0, -2) != 0).any(0)
                return _NORMS[func](awake, *args, **kwargs)
        elif func is functional.batch_norm and (gate := self.gates.get(args[0].untyped_storage().data_ptr())):
            kept = torch.ones(gate[0])
            for mask in gate[1]:
                kept = kept * mask.to(kept)
            return _standardised(kept.to(args[0].device), *args, **kwargs)
        elif func is functional.scaled_dot_product_attention and len(args) > 1 and kwargs.get("scale") is None:
            awake = (args[0].flatten(0, -2) != 0).any(0) & (args[1].flatten(0, -2) != 0).any(0)
            kwargs = {**kwargs, "scale": float(max(int(awake.sum()), 1)) ** -0.5}
        return func(*args, **kwargs)


def _standardised(kept, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):  # type: ignore[no-untyped-def]
    """Batch norm of a kernel seen as (1, O, I * K * K), over its entries that are not silenced; those become zero."""
    kept = kept.reshape(x.shape).to(x)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    n = kept.sum(dims, keepdim=True).clamp(min=1)
    mean = (x * kept).sum(dims, keepdim=True) / n
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / n
    wide = [1, -1] + [1] * (x.dim() - 2)
    out = (x - mean) * torch.rsqrt(variance + eps) * kept
    out = out if weight is None else out * weight.reshape(wide)
    return out if bias is None else out + bias.reshape(wide)


def _layer_norm(mask, x, normalized_shape, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    mask, dims = mask.to(x.dtype), tuple(range(-mask.dim(), 0))
    n = mask.sum()
    mean = (mask * x).sum(dims, keepdim=True) / n
    variance = (mask * (x - mean) ** 2).sum(dims, keepdim=True) / n
    out = (x - mean) * torch.rsqrt(variance + eps) * (mask if weight is None else weight)
    return out if bias is None else out + bias


def _rms_norm(mask, x, normalized_shape, weight=None, eps=None):  # type: ignore[no-untyped-def]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mask, dims = mask.to(x.dtype), tuple(range(-mask.dim(), 0))
    square = (mask * x * x).sum(dims, keepdim=True) / mask.sum()
    return x * torch.rsqrt(square + eps) * (mask if weight is None else weight)


def _group_norm(mask, x, num_groups, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
    shape = x.shape
    kept = mask.to(x.dtype).reshape(1, num_groups, -1, 1)
    y = x.reshape(shape[0], num_groups, shape[1] // num_groups, -1)
    n = (kept.sum(2, keepdim=True) * y.shape[-1]).clamp(min=1)
    mean = (kept * y).sum((2, 3), keepdim=True) / n
    variance = (kept * (y - mean) ** 2).sum((2, 3), keepdim=True) / n
    wide = [1, -1] + [1] * (len(shape) - 2)
    out = ((y - mean) * torch.rsqrt(variance + eps)).reshape(shape) * weight.reshape(wide)
    return out if bias is None else out + bias.reshape(wide)


_NORMS: dict[Any, Any] = {
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.group_norm: _group_norm,
}
