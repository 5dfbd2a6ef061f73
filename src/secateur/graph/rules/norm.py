"""Normalisations. Those that reduce over the units keep them cuttable but not exact: a cut renormalises."""

from __future__ import annotations

from secateur.graph import dims as d
from secateur.graph.dims import Var
from secateur.graph.record import Node
from secateur.graph.state import State, Value


def batch_norm(state: State, node: Node) -> None:
    """Per channel; exact."""
    x = state.of(node.args[0])
    if node.op == "batch_norm" and x.is_weight and node.arg(5, "training"):  # weight standardisation
        for expr in (x.dims[0], *x.dims[2:]):
            d.flag(expr, "norm", exact=False)
        state.standardised.append((x.dims[0], *x.dims[2:]))
    for position, name in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
        tensor = node.arg(position, name)
        if tensor is not None:
            state.unite(x.dims[1], state.of(tensor).dims[0])
    state.set(x.dims, clean=x.clean, origin=x.origin)
    for number in range(1, len(node.outputs)):
        state.set([state.fresh(n, "batch statistics") for n in node.outputs[number].shape], output=number)


def instance_norm(state: State, node: Node) -> None:
    """Per sample and channel; exact."""
    batch_norm(state, node)


def layer_norm(state: State, node: Node) -> None:
    """Over the trailing dims; a cut there renormalises over the kept units."""
    x, shape = state.of(node.args[0]), node.arg(1, "normalized_shape")
    _trailing(state, x, shape, [node.arg(2, "weight"), node.arg(3, "bias")])


def rms_norm(state: State, node: Node) -> None:
    """As layer norm, without a mean."""
    x, shape = state.of(node.args[0]), node.arg(1, "normalized_shape")
    _trailing(state, x, shape, [node.arg(2, "weight")])


def _trailing(state: State, x: Value, shape: list[int], affine: list) -> None:  # type: ignore[type-arg]
    for back in range(1, len(shape) + 1):
        expr = x.dims[-back]
        d.flag(expr, "norm", exact=False)
        if affine[0] is None and x.clean and len(shape) == 1:
            d.flag(expr, "all")  # without weights to know it by, a dropped unit is one that is zero
        elif affine[0] is None:
            state.freeze([expr], "a norm without weights reduces over it")
        state.literal(shape[-back], expr)
        for tensor in affine:
            if tensor is not None:
                state.unite(expr, state.of(tensor).dims[-back])
    state.set(x.dims, clean=x.clean)
    for number in range(1, len(state.node.outputs)):
        state.set([state.fresh(n, "statistics") for n in state.node.outputs[number].shape], output=number)


def group_norm(state: State, node: Node) -> None:
    """Per group: whole groups go exactly, units within a group renormalise."""
    x, groups = state.of(node.args[0]), node.arg(1, "num_groups")
    weight, bias = node.arg(2, "weight"), node.arg(3, "bias")
    channels = d.size(x.dims[1])
    group, width = Var(groups), Var(channels // groups)
    state.unite(x.dims[1], ((group, width),))
    state.literal(groups, ((group,),))
    if 1 < groups < channels:
        d.flag(((group,),), "group")
    d.flag(((width,),), "norm", exact=False)
    if weight is None:
        state.freeze([x.dims[1]], "a norm without weights reduces over it")
    for tensor in (weight, bias):
        if tensor is not None:
            state.unite(x.dims[1], state.of(tensor).dims[0])
    state.set(x.dims, clean=x.clean and weight is not None)


RULES = {
    "batch_norm": batch_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
}
