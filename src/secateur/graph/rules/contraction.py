"""Operations that multiply and sum: convolution, linear, matrix products, attention."""

from __future__ import annotations

from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node
from secateur.graph.rules.pointwise import broadcast
from secateur.graph.state import KERNEL, State, Value


def _writes(state: State, value: Value, dim: int, bias: Value | None) -> Expr:
    state.role(value, dim, "write")
    expr = value.dims[dim]
    if bias is not None:
        state.unite(expr, bias.dims[-1])
        state.role(bias, -1, "write")
    return expr


def convolution(state: State, node: Node) -> None:
    """Input channels are read, output channels written; groups tie whole blocks of both."""
    x, weight = state.of(node.args[0]), state.of(node.args[1])
    bias = state.of(node.args[2]) if node.args[2] is not None else None
    transposed, groups = node.args[6], node.args[8]
    reads, writes = (0, 1) if transposed else (1, 0)
    for expr in weight.dims[2:]:
        d.freeze(expr, KERNEL)
    if groups == 1:
        state.contract(x, 1, weight, reads)
        channels = _writes(state, weight, writes, bias)
    else:
        channels = _grouped(state, x, weight, bias, groups, transposed)
    spatial = _positions(state, x.dims[2:], weight.dims[2:], node)
    state.set([x.dims[0], channels, *spatial], clean=True)
    counted = x.dims if transposed else [x.dims[0], channels, *spatial]
    state.macs.append([*counted, weight.dims[1], *weight.dims[2:]])


def _positions(state: State, before: list[Expr], kernel: list[Expr], node: Node) -> list[Expr]:
    """Positions pass through a kernel of one entry; a larger one mixes them."""
    after = node.outputs[0].shape[2:]
    through = all(d.size(k) == 1 for k in kernel) and [d.size(e) for e in before] == list(after) and not any(node.args[4])
    if through:
        return before
    state.freeze(before, "a kernel slides over it")
    return [state.fresh(n, "it is a spatial size") for n in after]


def _grouped(state: State, x: Value, weight: Value, bias: Value | None, groups: int, transposed: bool) -> Expr:
    inside = d.size(x.dims[1]) // groups
    per_group = d.size(weight.dims[1]) if transposed else d.size(weight.dims[0]) // groups
    group, width = Var(groups), Var(inside)
    state.unite(x.dims[1], ((group, width),))
    state.literal(groups, ((group,),))
    if inside > 1:
        d.flag(((group,),), "group")
    if transposed:
        state.unite(weight.dims[0], ((group, width),))
        channels: Expr = ((group, *weight.dims[1][0]),) if len(weight.dims[1]) == 1 else ((group, d.as_var(weight.dims[1])),)
        state.role(weight, 1, "write")
        if inside > 1:
            state.role(weight, 0, "read")
        if bias is not None:
            state.unite(bias.dims[0], channels)
    else:
        channels = ((group, Var(per_group)),)
        state.unite(weight.dims[0], channels)
        if inside > 1:
            state.unite(weight.dims[1], ((width,),))
            state.role(weight, 1, "read")
        _writes(state, weight, 0, bias)
    return channels


def linear(state: State, node: Node) -> None:
    """The last dim is read, the rows of the weight are written."""
    x, weight = state.of(node.args[0]), state.of(node.arg(1, "weight"))
    bias = node.arg(2, "bias")
    state.contract(x, -1, weight, len(weight.dims) - 1)
    if len(weight.dims) == 1:
        state.set(x.dims[:-1], clean=True)
        return
    rows = _writes(state, weight, 0, state.of(bias) if bias is not None else None)
    dims = [*x.dims[:-1], rows]
    state.set(dims, clean=x.clean or weight.is_weight)
    state.macs.append([*dims, weight.dims[1]])


def matmul(state: State, node: Node) -> None:
    """Batch dims are shared, the inner dim is summed over."""
    a, b = state.of(node.args[0]), state.of(node.arg(1, "other"))
    _product(state, a, b, None)


