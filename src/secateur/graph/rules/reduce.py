"""Operations that take many entries to few: pooling, sums, soft maxima."""

from __future__ import annotations

from typing import Any

from secateur.graph import dims as d
from secateur.graph.record import Node
from secateur.graph.state import NOWHERE, State

KEEPING_ZERO = {"sum", "nansum", "mean", "linalg_vector_norm", "norm", "amax", "amin", "var", "std", "prod"}


def _axes(node: Node, rank: int, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [int(i) % rank if rank else 0 for i in (dim if isinstance(dim, (list, tuple)) else [dim])]


def pool_trailing(rank: int):  # type: ignore[no-untyped-def]
    """Pooling over the last `rank` dims."""

    def rule(state: State, node: Node) -> None:
        x = state.of(node.args[0])
        state.freeze(x.dims[len(x.dims) - rank :], "a window slides over it")
        for number, out in enumerate(node.outputs):
            spatial = [state.fresh(n, "it is a spatial size") for n in out.shape[len(out.shape) - rank :]]
            state.set([*x.dims[: len(out.shape) - rank], *spatial], output=number, clean=x.clean)

    return rule


def _reduce(state: State, node: Node, dim: object, keepdim: bool, allowed: str | None) -> None:
    """Drop dims; units among them are fixed unless `allowed` names why a zero unit adds nothing."""
    x = state.of(node.args[0])
    gone = _axes(node, len(x.dims), dim)
    for i in gone:
        if allowed and x.clean:
            d.flag(x.dims[i], "all")
        elif state.norms.get(state.node.module) == d.size(x.dims[i]):
            d.flag(x.dims[i], "norm", exact=False)
        else:
            state.freeze([x.dims[i]], f"{node.op} reduces over it")
    if keepdim:
        dims = [state.fresh(1) if i in gone else e for i, e in enumerate(x.dims)]
        origin = [NOWHERE if i in gone else o for i, o in enumerate(x.origin)]
    else:
        dims = [e for i, e in enumerate(x.dims) if i not in gone]
        origin = [o for i, o in enumerate(x.origin) if i not in gone]
    for number in range(len(node.outputs)):
        state.set(dims, output=number, clean=x.clean and node.op in KEEPING_ZERO, origin=origin)


def mean(state: State, node: Node) -> None:
    """A mean divides by the number of units, so they are fixed."""
    _reduce(state, node, node.arg(1, "dim"), bool(node.arg(2, "keepdim", False)), None)


def total(state: State, node: Node) -> None:
    """A sum over units that are zero where their weights are is exact."""
    _reduce(state, node, node.arg(1, "dim"), bool(node.arg(2, "keepdim", False)), "sum")


def extreme(state: State, node: Node) -> None:
    """Maxima, norms, arguments of maxima."""
    dim = node.arg(1, "dim")
    if not (dim is None or isinstance(dim, (int, list, tuple))):
        dim = None
    _reduce(state, node, dim, bool(node.arg(2, "keepdim", False)), None)


def variance(state: State, node: Node) -> None:
    """Deviation from a mean over the dims."""
    dim = node.arg(1, "dim")
    _reduce(state, node, dim if isinstance(dim, (int, list, tuple)) else None, bool(node.kwargs.get("keepdim", False)), None)


def norm(state: State, node: Node) -> None:
    """p-norms over dims."""
    _reduce(state, node, node.arg(2, "dim"), bool(node.arg(3, "keepdim", False)), None)


def softmax(state: State, node: Node) -> None:
    """Entries along the dim compete, so its units are fixed."""
    x, dim = state.of(node.args[0]), node.arg(1, "dim")
    if x.dims:
        state.freeze([x.dims[dim]], f"{node.op.strip('_')} runs over it")
    for number in range(len(node.outputs)):
        state.set(x.dims, output=number)


def running(state: State, node: Node) -> None:
    """Each entry along the dim takes in those before it, so its units are fixed; a sum of zeros is zero."""
    x = state.of(node.args[0])
    if x.dims:
        state.freeze([x.dims[node.arg(1, "dim")]], f"{node.op.strip('_')} runs over it")
    state.set(x.dims, clean=x.clean)


def sort(state: State, node: Node) -> None:
    """Order along a dim: positions lose their identity."""
    x = state.of(node.args[0])
    numbers = [a for a in node.args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    if node.op == "topk":
        numbers = numbers[1:]
    dim = node.kwargs.get("dim", numbers[-1] if numbers else -1)
    if x.dims:
        state.freeze([x.dims[dim]], f"{node.op} runs over it")
    for number, out in enumerate(node.outputs):
        dims = [
            state.fresh(n, "sorted positions") if i == dim % max(len(x.dims), 1) else x.dims[i] for i, n in enumerate(out.shape)
        ]
        state.set(dims, output=number)


RULES = {
    **{
        f"{kind}_pool{rank}d{tail}": pool_trailing(rank)
        for kind in ("max", "avg")
        for rank in (1, 2, 3)
        for tail in ("", "_with_indices")
    },
    **{
        f"{lead}adaptive_{kind}_pool{rank}d": pool_trailing(rank)
        for lead in ("", "_")
        for kind in ("max", "avg")
        for rank in (1, 2, 3)
    },
    **{f"fractional_max_pool{rank}d": pool_trailing(rank) for rank in (2, 3)},
    **{
        f"upsample_{kind}": pool_trailing(rank)
        for kind, rank in (
            ("nearest1d", 1),
            ("linear1d", 1),
            ("nearest2d", 2),
            ("bilinear2d", 2),
            ("bicubic2d", 2),
            ("nearest3d", 3),
            ("trilinear3d", 3),
        )
    },
    **{
        f"_upsample_{kind}": pool_trailing(rank)
        for kind, rank in (
            ("nearest_exact1d", 1),
            ("nearest_exact2d", 2),
            ("nearest_exact3d", 3),
            ("bilinear2d_aa", 2),
            ("bicubic2d_aa", 2),
        )
    },
    **{f"{kind}_pad{rank}d": pool_trailing(rank) for kind in ("reflection", "replication") for rank in (1, 2, 3)},
    "mean": mean,
    "sum": total,
    "nansum": total,
    **dict.fromkeys(
        (
            "amax",
            "amin",
            "max",
            "min",
            "argmax",
            "argmin",
            "any",
            "all",
            "prod",
            "logsumexp",
            "median",
            "nanmean",
            "aminmax",
            "count_nonzero",
            "mode",
            "kthvalue",
        ),
        extreme,
    ),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), variance),
    "linalg_vector_norm": norm,
    "norm": lambda s, n: _reduce(s, n, n.arg(2, "dim"), bool(n.arg(3, "keepdim", False)), None),
    **dict.fromkeys(
        ("_softmax", "softmax", "_log_softmax", "log_softmax", "logcumsumexp", "cumprod", "cummax", "cummin"), softmax
    ),
    "_safe_softmax": softmax,
    **dict.fromkeys(("cumsum", "cumsum_"), running),
    **dict.fromkeys(("sort", "topk", "argsort", "unique_dim", "msort"), sort),
}
