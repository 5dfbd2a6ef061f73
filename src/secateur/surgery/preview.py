"""A plan seen without surgery: the weights that read a dropped unit are zero.

A unit matters only through its readers, so zeroing them computes what the cut model computes, batch norm included.
Where a normalisation reduces over the units, it is made to reduce over the kept ones. Weights that become products are
replaced by their projections; masked entries and weights between workers are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor
from secateur.core.mask import Mask
from secateur.core.plan import Cut, Keep, Plan
from secateur.core.split import Split
from secateur.surgery.apply import apply
from secateur.surgery.copies import duplicate
from secateur.surgery.factor import projected
from secateur.surgery.fingerprint import tensors
from secateur.surgery.mask import masks_by_name
from secateur.surgery.norms import KeptNorms, norm_masks, watch_norms
from secateur.surgery.split import masks_of


class Preview(nn.Module):
    """Computes what `plan.apply(model)` would, at full size.

    Shares the parameters of `model` (later changes show) and owns copies of its buffers, so batch norm can be
    re-estimated on it; projections are those of the weights it was made with. A plan of several steps is cut up to its
    last one, and that one is previewed.
    """

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        super().__init__()
        plan.check(model)
        if len(plan.steps) > 1:
            model = apply(Plan(plan.fingerprint, plan.steps[:-1]), model)
        self.model = duplicate(model, {id(p): p for p in model.parameters()})
        last = plan.steps[-1] if plan.steps else None
        self.cuts = [c for c in last.cuts if len(c.kept) < c.units] if isinstance(last, Keep) else []
        self._projected = projected(last, self.model) if isinstance(last, Factor) else {}
        self._supports = masks_by_name(last, self.model) if isinstance(last, Mask) else {}
        self._blocks = masks_of(last, self.model) if isinstance(last, Split) else {}
        self._masks = dict(_masks(self.cuts, self.model))
        self._norms = norm_masks(self.cuts, self.model)
        watch_norms(self.model, self._norms)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model with every dropped unit silenced."""
        named = dict(tensors(self.model))
        gated = dict(self._projected)
        for name, support in self._supports.items():
            gated[name] = named[name].masked_fill(~support.to(named[name].device), 0)
        gated |= {name: named[name] * mask.to(named[name]) for name, mask in self._blocks.items()}
        for name, masks in self._masks.items():
            value = named[name]
            for mask in masks:
                value = value * mask.to(value)
            gated[name] = value
        with KeptNorms(self._norms, named, gated, self._masks) if any(not cut.exact for cut in self.cuts) else nullcontext():
            return functional_call(self.model, gated, args, kwargs, tie_weights=False)


def gates(plan: Plan, model: nn.Module) -> dict[str, Tensor]:
    """Tensor name to the zeros and ones, broadcast along its dims, that silence what a plan of one keep step drops."""
    plan.check(model)
    step = plan.steps[0] if plan.steps else Keep(())
    if len(plan.steps) > 1 or not isinstance(step, Keep):
        raise SecateurError("gates for a plan", "more than one step that drops units", "preview the plan")
    masks = _masks([cut for cut in step.cuts if len(cut.kept) < cut.units], model)
    return {name: reduce(torch.mul, found) for name, found in masks}


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