def product(state: State, node: Node) -> None:
    """Two matrices, stacks of them, or vectors."""
    _product(state, state.of(node.args[0]), state.of(node.args[1]), None)


def addmm(state: State, node: Node) -> None:
    """A matrix product with something added to every row."""
    _product(state, state.of(node.args[1]), state.of(node.args[2]), state.of(node.args[0]))


def _product(state: State, a: Value, b: Value, added: Value | None) -> None:
    inner = -2 if len(b.dims) > 1 else -1
    state.contract(a, len(a.dims) - 1, b, len(b.dims) + inner)
    rows = a.dims[:-1][-1:] if len(a.dims) > 1 else []
    columns = b.dims[-1:] if len(b.dims) > 1 else []
    one, two = Value(a.dims[:-2], origin=a.origin[:-2]), Value(b.dims[:-2], origin=b.origin[:-2])
    batch, _ = broadcast(state, [one, two], max(len(one.dims), len(two.dims), 0))
    if batch and not (a.is_weight or b.is_weight):
        for expr in batch:
            d.flag(expr, "batch")
        for expr in (a.dims[-1], *columns):
            d.flag(expr, "head_dim")
    if b.is_weight and columns:
        state.role(b, -1, "write")
    if a.is_weight and rows:
        state.role(a, -2, "write")
    dims = [*batch, *rows, *columns]
    clean = a.clean or b.clean
    if added is not None:
        united, _ = broadcast(state, [Value(dims), added], len(dims))
        clean = clean and added.clean
        if added.is_weight:
            state.role(added, -1, "write")
        dims = united
    state.set(dims, clean=clean)
    state.macs.append([*batch, *rows, *columns, a.dims[-1]])


def attention(state: State, node: Node) -> None:
    """softmax(q k^T) v: heads are batch dims, the width of q and k is summed over, that of v passes through."""
    q, k, v = (state.of(t) for t in node.args[:3])
    mask = node.arg(3, "attn_mask")
    scale, grouped = node.arg(6, "scale"), node.arg(7, "enable_gqa", False)
    if scale is None:  # it scales by the width it finds, so a cut renormalises
        d.flag(q.dims[-1], "norm", exact=False)
        d.flag(k.dims[-1], "norm", exact=False)
    state.contract(q, len(q.dims) - 1, k, len(k.dims) - 1)
    d.flag(q.dims[-1], "head_dim")
    d.flag(v.dims[-1], "head_dim")
    state.unite(k.dims[-2], v.dims[-2])
    state.freeze([k.dims[-2]], "attention sums over these positions")
    heads, names = list(q.dims[:-2]), {"width": q.dims[-1]}
    if grouped and heads and d.size(k.dims[-3]) != d.size(heads[-1]):
        groups = Var(d.size(heads[-1]) // d.size(k.dims[-3]))
        state.unite(k.dims[-3], v.dims[-3])
        state.unite(heads[-1], ((*_factors(k.dims[-3]), groups),))
        names["groups"] = ((groups,),)
    else:
        heads, _ = broadcast(state, [Value(list(t.dims[:-2])) for t in (q, k, v)], max(len(t.dims) - 2 for t in (q, k, v)))
    if heads:
        d.flag(heads[-1], "batch")
        names |= {"heads": heads[-1], "key heads": k.dims[-3] if len(k.dims) > 2 else heads[-1]}
    state.mirrors.append((node.module, names))
    if mask is not None:
        state_mask = state.of(mask)
        broadcast(state, [Value([*heads, q.dims[-2], k.dims[-2]]), state_mask], len(heads) + 2)
    state.set([*heads, q.dims[-2], v.dims[-1]], clean=v.clean)
    state.macs.append([*heads, q.dims[-2], q.dims[-1], k.dims[-2]])
    state.macs.append([*heads, q.dims[-2], k.dims[-2], v.dims[-1]])


def _factors(expr: Expr) -> tuple[Var, ...]:
    return expr[0] if len(expr) == 1 else (d.as_var(expr),)


RULES = {
    "convolution": convolution,
    "linear": linear,
    "matmul": matmul,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), addmm),
    "scaled_dot_product_attention": attention,
}
