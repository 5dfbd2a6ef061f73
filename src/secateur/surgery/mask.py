"""Carry out a mask step: entries outside the support become exact zeros."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn, optim

from secateur.core.factor import Factor
from secateur.core.mask import Mask, Support, require_fit
from secateur.core.plan import Keep, Plan
from secateur.surgery.fingerprint import fingerprint, lengths_of, real_slots, shapes_after, survivors, tensors


def mask_(step: Mask, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
    """Set what lies outside the supports to zero, in `model` and in the state (momentum, moments) of `optimizer`.

    Raises `SecateurError`, before anything changes, where a support does not have its tensor's shape.
    """
    require_fit(step, fingerprint(model))
    named = dict(tensors(model))
    with torch.no_grad():
        for support in step.supports:
            tensor = named[support.tensor]
            if tensor.is_meta:
                continue
            gone = ~kept(support, tensor.device)
            tensor.masked_fill_(gone, 0)
            for value in optimizer.state.get(tensor, {}).values() if optimizer is not None else ():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    value.masked_fill_(gone, 0)


def kept(support: Support, device: torch.device | str = "cpu") -> Tensor:
    """True where an entry stays, in the tensor's shape."""
    return torch.from_numpy(support.mask()).to(device)


def copies(model: nn.Module) -> dict[int, Tensor]:
    """Every tensor of `model`, by id, with a copy of its own."""
    memo: dict[int, Tensor] = {}
    for _, tensor in tensors(model):
        if id(tensor) not in memo:
            copy = tensor.detach().clone()
            memo[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    return memo


def masks_by_name(step: Mask, model: nn.Module) -> dict[str, Tensor]:
    """Name to mask of every tensor of `step`, under each of its names."""
    require_fit(step, fingerprint(model))
    named = dict(tensors(model))
    found: dict[int, Tensor] = {}
    for support in step.supports:
        tensor = named[support.tensor]
        mask = kept(support, tensor.device)
        found[id(tensor)] = found[id(tensor)] & mask if id(tensor) in found else mask
    return {name: found[id(tensor)] for name, tensor in named.items() if id(tensor) in found}


def masks_after(plan: Plan) -> dict[str, np.ndarray]:
    """Name to mask (True where an entry may be other than zero) of the tensors that are sparse once all steps are done.

    Later cuts cut masks with their tensors. A sparse weight that becomes a product is none afterwards.
    """
    masks: dict[str, np.ndarray] = {}
    for number, step in enumerate(plan.steps):
        if isinstance(step, Mask):
            for support in step.supports:
                own = support.mask()
                masks[support.tensor] = masks[support.tensor] & own if support.tensor in masks else own
        elif isinstance(step, Factor) and masks:
            masks = _through(step, masks)
        elif isinstance(step, Keep) and masks:
            shapes = shapes_after(Plan(plan.fingerprint, plan.steps[:number]))
            for (name, dim), entries in survivors(real_slots(step), lengths_of(shapes)).items():
                if name in masks:
                    masks[name] = masks[name].take(entries, dim)
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _through(step: Factor, masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks of the tensors that `step` leaves; a bias goes to the last layer of its product."""
    after = dict(masks)
    for product in step.products:
        after.pop(f"{product.module}.weight", None)
        if f"{product.module}.bias" in after:
            last = 2 if product.format == "tucker2" else 1
            after[f"{product.module}.{last}.bias"] = after.pop(f"{product.module}.bias")
    return after
