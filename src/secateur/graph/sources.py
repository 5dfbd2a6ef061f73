"""Where a size comes from: the nearest earlier dimension of it, and uniting the two in every operation alike."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from math import prod
from typing import Protocol

from torch import Tensor

from secateur.graph import dims as d
from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import State, flat_tensors


class Sizes(Protocol):
    """A trial cut: the length of a dimension after it."""

    def size(self, expr: Expr) -> int:
        """The length of `expr` after the cut."""


def source(
    nodes: Sequence[Node],
    state: State,
    trial: Sizes,
    position: int,
    sizes: tuple[int, int],
    parts: int = 1,
    quotients: Container[int] = (),
) -> tuple[int, int, int] | None:
    """The nearest earlier dimension of these sizes, or whose size over `parts` is one of `quotients`.

    Returns (operations back, tensor of the operation, dim).
    """
    for back in range(position + 1):
        for which, tensor in enumerate(_tensors(nodes[position - back], outputs=back > 0)):
            for dim, expr in enumerate(state.of(tensor).dims):
                after = trial.size(expr) if d.size(expr) == sizes[0] else -2
                if after == sizes[1] or (after > 0 and after // parts in quotients):
                    return back, which, dim
    return None


def unite_alike(
    nodes: Sequence[Node], state: State, position: int, which: tuple[int, ...], place: tuple[int, int, int]
) -> None:
    """Unite literals `which` of the operation, and of those like it, with the dimension they are read from."""
    back, tensor, dim = place
    for number in alike(nodes, position):
        literals, here = state.literals.get(number, []), number - back
        if here < 0 or len(literals) <= which[-1] or nodes[here].op != nodes[position - back].op:
            continue
        tensors = _tensors(nodes[here], outputs=back > 0)
        if tensor < len(tensors) and tensors[tensor].dim() > dim:
            expr = state.of(tensors[tensor]).dims[dim]
            if d.size(expr) == prod(literals[i].value for i in which):
                read = literals[which[0]].expr if len(which) == 1 else (tuple(d.as_var(literals[i].expr) for i in which),)
                state.unite(read, expr)


def _tensors(node: Node, *, outputs: bool) -> list[Tensor]:
    return [*flat_tensors((node.args, node.kwargs)), *(node.outputs if outputs else ())]


def alike(nodes: Sequence[Node], position: int) -> Iterator[int]:
    """Positions of the operations of one kind on one line of code."""
    here = nodes[position]
    for number, node in enumerate(nodes):
        if node is here or (node.source == here.source and node.op == here.op and here.source != "unknown"):
            yield number
