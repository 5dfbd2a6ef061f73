"""Carry out a plan: new, smaller tensors on the original classes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from secateur.core.attention import follow_heads
from secateur.core.errors import SecateurError
from secateur.core.factor import Factor
from secateur.core.mask import Mask
from secateur.core.plan import Keep, Plan, Step
from secateur.core.split import Split
from secateur.surgery import attributes
from secateur.surgery.copies import aliases, clone, duplicate, forget
from secateur.surgery.factor import factor_, without
from secateur.surgery.fingerprint import holders, survivors, tensors
from secateur.surgery.mask import copies, mask_
from secateur.surgery.optimizer import carry
from secateur.surgery.split import split_, unsplit

Changes = Mapping[str, Mapping[int, np.ndarray]]
"""Tensor name to {dim: entries that stay}."""


def apply(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy of `model` after every step of `plan`; it never holds more than the small tensors, and `model` is untouched."""
    plan.check(model)
    if not plan.steps:
        return duplicate(model)
    first = plan.steps[0]
    if isinstance(first, Factor):
        small = clone(model, without(first, model))
        factor_(first, small)
    elif isinstance(first, Mask):
        small = forget(clone(model, copies(model)))
        mask_(first, small)
    elif isinstance(first, Split):
        small = forget(clone(model, unsplit(first, model)))
        split_(first, small)
    else:
        small = _copy_cut(first, model)
    for step in plan.steps[1:]:
        _do_in_place(step, small)
    return small


def apply_(plan: Plan, model: nn.Module, *, optimizer: optim.Optimizer | None = None) -> nn.Module:
    """Cut `model` itself, step by step; `optimizer` holds the new parameters afterwards, with its state cut alike."""
    plan.check(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer is not None else set()
    if held and held.isdisjoint(id(p) for p in model.parameters()):
        found = "an optimizer that holds none of its parameters"
        raise SecateurError("a plan applied to this model in place", found, "give the one that trains this model, or none")
    _rehearse(plan, model)
    for step in plan.steps:
        _do_in_place(step, model, optimizer)
    return model


def _rehearse(plan: Plan, model: nn.Module) -> None:
    """Raise what a later step of `plan` would raise, while no earlier one has changed `model`.

    On the meta device, and where weights are not finite, which no product can stand for, on a copy. A model that cannot be
    copied goes without.
    """
    if not any(isinstance(step, Factor) for step in plan.steps[1:]):
        return
    with suppress(TypeError, RuntimeError, ValueError, AttributeError, PicklingError):
        memo = {id(tensor): like(tensor, torch.empty_like(tensor, device="meta")) for _, tensor in tensors(model)}
        bones = clone(model, memo)
        for step in plan.steps:
            _do_in_place(step, bones)
        if not all(bool(tensor.isfinite().all()) for _, tensor in tensors(model) if not tensor.is_meta):
            apply(plan, model)


def _do_in_place(step: Step, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
    if isinstance(step, Factor):
        factor_(step, model, optimizer)
    elif isinstance(step, Mask):
        mask_(step, model, optimizer)
        forget(model)
    elif isinstance(step, Split):
        split_(step, model, optimizer)
    else:
        _cut_in_place(step, model, optimizer)


def changes(step: Keep, model: nn.Module) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, int]]:
    """What stays of each tensor, and the new value of each attribute."""
    lengths = {(name, dim): n for name, tensor in tensors(model) for dim, n in enumerate(tensor.shape)}
    for cut in step.cuts:
        for slot in cut.slots:
            if slot.dim < 0:
                held = lengths[slot.tensor, -1] = attributes.read(model, slot.tensor)
                if (last := int(slot.of(np.arange(cut.units)).max())) >= held:
                    found = f"{slot.tensor} = {held} where the plan counts {last + 1}"
                    raise SecateurError("a plan applied to this model", found, "build the model the plan was made for")
    kept: dict[str, dict[int, np.ndarray]] = {}
    numbers: dict[str, int] = {}
    for (name, dim), entries in survivors(step, lengths).items():
        if dim < 0:
            numbers[name] = len(entries)
        else:
            kept.setdefault(name, {})[dim] = entries
    return kept, numbers


def cut_tensor(tensor: Tensor, dims: Mapping[int, np.ndarray]) -> Tensor:
    """`tensor` with only the given entries of the given dims, as a tensor of its own."""
    with torch.no_grad():
        out = tensor.detach()
        for dim, entries in dims.items():
            if tensor.device.type == "meta":
                shape = list(out.shape)
                shape[dim] = len(entries)
                out = out.new_empty(shape)
            else:
                out = out.index_select(dim, torch.from_numpy(entries).to(out.device))
        if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)
        return out if dims else out.clone()


def like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as the parameter, or the buffer, that `old` was."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _copy_cut(step: Keep, model: nn.Module) -> nn.Module:
    kept, numbers = changes(step, model)
    memo: dict[int, Tensor] = {}
    for name, tensor in tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = like(tensor, cut_tensor(tensor, kept.get(name, {})))
    small = clone(model, memo)
    _settle(small, kept, numbers)
    return small


def _cut_in_place(step: Keep, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
    """Replace tensor after tensor, so that no more than one is held twice (all of them, where an optimizer knows them)."""
    kept, numbers = changes(step, model)
    places: dict[int, list[tuple[str, Any, Any]]] = {}
    for place in (*holders(model), *aliases(model)):
        places.setdefault(id(place[1][place[2]]), []).append(place)
    replaced = []
    for tied in places.values():
        name, table, last = tied[0]
        dims = kept.get(name)
        if dims:
            old = table[last]
            new = like(old, cut_tensor(old, dims))
            for _, table, last in tied:
                table[last] = new
            if optimizer is not None:
                replaced.append((old, new, dims))
            del old, new
    _settle(model, kept, numbers)
    if optimizer is not None:
        carry(optimizer, replaced)


def _settle(model: nn.Module, kept: Changes, numbers: Mapping[str, int]) -> None:
    """Attributes follow the tensors."""
    touched = {name.rpartition(".")[0] for name in kept} | {path.rpartition(".")[0] for path in numbers}
    follow_heads(model, touched)
    for path, number in numbers.items():
        attributes.write(model, path, number)
    for name, module in model.named_modules():
        if name in touched:
            attributes.follow(module)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights() if hasattr(module, "_init_flat_weights") else None
    forget(model)
