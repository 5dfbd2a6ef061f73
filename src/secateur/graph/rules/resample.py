"""Operations that move or transform positions and leave channels alone: samplers, transforms, complex numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import State, flat_tensors


def _named(dims: int | Sequence[int], rank: int) -> list[int]:
    return [i % rank for i in ([dims] if isinstance(dims, int) else dims)]


def _mixed(state: State, node: Node, gone: Iterable[int], text: str, *, clean: bool) -> None:
    """The dims `gone` are mixed and start afresh; the others pass."""
    x = state.of(node.args[0])
    out = node.outputs[0].shape
    for i in gone:
        state.freeze([x.dims[i]], text)
    dims: list[Expr] = [state.fresh(out[i], state.why(text)) if i in gone else e for i, e in enumerate(x.dims)]
    state.set(dims, clean=clean)


def sampler(state: State, node: Node) -> None:
    """Values at the places a grid names; (N, C, H, W) and (N, H', W', 2)."""
    x, grid = state.of(node.args[0]), state.of(node.args[1])
    state.unite(x.dims[0], grid.dims[0])
    state.freeze([*x.dims[2:], *grid.dims[1:]], "places are picked from it")
    spatial = [state.fresh(n, "it is a spatial size") for n in node.outputs[0].shape[2:]]
    state.set([*x.dims[:2], *spatial], clean=x.clean)


def unpool(state: State, node: Node) -> None:
    """Maxima back to where they came from."""
    x, places = state.of(node.args[0]), state.of(node.args[1])
    for one, two in zip(x.dims, places.dims, strict=True):
        state.unite(one, two)
    rank = len(node.args[2])
    _mixed(state, node, range(len(x.dims) - rank, len(x.dims)), "it is written to by position", clean=x.clean)


def turn(state: State, node: Node) -> None:
    """A quarter turn of a plane."""
    x = state.of(node.args[0])
    _mixed(state, node, _named(node.arg(2, "dims", [0, 1]), len(x.dims)), "its positions move", clean=x.clean)


def fourier(state: State, node: Node) -> None:
    """A transform over the dims named; zero stays zero."""
    x = state.of(node.args[0])
    _mixed(state, node, _named(node.args[1], len(x.dims)), "a Fourier transform runs over it", clean=x.clean)


def to_complex(state: State, node: Node) -> None:
    """The last dim of two entries becomes one number."""
    x = state.of(node.args[0])
    state.freeze([x.dims[-1]], "its two entries are one number")
    state.set(x.dims[:-1], clean=x.clean, origin=x.origin[:-1])


def to_real(state: State, node: Node) -> None:
    """One number becomes a last dim of two entries."""
    x = state.of(node.args[0])
    state.set([*x.dims, state.fresh(2, "its two entries are one number")], clean=x.clean)


def diagonal(state: State, node: Node) -> None:
    """Two dims are walked at once; the walk comes last."""
    x = state.of(node.args[0])
    rank = len(x.dims)
    gone = {int(node.arg(2, "dim1", 0)) % rank, int(node.arg(3, "dim2", 1)) % rank}
    state.freeze([x.dims[i] for i in gone], "its diagonal is taken")
    kept = [e for i, e in enumerate(x.dims) if i not in gone]
    state.set([*kept, state.fresh(node.outputs[0].shape[-1], state.why("it is a diagonal"))], clean=x.clean)


def written(state: State, node: Node) -> None:
    """A part of one dim is replaced by another tensor, entry by entry elsewhere."""
    x, source = state.of(node.args[0]), state.of(node.args[1])
    dim = int(node.arg(2, "dim", 0)) % len(x.dims)
    others = [e for i, e in enumerate(x.dims) if i != dim]
    new = source.dims if node.op == "select_scatter" else [e for i, e in enumerate(source.dims) if i != dim]
    for one, two in zip(others, new, strict=True):
        state.unite(one, two)
    replaced = source.dims[dim : dim + 1] if len(source.dims) == len(x.dims) else []
    state.freeze([x.dims[dim], *replaced], "a part of it is replaced")
    state.set(x.dims, clean=x.clean and source.clean)


def along(state: State, node: Node) -> None:
    """Rows of one tensor added to, or put in the place of, the rows of another that an index names."""
    x = state.of(node.args[0])
    dim = int(node.args[1]) % len(x.dims)
    tensors = [state.of(t) for t in flat_tensors(node.args[3:]) if t.dim()]
    state.freeze([x.dims[dim], *state.of(node.args[2]).dims, *(t.dims[dim] for t in tensors)], "it is written to by position")
    for value in tensors:
        for i, (one, two) in enumerate(zip(x.dims, value.dims, strict=True)):
            if i != dim:
                state.unite(one, two)
    state.set(x.dims, clean=x.clean and bool(tensors) and all(t.clean for t in tensors))


RULES = {
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "grid_sampler"), sampler),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), unpool),
    "rot90": turn,
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), fourier),
    "view_as_complex": to_complex, "view_as_real": to_real, "diagonal": diagonal,
    **dict.fromkeys(("slice_scatter", "select_scatter"), written),
    **dict.fromkeys(("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_"), along),
}  # fmt: skip
