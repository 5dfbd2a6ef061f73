"""Rules written as a line that names dims, as in "b n i, o i -> b n o"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from secateur.core.errors import SecateurError
from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node
from secateur.graph.state import State, Value, flat_tensors

Zero = Literal["any", "all"] | None
Group = tuple[str, ...]
"""The names and numbers one dimension is a product of."""
_TOKEN = re.compile(r"\.\.\.|\(([^()]*)\)|[A-Za-z][A-Za-z0-9]*|1|_")


@dataclass(frozen=True)
class Relation:
    """Dims by name: of each tensor that enters, and of each that leaves. `...` stands for any leading dims."""

    inputs: tuple[tuple[Group, ...], ...]
    outputs: tuple[tuple[Group, ...], ...]


def relate(line: str, *, zero: Zero = None) -> Callable[[State, Node], None]:
    """A rule from one line: "b n i, o i -> b n o" is a linear layer, "... c, c -> ... c" a scale per channel.

    Tensors stand in the order of the arguments, outputs after the arrow. Equal names are the same units. A name that
    leaves nowhere is summed over where two tensors have it, and stays whole otherwise; "_" is a dim that stays whole,
    "1" one of a single entry, "(heads width)" a product, outermost first. `zero`: the output is zero where "any" or
    "all" of the tensors are; it lets a dim be cut that two activations are summed over.

    Raises `SecateurError` for a line that cannot be read.
    """
    relation = _parse(line)

    def apply(state: State, node: Node) -> None:
        connect(state, node, relation, zero=zero)

    return apply


def connect(state: State, node: Node, relation: Relation, *, zero: Zero = None) -> dict[str, Expr]:
    """Relate the tensors of one operation; returns its dims by name."""
    values = [state.of(tensor) for tensor in flat_tensors((node.args, node.kwargs))]
    dims: dict[str, Expr] = {}
    holders: dict[str, list[tuple[Value, int]]] = {}
    for value, groups in zip(values, relation.inputs, strict=True):
        for i, group in enumerate(_spread(groups, len(value.dims))):
            _bind(state, dims, value.dims[i], group)
            if len(group) == 1:
                holders.setdefault(group[0], []).append((value, i))
    leaving = {name for groups in relation.outputs for group in groups for name in group}
    spread = {name for name in dims if name.startswith("...")} if "..." in leaving else set()
    for name, places in holders.items():
        _settle(state, name, places, name in leaving | spread)
    flags = [value.clean for value in values]
    clean = (any(flags) if zero == "any" else all(flags)) if zero else False
    for number, groups in enumerate(relation.outputs):
        shape = node.outputs[number].shape
        made = [_made(state, dims, group, shape[i]) for i, group in enumerate(_spread(groups, len(shape)))]
        state.set(made, output=number, clean=clean)
    return dims


def _settle(state: State, name: str, places: Sequence[tuple[Value, int]], leaves: bool) -> None:
    """What becomes of the units behind one name."""
    if leaves:
        if any(not value.is_weight for value, _ in places):
            return
        for value, i in places:
            state.role(value, i, "write")
    elif len(places) == 2 and name != "_":
        (a, i), (b, j) = places
        state.contract(a, i, b, j)
    else:
        state.freeze([value.dims[i] for value, i in places], "the operation leaves it whole or reduces over it")


def _bind(state: State, dims: dict[str, Expr], expr: Expr, group: Group) -> None:
    """Give the names of one dim their part of it."""
    if group == ("1",):
        if d.size(expr) != 1:
            raise ValueError("a dim of one entry has more")
    elif group == ("_",):
        state.freeze([expr], "its rule leaves it whole")
    elif len(group) == 1:
        if group[0] in dims:
            state.unite(dims[group[0]], expr)
        else:
            dims[group[0]] = expr
    else:
        known = {name: d.size(dims[name]) for name in group if name in dims}
        known |= {name: int(name) for name in group if name.isdecimal()}
        open_names = [name for name in group if name not in known]
        if len(open_names) > 1:
            raise ValueError("two sizes of a product are unknown")
        known |= {name: d.size(expr) // prod(known.values()) for name in open_names}
        parts = {
            name: dims.get(name, ((Var(known[name], "its rule writes how many there are" if name.isdecimal() else None),),))
            for name in group
        }
        state.unite(expr, (tuple(d.as_var(parts[name]) for name in group),))
        dims.update(parts)


def _made(state: State, dims: Mapping[str, Expr], group: Group, size: int) -> Expr:
    """The dim of an output."""
    if len(group) == 1 and group[0] in dims:
        return dims[group[0]]
    if all(name in dims for name in group):
        return (tuple(d.as_var(dims[name]) for name in group),)
    return state.fresh(size, state.why("its rule does not say where it comes from") if size > 1 else None)


def _spread(groups: tuple[Group, ...], rank: int) -> list[Group]:
    """`...` written out as as many numbered names as the rank asks for, counted from the last."""
    if ("...",) not in groups:
        if len(groups) != rank:
            raise ValueError("a rank the rule does not have")
        return list(groups)
    at = groups.index(("...",))
    extra = rank - len(groups) + 1
    return [*groups[:at], *[(f"...{back}",) for back in range(extra, 0, -1)], *groups[at + 1 :]]


def _parse(line: str) -> Relation:
    before, arrow, after = line.partition("->")
    sides = [[_groups(part, line) for part in side.split(",")] for side in (before, after)]
    if not arrow or any(side.count("->") for side in (before, after)):
        raise _unreadable(line, "no single arrow")
    return Relation(tuple(sides[0]), tuple(sides[1]))


def _groups(text: str, line: str) -> tuple[Group, ...]:
    groups, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(line, f"{text[position:]!r}")
        groups.append(tuple((match[1] if match[1] is not None else match[0]).split()))
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
    if len({g for g in groups if g == ("...",)}) < groups.count(("...",)):
        raise _unreadable(line, "two runs of leading dims in one tensor")
    return tuple(groups)


def _unreadable(line: str, found: str) -> SecateurError:
    do = 'write dims by name and an arrow, as in "b n i, o i -> b n o"'
    return SecateurError(f"a rule {line!r}", found, do)


def einsum(state: State, node: Node) -> None:
    """The equation is the relation; names of both operands that leave nowhere are summed over."""
    one, two, after = _equation(str(node.args[0]))
    relation = Relation((one, two), (after,))
    operands = [state.of(tensor) for tensor in flat_tensors(node.args)]
    activations = not any(value.is_weight for value in operands)
    dims = connect(state, node, relation, zero="any")
    shared = {group for group in one if group in two and group != ("...",)}
    for group in shared if activations else ():
        d.flag(dims[group[0]], "batch" if group in after else "head_dim")
    if shared - set(after):
        state.macs.append(list(dims.values()))


def _equation(text: str) -> tuple[tuple[Group, ...], tuple[Group, ...], tuple[Group, ...]]:
    """Names of the dims of two operands and of the result. Raises `ValueError` where an operand repeats one."""
    before, _, after = text.replace(" ", "").partition("->")
    one, two = ([(name,) for name in re.findall(r"\.\.\.|[A-Za-z]", side)] for side in before.split(","))
    if any(len(set(side)) < len(side) for side in (one, two)):
        raise ValueError("a diagonal")
    if "->" in text:
        out = [(name,) for name in re.findall(r"\.\.\.|[A-Za-z]", after)]
    else:
        once = sorted(group for group in set(one) ^ set(two) if group != ("...",))
        out = [("...",), *once] if ("...",) in [*one, *two] else once
    return tuple(one), tuple(two), tuple(out)


def bilinear(state: State, node: Node) -> None:
    """x W y for every output: both sides are read, the first dim of the weight is written."""
    biased = len(list(flat_tensors((node.args, node.kwargs)))) == 4
    relate("... i, ... j, o i j" + (", o" if biased else "") + " -> ... o", zero=None if biased else "any")(state, node)


RULES = {"einsum": einsum, "bilinear": bilinear}
