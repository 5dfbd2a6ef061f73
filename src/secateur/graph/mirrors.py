"""Attributes that mirror a size although the traced forward does not prove it: by their name, or because two sizes agreed
by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from secateur.graph import dims as d
from secateur.graph.borrow import Sizes
from secateur.graph.dims import Expr
from secateur.graph.follow import Search
from secateur.graph.record import Node
from secateur.graph.state import State


def mirrors(modules: dict[str, nn.Module], state: State) -> dict[str, Expr]:
    """Attributes that attention modules hold of their heads, by name and value, also where this forward reads none of them.

    Another call may: with a mask, transformers repeats key-value heads `num_key_value_groups` times by hand.
    """
    found = {}
    for path, sizes in state.mirrors:
        for key, held in vars(modules[path]).items() if path in modules else ():
            expr = sizes.get(_meaning(key))
            if type(held) is int and held > 1 and expr is not None and d.size(expr) == held:
                found[f"{path}.{key}".lstrip(".")] = expr
    return found


def _meaning(key: str) -> str:
    if "group" in key or "rep" in key:
        return "groups"
    if "head" not in key or key.startswith("all"):
        return ""
    if any(word in key for word in ("dim", "size", "width", "channels")):
        return "width"
    return "key heads" if "kv" in key or "key" in key else "heads"


def settle(search: Search, nodes: Sequence[Node], state: State, trial: Sizes, other: Callable[[], Sizes]) -> bool:
    """Unite sizes that an attribute moved with what that attribute follows, where they agree in the trial and in any `other`.

    Two axes of two units each cannot be cut to different numbers. True where something was united.
    """
    by_module: dict[str, list[tuple[str, Expr]]] = {}
    for path, expr in search.attributes.items():
        by_module.setdefault(path.rpartition(".")[0], []).append((path, expr))
    united = False
    for number, literals in state.literals.items():
        for literal in literals:
            after = trial.size(literal.expr)
            held = [e for _, e in by_module.get(nodes[number].module, ()) if d.size(e) == literal.value]
            if after == literal.value or not held or any(_shape(e) == _shape(literal.expr) for e in held):
                continue
            twin = next((e for e in held if trial.size(e) == after), None)
            if twin is not None and (second := other()).size(twin) == second.size(literal.expr):
                united = state.unite(twin, literal.expr) or united
    return united


def _shape(expr: Expr) -> list[list[int]]:
    return [sorted(id(var) for var in term) for term in d.normal(expr)]
