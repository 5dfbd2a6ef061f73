"""From recorded operations to relations between the dims of all tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from secateur.core.running import flat
from secateur.graph import dims as d
from secateur.graph.record import Node
from secateur.graph.rules import Rule
from secateur.graph.state import KERNEL, State, Value, flat_tensors
from secateur.surgery import is_norm, tensors

UNKNOWN = "no rule says how it relates its dims"


def walk(
    model: nn.Module, nodes: Sequence[Node], inputs: Any, output: Any, rules: Mapping[str, Rule], *, counted: int
) -> State:
    """Apply a rule to every node, starting from the model's tensors; inputs and outputs are fixed.

    Operations beyond the first `counted` are those of a forward in training mode, and are left out of the MACs.
    """
    state = State()
    state.norms = {name: len(next(module.parameters())) for name, module in model.named_modules() if is_norm(module)}
    for name, tensor in tensors(model):
        if id(tensor) not in state.values:
            dims = [state.fresh(n) for n in tensor.shape]
            origin = [frozenset({(name, i)}) for i in range(tensor.dim())]
            state.values[id(tensor)] = Value(dims, True, origin)
        else:
            value = state.values[id(tensor)]
            value.origin = [o | {(name, i)} for i, o in enumerate(value.origin)]
    for tensor in flat(inputs):
        if isinstance(tensor, Tensor):
            state.values[id(tensor)] = Value([state.fresh(n, "it is a dimension of the model's input") for n in tensor.shape])
    state.idle = idle(nodes, output)
    state.counted = counted
    for state.position, state.node in enumerate(nodes):
        if state.position not in state.idle:
            products = len(state.macs)
            step(state, state.node, rules)
            del state.macs[products if state.position >= counted else len(state.macs) :]
    live = [node for position, node in enumerate(nodes) if position not in state.idle]
    used = {id(t) for node in live for t in flat_tensors((node.args, node.kwargs))}
    for _, tensor in tensors(model):
        if id(tensor) not in used:
            for expr in state.of(tensor).dims:
                d.freeze(expr, "no operation of the traced forward uses it")
    for kernel in state.standardised:
        if prod(var.size for expr in kernel for var in d.leaves(expr) if var.fixed == KERNEL) == 1:
            for expr in kernel:
                d.flag(expr, "two")  # one value alone has no deviation, and PyTorch says so
    for tensor in flat(output):
        if isinstance(tensor, Tensor) and id(tensor) in state.values:
            for expr in state.of(tensor).dims:
                d.freeze(expr, "it is a dimension of the model's output")
    return state


def idle(nodes: Sequence[Node], output: Any) -> set[int]:
    """Operations nothing in the output depends on, such as the mean of attention weights that are thrown away."""
    needed = set(_reachable(output, 6))
    positions: set[int] = set()
    for position in reversed(range(len(nodes) if needed else 0)):
        node = nodes[position]
        acts = node.op.endswith("_") or "::" in node.op or "out" in node.kwargs
        if acts or any(id(out) in needed for out in node.outputs):
            needed.update(id(tensor) for tensor in flat_tensors((node.args, node.kwargs)))
        else:
            positions.add(position)
    return positions


def _reachable(value: Any, depth: int) -> Iterator[int]:
    """Ids of tensors in containers and in attributes of objects, such as a cache a model returns."""
    for item in flat(value):
        if isinstance(item, Tensor):
            yield id(item)
        elif depth and hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)):
            yield from _reachable(vars(item), depth - 1)


def step(state: State, node: Node, rules: Mapping[str, Rule]) -> None:
    """One operation: its rule, or the reason why everything it touches is fixed."""
    if not node.outputs:
        return
    rule = rules.get(node.op)
    try:
        if rule is None:
            state.unknown.setdefault(node.op, []).append(node)
            state.opaque(UNKNOWN)
        else:
            rule(state, node)
            if all(id(out) in state.values and _fits(state.values[id(out)], out) for out in node.outputs):
                return
            state.opaque("its rule does not cover this use")
    except (d.Conflict, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        state.opaque(f"its rule does not cover this use ({type(error).__name__})")


def _fits(value: Value, out: Tensor) -> bool:
    return len(value.dims) == out.dim() and all(d.size(e) == n for e, n in zip(value.dims, out.shape, strict=True))
