"""Look-ups: rows are addressed by number, so they stay; what a row holds passes through."""

from __future__ import annotations

from torch import Tensor

from secateur.graph import dims as d
from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import State


def embedding(state: State, node: Node) -> None:
    """Rows by number; the width is written."""
    weight, index = state.of(node.args[0]), state.of(node.args[1])
    state.freeze([weight.dims[0]], "rows are looked up by number")
    state.role(weight, 1, "write")
    state.set([*index.dims, weight.dims[1]], clean=weight.clean)


def index(state: State, node: Node) -> None:
    """x[i, :, j]: the indexed dims stay whole."""
    x, places = state.of(node.args[0]), list(node.args[1])
    used = [i for i, p in enumerate(places) if p is not None]
    boolean = any(isinstance(p, Tensor) and str(p.dtype) in ("torch.bool", "torch.uint8") for p in places)
    gone: list[int] = []
    position = 0
    for p in places:
        width = p.dim() if isinstance(p, Tensor) and boolean and p.dim() else 1
        if p is not None:
            gone += range(position, position + width)
        position += width
    state.freeze([x.dims[i] for i in gone], "positions of it are picked")
    for i in used:
        state.freeze(state.of(places[i]).dims, "its entries are positions")
    kept = [(i, e) for i, e in enumerate(x.dims) if i not in gone]
    out = list(node.outputs[0].shape)
    adjacent = used == list(range(used[0], used[-1] + 1)) if used else True
    front = len([i for i, _ in kept if i < gone[0]]) if adjacent and gone else 0
    middle = len(out) - len(kept)
    dims: list[Expr] = [e for _, e in kept]
    new = [state.fresh(n, state.why("it counts picked positions")) for n in out[front : front + middle]]
    state.set([*dims[:front], *new, *dims[front:]], clean=x.clean)


def index_select(state: State, node: Node) -> None:
    """Picks along one dim."""
    x = state.of(node.args[0])
    dim = int(node.args[1]) % max(len(x.dims), 1)
    state.freeze([x.dims[dim]], "positions of it are picked")
    dims = list(x.dims)
    dims[dim] = state.fresh(node.outputs[0].shape[dim], state.why("it counts picked positions"))
    state.set(dims, clean=x.clean)


def gather(state: State, node: Node) -> None:
    """Picks along one dim, elsewhere entry by entry."""
    x, index = state.of(node.args[0]), state.of(node.args[2])
    dim = int(node.args[1]) % len(x.dims)
    state.freeze([x.dims[dim], index.dims[dim]], "positions of it are picked")
    for i, (one, two) in enumerate(zip(x.dims, index.dims, strict=True)):
        if i != dim and d.size(one) == d.size(two):
            state.unite(one, two)
        elif i != dim:
            state.freeze([one, two], "positions of it are picked")
    state.set(index.dims, clean=x.clean)


def scatter(state: State, node: Node) -> None:
    """Writes to picked places along one dim, elsewhere entry by entry."""
    x, index = state.of(node.args[0]), state.of(node.args[2])
    dim = int(node.args[1]) % max(len(x.dims), 1)
    source = node.arg(3, "src", node.kwargs.get("value"))
    others = [index] if not isinstance(source, Tensor) or not source.dim() else [index, state.of(source)]
    for other in others:
        for i, (one, two) in enumerate(zip(x.dims, other.dims, strict=True)):
            if i != dim and d.size(one) == d.size(two):
                state.unite(one, two)
            else:
                state.freeze([one, two], "it is written to by position")
    zero = source == 0 if isinstance(source, (int, float)) else all(o.clean for o in others[1:]) and len(others) > 1
    state.set(x.dims, clean=x.clean and zero)


def put(state: State, node: Node) -> None:
    """x[i, :, j] = values: the indexed dims stay whole, and so does what is written."""
    x = state.of(node.args[0])
    used = [i for i, place in enumerate(node.args[1]) if place is not None]
    masks = any(str(p.dtype) in ("torch.bool", "torch.uint8") for p in node.args[1] if p is not None)
    if masks and not (used == [0] and node.args[1][0].dim() == len(x.dims)):
        return state.opaque("it is written to where a mask says")
    if masks:  # every dim at once
        for one, two in zip(x.dims, state.of(node.args[1][0]).dims, strict=True):
            state.unite(one, two)
    state.freeze([] if masks else [x.dims[i] for i in used], "it is written to by position")
    values = state.of(node.args[2])
    if masks or len(values.dims) > 1 or any(d.size(e) > 1 for e in values.dims):
        state.freeze(values.dims, "it is written to picked positions")
        if not masks:
            state.freeze(x.dims, "it is written to by position")
    state.set(x.dims, clean=False)


RULES = {
    **dict.fromkeys(("scatter", "scatter_", "scatter_add", "scatter_add_"), scatter),
    **dict.fromkeys(("index_put", "index_put_", "_unsafe_index_put"), put),
    "embedding": embedding, "index": index, "_unsafe_index": index, "index_select": index_select, "gather": gather,
    "take_along_dim": gather,
}  # fmt: skip
