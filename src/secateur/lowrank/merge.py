"""From products back to one layer each: the way from a decomposition into a training that keeps its ranks.

Shape legend: none.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor
from secateur.core.plan import Plan
from secateur.surgery import expand


@torch.no_grad()
def merge_(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Make the dense `model` compute what `small`, which `plan` made of it, computes: products multiplied out, the rest copied.

    Its weights then have the ranks of the plan, so TRP with `ranks=` goes on from products that `repair.whitened` fitted to
    data, in place of those of the bare weights. Raises `SecateurError` for a plan that is not one factor step.
    """
    if len(plan.steps) != 1 or not isinstance(plan.steps[0], Factor):
        raise SecateurError("products multiplied out", "a plan that is not one factor step", "give the plan that made them")
    plan.check(model)
    values = small.state_dict()
    for product in plan.steps[0].products:
        layers = list(cast(Any, small.get_submodule(product.module)))
        weight = cast(torch.Tensor, model.get_submodule(product.module).weight)
        whole = expand([layer.weight.double() for layer in layers], product).to(weight.dtype)
        values = {name: value for name, value in values.items() if not name.startswith(f"{product.module}.")}
        values[f"{product.module}.weight"] = whole.reshape(weight.shape)
        if layers[-1].bias is not None:
            values[f"{product.module}.bias"] = layers[-1].bias
    model.load_state_dict(values)
