"""Operations that lay dims end to end and take them apart again."""

from __future__ import annotations

from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node
from secateur.graph.rules.pointwise import broadcast
from secateur.graph.state import NOWHERE, State


def _fixed(expr: Expr) -> bool:
    return all(var.fixed for var in d.leaves(expr))


def cat(state: State, node: Node) -> None:
    """Dims are laid end to end."""
    tensors = [t for t in node.args[0] if t.dim() > 1 or t.numel()]
    values = [state.of(t) for t in tensors]
    dim = int(node.arg(1, "dim", 0)) % len(values[0].dims)
    dims: list[Expr] = []
    for i, expr in enumerate(values[0].dims):
        if i == dim:
            dims.append(tuple(term for v in values for term in v.dims[i]))
        else:
            dims.append(expr)
            for v in values[1:]:
                state.unite(expr, v.dims[i])
    weights = all(v.is_weight for v in values)
    origin = [frozenset().union(*(v.origin[i] for v in values)) if weights else NOWHERE for i in range(len(dims))]
    state.set(dims, clean=all(v.clean for v in values), origin=origin)


def stack(state: State, node: Node) -> None:
    """A new dim whose positions are the tensors."""
    values = [state.of(t) for t in node.args[0]]
    dim = int(node.arg(1, "dim", 0)) % (len(values[0].dims) + 1)
    dims, origin = broadcast(state, values, len(values[0].dims))
    dims.insert(dim, state.fresh(len(values), "its units are the parts of a stack"))
    origin.insert(dim, NOWHERE)
    state.set(dims, clean=all(v.clean for v in values), origin=origin)


def split(state: State, node: Node) -> None:
    """A dim cut into runs."""
    x = state.of(node.args[0])
    dim = int(node.arg(2, "dim", 0)) % len(x.dims)
    rest = x.dims[dim]
    sizes = node.arg(1, "split_size", node.kwargs.get("split_sizes"))
    first: Expr | None = None
    for number, out in enumerate(node.outputs):
        try:
            part, rest = d.split(rest, out.shape[dim])
        except d.Conflict as conflict:
            return state.opaque(f"it is split inside a unit: {conflict}")
        literal = sizes[number] if isinstance(sizes, (list, tuple)) else sizes
        if first is not None and not isinstance(sizes, (list, tuple)) and d.size(part) == d.size(first):
            state.unite(first, part)  # one number gives all parts one size
        first = first or part
        if isinstance(literal, int) and literal == out.shape[dim]:
            state.literal(literal, part)
        dims = list(x.dims)
        dims[dim] = part
        state.set(dims, output=number, clean=x.clean, origin=x.origin)


def sections(state: State, node: Node) -> None:
    """A number of parts: equal ones shrink together, of unequal ones none may; or borders, which the forward writes."""
    x, parts = state.of(node.args[0]), node.arg(1, "indices_or_sections", node.kwargs.get("sections"))
    dim = {"hsplit": min(1, len(x.dims) - 1), "vsplit": 0, "dsplit": 2}.get(node.op, int(node.arg(2, "dim", 0)) % len(x.dims))
    if not isinstance(parts, int) or d.size(x.dims[dim]) % parts:
        return state.opaque("it is split at borders that do not follow")
    rest, first = x.dims[dim], None
    for number, out in enumerate(node.outputs):
        part, rest = d.split(rest, out.shape[dim])
        if first is not None:
            state.unite(first, part)
        first = first or part
        state.set([*x.dims[:dim], part, *x.dims[dim + 1 :]], output=number, clean=x.clean, origin=x.origin)


def cut(state: State, node: Node) -> None:
    """A run of a dim, or every n-th entry of it."""
    x = state.of(node.args[0])
    dim = int(node.arg(1, "dim", 0)) % len(x.dims)
    n = d.size(x.dims[dim])
    start, stop, step = slice(node.arg(2, "start"), node.arg(3, "end"), node.arg(4, "step", 1)).indices(n)
    if stop - start == n and step == 1:
        state.set(x.dims, clean=x.clean, origin=x.origin)
        return None
    dims = list(x.dims)
    if _fixed(x.dims[dim]):
        dims[dim] = state.fresh(node.outputs[0].shape[dim], next(d.leaves(x.dims[dim]), Var(1)).fixed or "one entry")
    else:
        try:
            dims[dim] = _run(state, x.dims[dim], start, stop, step)
        except d.Conflict as conflict:
            return state.opaque(f"it is sliced inside a unit: {conflict}")
    state.set(dims, clean=x.clean, origin=x.origin)


def _run(state: State, expr: Expr, start: int, stop: int, step: int) -> Expr:
    n = d.size(expr)
    if step > 1:
        if n % step or start >= step or stop < n - step + start + 1:
            raise d.Conflict("a stride that does not divide it")
        outer, inner = d.divide(d.root(d.as_var(d.normal(expr))), n // step)
        d.freeze(((inner,),), state.why("a strided slice picks positions"))
        return ((outer,),)
    before, rest = d.split(expr, start)
    middle, _ = d.split(rest, stop - start)
    if start:
        state.literal(start, before)
    if stop < n:
        state.literal(stop, before + middle)
    return middle


def select(state: State, node: Node) -> None:
    """One position of a dim."""
    x = state.of(node.args[0])
    dim = int(node.arg(1, "dim", 0)) % len(x.dims)
    state.freeze([x.dims[dim]], "one position of it is picked")
    dims = [e for i, e in enumerate(x.dims) if i != dim]
    origin = [o for i, o in enumerate(x.origin) if i != dim]
    for number in range(len(node.outputs)):
        state.set(dims, output=number, clean=x.clean, origin=origin)


def unbind(state: State, node: Node) -> None:
    """Every position of a dim, apart."""
    select(state, node)


def pad(state: State, node: Node) -> None:
    """Zeros on both sides; as many as the call says, unless an attribute says it."""
    x, widths = state.of(node.args[0]), list(node.args[1])
    value = node.arg(2, "value", 0)
    dims = list(x.dims)
    for back in range(len(widths) // 2):
        low, high = widths[2 * back : 2 * back + 2]
        expr = dims[-1 - back]
        if not (low or high):
            continue
        if _fixed(expr) or low < 0 or high < 0:
            state.freeze([expr], "it is padded")
            dims[-1 - back] = state.fresh(node.outputs[0].shape[-1 - back], state.why("it is padded"))
            continue
        sides = [((Var(low),),) if low else (), ((Var(high),),) if high else ()]
        if low == high:
            state.unite(*sides)
        for width, side in zip((low, high), sides, strict=True):
            if width:
                state.literal(width, side)
        dims[-1 - back] = (*sides[0], *expr, *sides[1])
    state.set(dims, clean=x.clean and not value)


RULES = {
    "cat": cat, "concat": cat, "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "chunk", "split_with_sizes_copy", "split_copy"), split),
    **dict.fromkeys(("tensor_split", "hsplit", "vsplit", "dsplit"), sections),
    "slice": cut, "select": select, "unbind": unbind, "constant_pad_nd": pad,
}  # fmt: skip
