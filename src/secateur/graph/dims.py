"""What one dimension of a tensor consists of: a sum of products of variables.

A concatenation is a sum, a flattening is a product, and both nest: the rows of a packed QKV projection are
`parts * heads * head_dim`. A `Var` is a run of indices that nothing has split so far; splitting refines it in place,
joining unites two. What is never split and never joined to a size fixed from outside becomes an axis.

Legend: Expr = tuple of products, a product = tuple of Var, outermost factor first.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

Product = tuple["Var", ...]
Expr = tuple[Product, ...]


class Conflict(Exception):
    """Two descriptions of one dimension that have no common refinement."""


class Var:
    """A run of `size` indices; a node of a union-find whose links may also be refinements."""

    __slots__ = ("exact", "fixed", "flags", "link", "size")

    def __init__(self, size: int, fixed: str | None = None) -> None:
        self.size = size
        self.fixed = fixed
        self.exact = True
        self.flags: frozenset[str] = frozenset()
        self.link: Any = None  # Var (united), Expr (refined) or None

    def inherit(self, other: Var) -> None:
        """Take over what is known about `other`."""
        self.fixed = self.fixed or other.fixed
        self.exact = self.exact and other.exact
        self.flags |= other.flags


def root(var: Var) -> Var:
    """The representative of `var`, with path compression."""
    top = var
    while isinstance(top.link, Var):
        top = top.link
    while var is not top:
        var.link, var = top, var.link  # type: ignore[assignment]
    return top


def size(expr: Expr) -> int:
    """How many indices."""
    return sum(prod(var.size for var in term) for term in expr)


def normal(expr: Expr) -> Expr:
    """Refinements written out: products flattened, a sum in a leading place distributed, factors of one index gone."""
    terms: list[Product] = []
    for term in expr:
        terms += _term(term)
    return tuple(terms)


def _term(term: Product) -> list[Product]:
    factors: list[Var] = []
    queue = list(term)
    while queue:
        var = root(queue.pop(0))
        if var.link is None:
            if var.size != 1:
                factors.append(var)
        elif len(var.link) == 1:  # a product
            queue = [*var.link[0], *queue]
        elif not factors:  # a sum that leads: its parts are contiguous
            parts: list[Product] = []
            for part in var.link:
                parts += _term((*part, *queue))
            return parts
        else:
            factors.append(var)
    return [tuple(factors)]


def same(a: Expr, b: Expr) -> bool:
    """Have the two been united, down to their unsplit variables?"""
    left, right = normal(a), normal(b)
    return len(left) == len(right) and all(one == two for one, two in zip(left, right, strict=True))


def leaves(expr: Expr) -> Iterator[Var]:
    """Every unsplit variable below `expr`."""
    for term in normal(expr):
        for var in term:
            if var.link is None:
                yield var
            else:
                yield from leaves(var.link)  # type: ignore[arg-type]


def as_var(expr: Expr) -> Var:
    """One variable that stands for all of `expr`."""
    if len(expr) == 1 and len(expr[0]) == 1:
        return expr[0][0]
    var = Var(size(expr))
    var.link = expr
    return var


def freeze(expr: Expr, reason: str) -> None:
    """Nothing below `expr` can be cut, for `reason`; an earlier reason stays."""
    for var in leaves(expr):
        var.fixed = var.fixed or reason


def flag(expr: Expr, *names: str, exact: bool = True) -> None:
    """Note facts about everything below `expr`."""
    for var in leaves(expr):
        var.flags |= set(names)
        var.exact = var.exact and exact


def _refine(var: Var, expr: Expr) -> None:
    for child in leaves(expr):
        child.inherit(var)
    var.link = expr


def split(expr: Expr, at: int) -> tuple[Expr, Expr]:
    """The first `at` indices and the rest; refines what straddles the border. Raises `Conflict` where it cannot."""
    head: list[Product] = []
    terms = list(normal(expr))
    while terms and at > 0:
        term = terms.pop(0)
        length = prod(var.size for var in term)
        if length <= at:
            head.append(term)
            at -= length
            continue
        lead, inner = (term[0], length // term[0].size) if term else (Var(1), 1)
        if at % inner or lead.link is not None:
            raise Conflict(f"a border inside a run of {inner}")
        left, right = Var(at // inner), Var(lead.size - at // inner)
        _refine(lead, ((left,), (right,)))
        head.append((left, *term[1:]))
        terms.insert(0, (right, *term[1:]))
        at = 0
    return tuple(head), tuple(terms)


def unite(a: Expr, b: Expr) -> None:
    """Make `a` and `b` one: the same units in the same order. Raises `Conflict` where they do not fit."""
    left, right = list(normal(a)), list(normal(b))
    while left and right:
        one, two = prod(v.size for v in left[0]), prod(v.size for v in right[0])
        if not one or not two:  # an empty part of a concatenation
            left, right = left[not one :], right[not two :]
        elif one > two:
            head, tail = split((left[0],), two)
            left[:1] = [*head, *tail]
        elif two > one:
            head, tail = split((right[0],), one)
            right[:1] = [*head, *tail]
        else:
            _unite_products(left[0], right[0])
            left, right = left[1:], right[1:]
            left, right = list(normal(tuple(left))), list(normal(tuple(right)))
    if size(tuple(left)) != size(tuple(right)):
        raise Conflict("sizes differ")


def _unite_products(a: Product, b: Product) -> None:
    left, right = list(_single(a)), list(_single(b))
    while left and right:
        one, two = left[0], right[0]
        if one.size == two.size:
            _unite_vars(one, two)
            left, right = left[1:], right[1:]
        elif one.size > two.size:
            left[:1] = divide(one, two.size)
        else:
            right[:1] = divide(two, one.size)


def _single(term: Product) -> Product:
    parts = normal((term,))
    return parts[0] if len(parts) == 1 else (as_var(parts),)


def divide(var: Var, outer: int) -> list[Var]:
    """`var` as `outer` times the rest. A sum divides where its equal pieces can be united. Raises `Conflict`."""
    var = root(var)
    if var.size % outer:
        raise Conflict(f"{var.size} indices in {outer} parts")
    inner = var.size // outer
    if var.link is None:
        pair = [Var(outer), Var(inner)]
        _refine(var, (tuple(pair),))
        return pair
    rest: Expr = var.link  # type: ignore[assignment]
    if len(rest) == 1:
        return _divide_product(list(normal(rest)[0]), outer)
    pieces: list[Expr] = []
    for _ in range(outer):
        piece, rest = split(rest, inner)
        pieces.append(piece)
    for piece in pieces[1:]:
        unite(pieces[0], piece)
    return [Var(outer, "its units are the parts of a concatenation"), as_var(pieces[0])]


def _divide_product(factors: list[Var], outer: int) -> list[Var]:
    head: list[Var] = []
    taken = 1
    while taken < outer:
        var = factors.pop(0)
        if outer % (taken * var.size) == 0:
            head.append(var)
            taken *= var.size
            continue
        need = outer // taken
        if outer % taken or var.size % need:
            raise Conflict(f"{outer} does not divide the factors")
        first, second = divide(var, need)
        head.append(first)
        factors.insert(0, second)
        taken = outer
    return [as_var((tuple(head),)), as_var((tuple(factors),))]


def _unite_vars(a: Var, b: Var) -> None:
    a, b = root(a), root(b)
    if a is b:
        return
    if a.link is not None and b.link is not None:
        unite(a.link, b.link)  # type: ignore[arg-type]
        return
    if b.link is None:
        a, b = b, a  # a is the leaf that gives way
    if b.link is None:
        b.inherit(a)
    else:
        for child in leaves(b.link):
            child.inherit(a)
    if b.link is not None and any(child is a for child in leaves(b.link)):
        raise Conflict("a dimension that contains itself")
    a.link = b


def places(expr: Expr) -> Iterator[tuple[Var, int, int, tuple[tuple[int, int], ...]]]:
    """Where each unsplit variable lies inside `expr`: (variable, start, step, loops), see `core.axis.Slot`."""
    start = 0
    for term in normal(expr):
        yield from _inside(term, start, 1, ())
        start += prod(var.size for var in term)


def _inside(
    term: Product, start: int, scale: int, loops: tuple[tuple[int, int], ...]
) -> Iterator[tuple[Var, int, int, tuple[tuple[int, int], ...]]]:
    sizes = [var.size for var in term]
    strides = [scale * prod(sizes[i + 1 :]) for i in range(len(term))]
    for i, var in enumerate(term):
        around = loops + tuple((sizes[j], strides[j]) for j in range(len(term)) if j != i and sizes[j] > 1)
        if var.link is None:
            yield var, start, strides[i], around
            continue
        offset = start
        for part in var.link:  # a nested sum
            for inner in normal((part,)):
                yield from _inside(inner, offset, strides[i], around)
                offset += strides[i] * prod(v.size for v in inner)
