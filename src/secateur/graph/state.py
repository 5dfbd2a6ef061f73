"""What is known about every tensor while the rules walk through the recorded operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node

Origin = frozenset[tuple[str, int]]
"""(parameter, dimension) pairs a dimension comes from unchanged, for telling readers from writers."""
NOWHERE: Origin = frozenset()
KERNEL = "kernel"


@dataclass
class Value:
    """One tensor: its dims, where they come from, and whether zero weights make it zero (`clean`)."""

    dims: list[Expr]
    clean: bool = False
    origin: list[Origin] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin = self.origin or [NOWHERE] * len(self.dims)

    @property
    def is_weight(self) -> bool:
        """Does it come from parameters alone, dimension by dimension?"""
        return any(self.origin)


@dataclass(frozen=True)
class Literal:
    """A number in an operation's arguments that must equal the size of a dimension."""

    value: int
    expr: Expr


class State:
    """The environment of a walk: values by tensor, roles of parameter dims, literals and MAC terms by node."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.roles: dict[tuple[str, int], str] = {}
        self.literals: dict[int, list[Literal]] = {}
        self.macs: list[list[Expr]] = []
        self.unknown: dict[str, list[Node]] = {}
        self.constants: list[Tensor] = []
        self.idle: set[int] = set()
        self.mirrors: list[tuple[str, dict[str, Expr]]] = []
        self.norms: dict[str, int] = {}
        self.standardised: list[tuple[Expr, ...]] = []
        self.counted = 0
        self.node: Node
        self.position = 0

    def of(self, tensor: Tensor) -> Value:
        """The value of `tensor`; one that no operation made is a constant of the forward, and fixed."""
        value = self.values.get(id(tensor))
        if value is None:
            self.constants.append(tensor)
            why = "it meets a constant tensor that is no parameter or buffer"
            value = self.values[id(tensor)] = Value([self.fresh(n, why) for n in tensor.shape])
        return value

    def fresh(self, size: int, reason: str | None = None) -> Expr:
        """A dimension about which nothing is known but its size."""
        return ((Var(size, reason),),)

    def set(
        self, dims: Sequence[Expr], *, output: int = 0, clean: bool = False, origin: Sequence[Origin] | None = None
    ) -> None:
        """Say what output number `output` of the current operation is made of."""
        self.values[id(self.node.outputs[output])] = Value(list(dims), clean, list(origin or []))

    def why(self, text: str) -> str:
        """`text` with the operation and its line."""
        return f"{text} ({called(self.node.op)} at {short(self.node.source)})"

    def unite(self, a: Expr, b: Expr) -> bool:
        """The two dims are one; where they have no common refinement, both are fixed. Was this news?"""
        if d.same(a, b):
            return False
        try:
            d.unite(a, b)
        except d.Conflict as conflict:
            reason = self.why(f"its units cannot be matched: {conflict}")
            d.freeze(a, reason)
            d.freeze(b, reason)
        return True

    def freeze(self, exprs: Iterable[Expr], text: str) -> None:
        """No cut through any of `exprs`."""
        for expr in exprs:
            d.freeze(expr, self.why(text))

    def literal(self, value: int, expr: Expr) -> None:
        """The current operation's arguments hold `value`, which must follow `expr`."""
        self.literals.setdefault(self.position, []).append(Literal(value, expr))

    def role(self, value: Value, dim: int, role: str) -> None:
        """Parameters behind `dim` of `value` write or read their units there; reading outweighs writing."""
        for place in value.origin[dim % len(value.dims)]:
            if self.roles.get(place) != "read":
                self.roles[place] = role

    def contract(self, a: Value, i: int, b: Value, j: int) -> None:
        """Dims `i` of `a` and `j` of `b` are multiplied and summed over."""
        self.unite(a.dims[i], b.dims[j])
        readers = [(value, dim) for value, dim in ((a, i), (b, j)) if value.origin[dim]]
        if len(readers) == 1:
            self.role(*readers[0], "read")
        elif a.clean or b.clean:
            d.flag(a.dims[i], "all")
        else:
            self.freeze([a.dims[i]], "two activations are summed over it and neither is zero where its weights are")

    def opaque(self, text: str) -> None:
        """Everything that enters or leaves the current operation stays as it is."""
        tensors = list(flat_tensors((self.node.args, self.node.kwargs)))
        for tensor in tensors:
            self.freeze(self.of(tensor).dims, text)
        for number, out in enumerate(self.node.outputs):
            self.set([self.fresh(n, self.why(text)) for n in out.shape], output=number)


def flat_tensors(value: object) -> Iterable[Tensor]:
    """Tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, (list, tuple, dict)):
                yield from flat_tensors(item)
    elif isinstance(value, dict):
        yield from flat_tensors(list(value.values()))


def called(op: str) -> str:
    """The name of an operation as people write it: "aten.relu", "mylib.scale"."""
    return op.replace("::", ".") if "::" in op else f"aten.{op}"


def short(source: str) -> str:
    """The last two parts of a path, enough to find a line."""
    return "/".join(source.replace("\\", "/").split("/")[-2:])


def is_tensor(value: object) -> bool:
    """A tensor with at least one dimension takes part in relations."""
    return isinstance(value, torch.Tensor)
