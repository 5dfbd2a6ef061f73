"""Sparse tensors in an artefact: the values that stay, in row-major order; their positions are the masks of the plan.

Nothing is stored twice. Where a later step cuts a masked tensor, the mask it then has follows from the plan. Since format 2 the
bytes are those of `io/packing.py`; in format 1 the tensor `secateur.mask/STEP/TENSOR` holds the packed mask of a step, and
`TENSOR` the values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.mask import MASK_PREFIX
from secateur.core.plan import Plan
from secateur.surgery import masks_after

_AGAIN = "copy or download it again"


def condense(
    tensors: Mapping[str, Tensor], aliases: Mapping[str, str], plan: Plan, asked: str
) -> tuple[dict[str, Tensor], set[str]]:
    """`tensors` with the values alone (C,) of every tensor the plan makes sparse, and the names of these.

    Raises `SecateurError` where a value outside the support is not zero: it would be lost.
    """
    found, masks = dict(tensors), _masks(plan, aliases)
    for name, mask in masks.items():
        flat = found[name].detach().reshape(-1)
        kept = torch.from_numpy(mask.reshape(-1)).to(flat.device)
        if bool(flat[~kept].any()):
            do = "set them to zero again with plan.apply, or save the model without the plan"
            raise SecateurError(asked, f"{name!r} with values other than zero where the plan has zeros", do)
        found[name] = flat[kept]
    return found, set(masks)


def expand(state: Mapping[str, Tensor], aliases: Mapping[str, str], plan: Plan, asked: str) -> dict[str, Tensor]:
    """The inverse: tensors in their shapes, exact zeros outside their supports."""
    found = dict(state)
    for name, mask in _masks(plan, aliases).items():
        values, positions = found.get(name), np.flatnonzero(mask)
        if values is None or values.shape != (len(positions),):
            what = "no values" if values is None else f"values of shape {list(values.shape)}"
            raise SecateurError(asked, f"{what} for {name!r}, of which {len(positions)} entries stay", _AGAIN)
        whole = values.new_zeros(mask.size)
        whole[torch.from_numpy(positions)] = values
        found[name] = whole.reshape(mask.shape)
    return found


def as_codes(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The codes among the tensors of a file of format 1."""
    return {name: t.numpy() for name, t in state.items() if name.startswith(MASK_PREFIX) and t.dtype == torch.uint8}


def _masks(plan: Plan, aliases: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Masks under the names by which tied tensors are stored."""
    found: dict[str, np.ndarray] = {}
    for name, mask in masks_after(plan).items():
        real = aliases.get(name, name)
        found[real] = found[real] & mask if real in found else mask
    return found
