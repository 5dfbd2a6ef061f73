"""Operations that rearrange dims: views, permutations, copies, windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node
from secateur.graph.reshape import reshape
from secateur.graph.state import NOWHERE, Origin, State, Value

FACTORIES = "zeros ones full empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided".split()
RANDOM = "rand randn randint arange linspace eye randperm tril_indices triu_indices scalar_tensor".split()


def _origins(value: Value, dims: Sequence[Expr]) -> list[Origin]:
    """Origins of reshaped dims: a dim comes from where any of its variables came from."""
    if not value.is_weight:
        return []
    where = [(set(map(id, d.leaves(expr))), origin) for expr, origin in zip(value.dims, value.origin, strict=True)]
    return [frozenset().union(*(origin for leaves, origin in where if leaves & set(map(id, d.leaves(expr))))) for expr in dims]


def view(state: State, node: Node) -> None:
    """Dims are split and merged; sizes written in the call must follow them."""
    x, shape = state.of(node.args[0]), list(node.outputs[0].shape)
    if prod(shape) == 0:
        return state.opaque("it is empty")
    dims = list(x.dims) if shape == [d.size(e) for e in x.dims] else reshape(x.dims, shape)
    sizes = node.arg(1, "size", node.kwargs.get("shape"))
    for size, expr in zip(sizes if isinstance(sizes, (list, tuple)) else [], dims, strict=False):
        if isinstance(size, int) and size > 1:
            state.literal(size, expr)
    state.set(dims, clean=x.clean, origin=_origins(x, dims))


def permute(state: State, node: Node) -> None:
    """Dims change places."""
    x = state.of(node.args[0])
    rank = len(x.dims)
    if node.op == "permute":
        order = [int(i) % rank for i in node.arg(1, "dims")]
    else:
        order = list(range(rank))
        if rank > 1:
            i, j = (0, 1) if node.op in ("t", "t_", "numpy_T") else (int(node.args[1]) % rank, int(node.args[2]) % rank)
            order[i], order[j] = order[j], order[i]
    state.set([x.dims[i] for i in order], clean=x.clean, origin=[x.origin[i] for i in order])


def squeeze(state: State, node: Node) -> None:
    """Dims of one entry come and go."""
    x, want = state.of(node.args[0]), list(node.outputs[0].shape)
    kept = [(e, o) for e, o in zip(x.dims, x.origin, strict=True) if d.size(e) != 1]
    result = [kept.pop(0) if n != 1 else (state.fresh(1), NOWHERE) for n in want]
    state.set([e for e, _ in result], clean=x.clean, origin=[o for _, o in result])


def expand(state: State, node: Node) -> None:
    """One entry becomes many that are alike."""
    x, shape = state.of(node.args[0]), list(node.outputs[0].shape)
    lead = len(shape) - len(x.dims)
    sizes = node.arg(1, "size", [])
    dims: list[Expr] = []
    for i, n in enumerate(shape):
        old = x.dims[i - lead] if i >= lead else None
        expr = old if old is not None and d.size(old) == n else state.fresh(n)
        if i < len(sizes) and isinstance(sizes[i], int) and sizes[i] > 1:
            state.literal(sizes[i], expr)
        dims.append(expr)
    state.set(dims, clean=x.clean, origin=[NOWHERE] * lead + x.origin)


def repeat(state: State, node: Node) -> None:
    """Whole copies side by side."""
    x, times = state.of(node.args[0]), list(node.arg(1, "repeats"))
    dims = [state.fresh(1)] * (len(times) - len(x.dims)) + list(x.dims)
    result: list[Expr] = []
    for expr, n in zip(dims, times, strict=True):
        if n > 1:
            copies = Var(n)
            state.literal(n, ((copies,),))
            result.append(((copies, *(expr[0] if len(expr) == 1 else (d.as_var(expr),))),))
        else:
            result.append(expr)
    state.set(result, clean=x.clean)


def shuffle_positions(state: State, node: Node) -> None:
    """Positions move along the dims named."""
    x = state.of(node.args[0])
    named = node.args[2] if node.op == "roll" and len(node.args) > 2 else node.arg(1, "dims")
    moved = [
        int(i) for i in (named if isinstance(named, (list, tuple)) else [named] if named is not None else range(len(x.dims)))
    ]
    state.freeze([x.dims[i] for i in moved], "its positions move")
    state.set(x.dims, clean=x.clean)


def triangle(state: State, node: Node) -> None:
    """A triangle of the last two dims."""
    x = state.of(node.args[0])
    state.freeze(x.dims[-2:], "a triangle of it is kept")
    state.set(x.dims, clean=x.clean)


def factory(state: State, node: Node) -> None:
    """A tensor of one value; its sizes are written in the call."""
    sizes = next((a for a in node.args if isinstance(a, (list, tuple))), [])
    dims = [state.fresh(n) for n in node.outputs[0].shape]
    for size, expr in zip(sizes, dims, strict=False):
        if isinstance(size, int) and size > 1:
            state.literal(size, expr)
    state.set(dims, clean="zeros" in node.op)


def positions(state: State, node: Node) -> None:
    """A tensor whose entries tell positions apart."""
    for number, out in enumerate(node.outputs):
        state.set([state.fresh(n, state.why("its entries are numbered or drawn")) for n in out.shape], output=number)


def windows(state: State, node: Node) -> None:
    """Sliding windows of one dim."""
    x, dim = state.of(node.args[0]), int(node.args[1])
    dim %= len(x.dims)
    state.freeze([x.dims[dim]], "windows slide over it")
    dims = [*x.dims, state.fresh(node.outputs[0].shape[-1], "it is a window")]
    dims[dim] = state.fresh(node.outputs[0].shape[dim], "it counts windows")
    state.set(dims, clean=x.clean)


def im2col(state: State, node: Node) -> None:
    """Channels times window, by position."""
    x, out = state.of(node.args[0]), node.outputs[0]
    window = Var(out.shape[-2] // d.size(x.dims[-3]), "it is a window")
    dims: list[Expr] = [*x.dims[:-3], ((d.as_var(x.dims[-3]), window),), state.fresh(out.shape[-1], "it counts windows")]
    state.set(dims, clean=x.clean)


def col2im(state: State, node: Node) -> None:
    """The inverse of `im2col`."""
    x, out = state.of(node.args[0]), node.outputs[0]
    state.set(_divided(state, x, out.shape[-3], x.dims[:-2], x.dims[-2], out.shape[-2:]), clean=x.clean)


def _divided(state: State, x: Value, outer: int, lead: Sequence[Expr], expr: Expr, plane: Sequence[int]) -> list[Expr]:
    spatial = [state.fresh(n, "it is a spatial size") for n in plane]
    try:
        channels, window = d.divide(d.as_var(d.normal(expr)), outer)
    except d.Conflict:
        state.freeze([expr], "it is taken apart")
        return [*lead, state.fresh(outer, state.why("it is taken apart")), *spatial]
    d.freeze(((window,),), state.why("it becomes positions"))
    return [*lead, ((channels,),), *spatial]


def pixel_shuffle(state: State, node: Node) -> None:
    """Channels become space."""
    x, out = state.of(node.args[0]), node.outputs[0]
    state.set(_divided(state, x, out.shape[-3], x.dims[:-3], x.dims[-3], out.shape[-2:]), clean=x.clean)


def pixel_unshuffle(state: State, node: Node) -> None:
    """Space becomes channels."""
    x, out = state.of(node.args[0]), node.outputs[0]
    window = Var(out.shape[-3] // d.size(x.dims[-3]), "it was space")
    spatial = [state.fresh(n, "it is a spatial size") for n in out.shape[-2:]]
    state.set([*x.dims[:-3], ((d.as_var(x.dims[-3]), window),), *spatial], clean=x.clean)


def channel_shuffle(state: State, node: Node) -> None:
    """Groups and their members change places."""
    x, groups = state.of(node.args[0]), int(node.args[1])
    try:
        group, member = d.divide(d.as_var(d.normal(x.dims[1])), groups)
    except d.Conflict as conflict:
        return state.opaque(f"its channels are shuffled: {conflict}")
    state.literal(groups, ((group,),))
    state.set([x.dims[0], ((member, group),), *x.dims[2:]], clean=x.clean)


def same(state: State, node: Node) -> None:
    """Nothing moves."""
    x = state.of(node.args[0])
    if isinstance(node.args[0], Tensor) and node.outputs and node.outputs[0].shape == node.args[0].shape:
        state.set(x.dims, clean=x.clean, origin=x.origin)
    else:
        state.opaque("its memory is read in another order")


RULES = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten"), view),
    **dict.fromkeys(("permute", "transpose", "t", "transpose_", "t_", "numpy_T", "swapaxes"), permute),
    **dict.fromkeys(("squeeze", "unsqueeze", "squeeze_", "unsqueeze_"), squeeze),
    "expand": expand, "repeat": repeat,
    "flip": shuffle_positions, "roll": shuffle_positions, "tril": triangle, "triu": triangle,
    **dict.fromkeys(FACTORIES, factory), **dict.fromkeys(RANDOM, positions),
    "unfold": windows, "im2col": im2col, "col2im": col2im,
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    **dict.fromkeys(("as_strided", "as_strided_", "set_", "resize_"), same),
}  # fmt: skip
