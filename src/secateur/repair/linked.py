"""Which layers of a smaller model lost inputs, and where what is left lay before.

Shape legend: O outputs, D columns of the matrix of a layer (see `measure.layers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.plan import Keep, Plan
from secateur.core.protocols import Batches
from secateur.measure.layers import columns, is_matrix, matrix
from secateur.measure.observe import call_order
from secateur.surgery.fingerprint import real_slots, survivors


@dataclass(frozen=True, eq=False)
class Linked:
    """A layer of the smaller model that reads less than before.

    `columns` (D') and `rows` (O'): where the inputs it has and the outputs it writes lie in the matrix of `source`.
    `own` (D'): where those inputs lie in its own matrix. `norm`: the batch norms, before and after, that take its output.
    """

    name: str
    layer: nn.Module
    source: nn.Module
    columns: Tensor
    rows: Tensor
    own: Tensor
    norm: tuple[_BatchNorm, _BatchNorm] | None

    @property
    def has_intercept(self) -> bool:
        """Is there a place for a constant: a bias, or the running mean of a batch norm behind?"""
        return isinstance(self.layer.bias, Tensor) or self.norm is not None

    def weight(self) -> Tensor:
        """What the layer holds now for the inputs it has; (O', D') float64 on the CPU."""
        return matrix(self.layer).double().cpu()[:, self.own]

    def write_(self, weight: Tensor, intercept: Tensor | None) -> None:
        """Set the weights (O', D') and the constant (O',) of the layer; without a bias, by the batch norm behind it."""
        with torch.no_grad():
            held = cast(Tensor, self.layer.weight)
            flat = matrix(self.layer).clone()
            flat[:, self.own] = weight.to(flat)
            held.copy_(flat.reshape(held.shape))
            if intercept is None:
                return
            if isinstance(self.layer.bias, Tensor):
                self.layer.bias.copy_(intercept)
            elif self.norm is not None:
                old, new = (cast(Tensor, norm.running_mean) for norm in self.norm)
                new.copy_(old.double().cpu()[self.rows] - intercept)


def linked(before: nn.Module, after: nn.Module, batches: Batches, plan: Plan | None = None) -> list[Linked]:
    """The layers of `after` that read less than in `before`, in the order in which the forward calls them.

    With `plan`, the one that led from `before` to `after`. Without, both have the same shapes, and inputs whose weights are
    all zero in `after` count as lost (a mask). Linear layers and convolutions without groups are found; one batch is run.
    Raises `SecateurError` where shapes do not agree.
    """
    known = {name: m for name, m in after.named_modules() if is_matrix(m) and is_matrix(before.get_submodule(name))}
    norms = {name: m for name, m in after.named_modules() if isinstance(m, _BatchNorm) and isinstance(m.running_mean, Tensor)}
    order, behind = call_order(after, known | norms, batches)
    kept = kept_entries(plan, before) if plan is not None else {}
    found = []
    for name in order:
        if name not in known:
            continue
        layer, source = known[name], before.get_submodule(name)
        old, new = cast(Tensor, source.weight).shape, cast(Tensor, layer.weight)
        rows = kept.get((f"{name}.weight", 0), np.arange(old[0]))
        channels = kept.get((f"{name}.weight", 1), np.arange(old[1]))
        if (len(rows), len(channels)) != tuple(new.shape[:2]):
            do = "give the plan that led from the first model to the second"
            raise SecateurError(f"a repair of {name!r}", f"weights of shapes {list(old)} and {list(new.shape)}", do)
        own = torch.arange(matrix(layer).shape[1])
        at = columns(source, torch.from_numpy(channels)[:, None]).flatten()
        if plan is None:
            own = at = (matrix(layer) != 0).any(0).nonzero().flatten().cpu()
        norm = (
            (cast(_BatchNorm, before.get_submodule(behind[name])), norms[behind[name]]) if behind.get(name) in norms else None
        )
        if len(at) < matrix(source).shape[1]:
            found.append(Linked(name, layer, source, at, torch.from_numpy(rows), own, norm))
    return found


def kept_entries(plan: Plan, before: nn.Module) -> dict[tuple[str, int], np.ndarray]:
    """(tensor, dim) to the entries of `before` that are left after every step of `plan`."""
    plan.check(before)
    kept = {(name, dim): np.arange(n) for name, shape in plan.fingerprint.items() for dim, n in enumerate(shape)}
    for step in plan.steps:
        if not isinstance(step, Keep):
            found = f"a plan with a {type(step).__name__.lower()} step"
            raise SecateurError("a repair from what layers read", found, "repair the cut before products and masks")
        for place, entries in survivors(real_slots(step), {place: len(entries) for place, entries in kept.items()}).items():
            kept[place] = kept[place][entries]
    return kept
