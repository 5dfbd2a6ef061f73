"""From products back to one layer each: the way from a decomposition into a training that keeps its ranks.

Shape legend: none.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product, piece_shapes
from secateur.core.plan import Plan
from secateur.surgery import expand
from secateur.surgery.fingerprint import mismatches


@torch.no_grad()
def merge_(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Make the dense `model` compute what `small`, which `plan` made of it, computes: products multiplied out, the rest copied.

    Its weights then have the ranks of the plan, so TRP with `ranks=` goes on from products that `repair.whitened` fitted to
    data, in place of those of the bare weights. A plan without steps has everything copied.

    Raises `SecateurError`, before `model` changes, for a plan that is not one factor step and for a network it did not make.
    """
    asked, do = "products multiplied out", "give the network that was made by this plan"
    if plan.steps and (len(plan.steps) > 1 or not isinstance(plan.steps[0], Factor)):
        raise SecateurError(asked, "a plan that is not one factor step", "give the plan that made them")
    plan.check(model)
    products = [product for step in plan.steps if isinstance(step, Factor) for product in step.products]
    try:
        values = _dense(model, small, products)
    except (AttributeError, TypeError, RuntimeError, IndexError) as error:
        raise SecateurError(asked, f"a network without the products of the plan ({error})", do) from error
    shapes = [{name: tuple(v.shape) for name, v in of.items() if isinstance(v, Tensor)} for of in (model.state_dict(), values)]
    if wrong := mismatches(shapes[0], shapes[1]):
        raise SecateurError(asked, "; ".join(wrong[:3]), do)
    model.load_state_dict(values)


def _dense(model: nn.Module, small: nn.Module, products: list[Product]) -> dict[str, Any]:
    """The state of `small` with every product as one layer of `model`."""
    values = small.state_dict()
    for product in products:
        layers = list(cast(Any, small.get_submodule(product.module)))
        weight = cast(torch.Tensor, model.get_submodule(product.module).weight)
        kernels = [shape[2:] for shape in piece_shapes(product, tuple(weight.shape))]
        if [tuple(layer.weight.shape[2:]) for layer in layers] != kernels:
            raise TypeError(f"{product.module!r} is no {product.format} product")
        whole = expand([layer.weight.double() for layer in layers], product).to(weight.dtype)
        values = {name: value for name, value in values.items() if not name.startswith(f"{product.module}.")}
        values[f"{product.module}.weight"] = whole.reshape(weight.shape)
        if layers[-1].bias is not None:
            values[f"{product.module}.bias"] = layers[-1].bias
    return values
