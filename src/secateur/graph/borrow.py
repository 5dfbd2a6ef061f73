"""Sizes a forward reads from the shape of another tensor, whole or divided by a number of the same call.

The sizes the cut model used tell which dimension they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from math import prod
from typing import Protocol

from torch import Tensor

from secateur.graph import dims as d
from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import State, flat_tensors

Moved = list[tuple[int, int]] | None
"""(size before, size in the cut model) for each number of a call, or None where the calls do not compare."""


class Sizes(Protocol):
    """A trial cut: the length of a dimension after it."""

    def size(self, expr: Expr) -> int:
        """The length of `expr` after the cut."""


def alike(nodes: Sequence[Node], position: int) -> Iterator[int]:
    """The operation at `position` and all others of its kind on its line of code."""
    here = nodes[position]
    for number, node in enumerate(nodes):
        if node is here or (node.source == here.source and node.op == here.op and here.source != "unknown"):
            yield number


def borrowed(nodes: Sequence[Node], state: State, trial: Sizes, position: int, moved: Moved) -> bool:
    """Sizes read from another tensor's shape: the number the cut model used tells which dimension it came from."""
    literals = state.literals.get(position, [])
    for value in dict.fromkeys(literal.value for literal in literals):
        used = Counter(new for old, new in moved or () if old == value)
        meant = Counter(trial.size(literal.expr) for literal in literals if literal.value == value)
        for new in used - meant:
            late = meant - used
            which = next((i for i, one in enumerate(literals) if one.value == value and trial.size(one.expr) in late), None)
            place = None if which is None or new == value else _source(nodes, state, trial, position, (value, new))
            if place is not None and which is not None and _unite_alike(nodes, state, position, (which,), place):
                return True
    return False


def quotient(
    nodes: Sequence[Node],
    state: State,
    trial: Sizes,
    position: int,
    moved: Moved,
    *,
    still: bool = False,
) -> bool:
    """A size calculated as another tensor's width over a number of the same call, as in `C // self.num_heads`.

    With `still`, also where the quotient came out as before.
    """
    here = state.literals.get(position, [])
    for i, literal in enumerate(here):
        wrong = {new for old, new in moved or () if old == literal.value and (still or new != old)}
        wrong.discard(trial.size(literal.expr))
        for j, by in enumerate(here) if wrong else ():
            parts = trial.size(by.expr)
            if abs(i - j) != 1:
                continue
            place = _source(nodes, state, trial, position, (literal.value * by.value, -1), parts, wrong)
            if place is not None and _unite_alike(nodes, state, position, (min(i, j), max(i, j)), place):
                return True
    return False


def _source(
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
        for which, tensor in enumerate(touched(nodes[position - back], outputs=back > 0)):
            for dim, expr in enumerate(state.of(tensor).dims):
                after = trial.size(expr) if d.size(expr) == sizes[0] else -2
                if after == sizes[1] or (after > 0 and after // parts in quotients):
                    return back, which, dim
    return None


def _unite_alike(
    nodes: Sequence[Node], state: State, position: int, which: tuple[int, ...], place: tuple[int, int, int]
) -> bool:
    """Unite literals `which` of the operation, and of those like it, with the dimension they are read from; was any news?"""
    back, tensor, dim = place
    new = False
    for number in alike(nodes, position):
        literals, here = state.literals.get(number, []), number - back
        if here < 0 or len(literals) <= which[-1] or nodes[here].op != nodes[position - back].op:
            continue
        tensors = touched(nodes[here], outputs=back > 0)
        if tensor < len(tensors) and tensors[tensor].dim() > dim:
            expr = state.of(tensors[tensor]).dims[dim]
            if d.size(expr) == prod(literals[i].value for i in which):
                read = literals[which[0]].expr if len(which) == 1 else (tuple(d.as_var(literals[i].expr) for i in which),)
                new = state.unite(read, expr) or new
    return new


def touched(node: Node, *, outputs: bool) -> list[Tensor]:
    return [*flat_tensors((node.args, node.kwargs)), *(node.outputs if outputs else ())]
