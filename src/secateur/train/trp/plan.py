"""From trained weights to ranks to a plan.

Shape legend: B matrices of a layer, R singular values of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import Product, full_ranks, piece_shapes
from secateur.core.plan import Plan, factor
from secateur.linalg import kept_mask
from secateur.measure import facts
from secateur.measure.count import meta_copy
from secateur.measure.observe import call_order
from secateur.surgery import fingerprint, unfold
from secateur.train.trp.layers import Layer
from secateur.train.trp.settings import Deploy, TRPSettings, deployment

HALVINGS = 16
"""Of the interval of energies in the search for a budget: finer than the energy of any one singular value matters."""


def plan_of(model: nn.Module, layers: Sequence[Layer], settings: TRPSettings, deploy: Deploy, *, example: Any = None) -> Plan:
    """The plan `TRP.plan` speaks of."""
    way, number = deployment(deploy)
    layers = [layer for layer in layers if settings.deploy_strided or layer.stride == (1, 1)]
    if example is not None:  # the weight of a layer that is never called may be read by itself, and a product has none
        run, _ = call_order(model, {layer.name: model.get_submodule(layer.name) for layer in layers}, [(example, None)])
        layers = [layer for layer in layers if layer.name in run]
    values = {layer.name: singular_values(layer) for layer in layers}
    shapes = fingerprint(model)

    def by(rank_of: Callable[[Layer], int]) -> Plan:
        products = [Product(layer.name, layer.format, (max(1, rank_of(layer)),)) for layer in layers]
        cheaper = [p for p, layer in zip(products, layers, strict=True) if relative_cost(p, layer) < 1]
        return factor(shapes, cheaper)

    def by_energy(discarded: float) -> Plan:
        return by(lambda layer: int(kept_mask(values[layer.name].square(), discarded).sum(-1).max()))

    if way in ("macs", "params"):
        return _within(model, by_energy, way, number, example)
    if way == "energy":
        return by_energy(1 - number)
    if way == "value":
        return by(lambda layer: int((values[layer.name] >= number).sum(-1).max()))
    if isinstance(number, Mapping):
        known = [layer.name for layer in layers]
        for name in number:
            if name not in known:
                raise SecateurError(f"a rank for the layer {name!r}", "no layer TRP acts on", nearest(name, known))
        layers = [layer for layer in layers if layer.name in number]
        return by(lambda layer: min(number[layer.name], _full(layer)))
    return by(lambda layer: min(number, _full(layer)))


def singular_values(layer: Layer) -> Tensor:
    """The singular values (B, R) of the layer's matrices, ascending, on the CPU in float64."""
    with torch.no_grad():
        matrices = unfold(layer.weight.detach(), layer.format).cpu().double()
    if not bool(matrices.isfinite().all()):
        raise SecateurError(f"the ranks of {layer.name!r}", "weights that are not finite numbers", "train it again")
    return torch.linalg.svdvals(matrices).flip(-1)


def relative_cost(product: Product, layer: Layer) -> float:
    """Multiplications of the product per one of the layer, counted at one output position.

    R (IKK + O) / OIKK for "channel", R (IK + OK) / OIKK for "spatial" (Xu et al., 2020); where a layer strides, what comes
    before the stride costs that much more.
    """
    shape = tuple(layer.weight.shape)
    first, second = (prod(piece) for piece in piece_shapes(product, shape))
    high, wide = layer.stride
    before = {"spatial": wide, "decouple": high * wide}.get(product.format, 1)
    return (first * before + second) / prod(shape)


def _full(layer: Layer) -> int:
    return full_ranks(layer.format, tuple(layer.weight.shape))[0]


def _within(model: nn.Module, by_energy: Callable[[float], Plan], way: str, share: float, example: Any) -> Plan:
    """The plan of most energy that keeps at most `share` of the dense model's count."""
    if way == "macs" and example is None:
        raise SecateurError("a budget on MACs", "no example input", "give plan(..., example=x)")
    inputs = () if example is None else example if isinstance(example, tuple) else (example,)
    bones = meta_copy(model)
    dense = getattr(facts(model, *inputs), way)

    known: dict[Plan, float] = {}  # near the end neighbouring energies give the same ranks

    def kept(plan: Plan) -> float:
        if plan not in known:
            known[plan] = getattr(facts(plan.apply(bones), *inputs), way) / dense
        return known[plan]

    low, high = 0.0, 1.0
    best = by_energy(1.0)  # one rank everywhere
    if (least := kept(best)) > share:
        found = f"that {least:.4f} is the least possible share"
        raise SecateurError(f"plan({{{way!r}: {share!r}}})", found, "ask for at least that, or let TRP act on more layers")
    if kept(whole := by_energy(0.0)) <= share:
        return whole
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        plan = by_energy(middle)
        low, high, best = (low, middle, plan) if kept(plan) <= share else (middle, high, best)
    return best
