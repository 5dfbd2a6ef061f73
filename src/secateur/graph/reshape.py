"""The dims of a tensor seen under another shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from secateur.graph.dims import Conflict, Expr, Var, as_var, divide, freeze, normal, root, size


def reshape(dims: Sequence[Expr], shape: Sequence[int]) -> list[Expr]:
    """The dims of a tensor seen under another shape; refines what is split.

    Dims fall into the smallest runs whose sizes multiply to the same number before and after. A run in which something
    cannot be split is frozen, and its dims start afresh; the others do not suffer.
    """
    result: list[Expr] = []
    for before, after in _runs([size(expr) for expr in dims], list(shape)):
        group = [dims[i] for i in before]
        try:
            result += _regroup(group, [shape[i] for i in after])
        except Conflict as conflict:
            why = f"a reshape mixes it with its neighbours: {conflict}"
            for expr in group:
                freeze(expr, why)
            result += [((Var(shape[i], why),),) for i in after]
    return result


def _runs(old: list[int], new: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    i = j = 0
    while i < len(old) or j < len(new):
        before: list[int] = []
        after: list[int] = []
        one = two = 1
        while True:
            if one <= two and i < len(old) and (one < two or not before or old[i] == 1):
                one *= old[i]
                before.append(i)
                i += 1
            elif two <= one and j < len(new) and (two < one or not after or new[j] == 1):
                two *= new[j]
                after.append(j)
                j += 1
            else:
                break
        yield before, after


def _regroup(dims: Iterable[Expr], shape: Iterable[int]) -> list[Expr]:
    queue: list[Var] = [_whole(expr) for expr in dims if size(expr) != 1]
    result: list[Expr] = []
    for want in shape:
        taken: list[Var] = []
        have = 1
        while have < want:
            if not queue:
                raise Conflict("too few indices")
            var = queue.pop(0)
            if var.link is not None and len(var.link) == 1:
                queue = [*normal(var.link)[0], *queue]
                continue
            if want % have == 0 and want // have < var.size:
                first, second = divide(var, want // have)
                queue.insert(0, second)
                var = first
            if want % (have * var.size):
                raise Conflict(f"{var.size} indices do not divide {want}")
            taken.append(var)
            have *= var.size
        result.append((tuple(taken),) if taken else ((Var(1),),))
    return result


def _whole(expr: Expr) -> Var:
    expr = normal(expr)
    return root(as_var(expr))
