"""Sizes written in a forward, and where they come from: an attribute of a module or its configuration, a multiple of one,
or the shape of another tensor.

All three are found by value and proved by the next run of the cut model: what does not move there is taken back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.graph import dims as d
from secateur.graph.dims import Expr
from secateur.graph.record import Node, flat
from secateur.graph.sources import Sizes, alike, source, unite_alike
from secateur.graph.state import Literal, State

MOST_TIMES = 16
"""A size may be an attribute times a number up to this, as in `view(..., 3 * self.head_size)`."""
PLAIN = (int, float, str, bool, type(None), tuple, list, dict, set, Tensor, nn.Module)


@dataclass
class Search:
    """What has been found and tried so far; `latest` are the paths added last, which the next run has to prove."""

    modules: dict[str, nn.Module]
    attributes: dict[str, Expr]
    tried: set[tuple[int, str]] = field(default_factory=set)
    latest: dict[str, Literal] = field(default_factory=dict)
    position: int = -1
    tied: bool = False


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


def whole_numbers(*call: Any) -> list[int]:
    """The integers in the arguments of a call, in order."""
    return [value for value in flat(call) if type(value) is int]


def follow(search: Search, nodes: Sequence[Node], state: State, trial: Sizes, position: int, seen: list[int] | None) -> bool:
    """Tie sizes that did not follow to what holds them; `seen` are the numbers the cut model used there.

    True where something new was tied, so that another run is worth its time.
    """
    position = min(position, len(nodes) - 1)
    state.node, state.position = nodes[position], position
    moved = _moved(nodes[position], seen)
    if search.position == position:
        _take_back(search, moved)
    search.position, search.latest = position, {}
    late = [(node, literal) for node, literal in literals(nodes, state, position) if trial.size(literal.expr) != literal.value]
    if _borrowed(nodes, state, trial, position, moved):
        return True
    if _attributes(search, late, state, trial) or _quotient(nodes, state, trial, position, moved):
        return True
    return _multiples(search, late, state, trial)


def _moved(node: Node, seen: list[int] | None) -> list[tuple[int, int]] | None:
    """(size before, size in the cut model) for each number of the call, or None where the calls do not compare."""
    before = whole_numbers(node.args, node.kwargs)
    return list(zip(before, seen, strict=True)) if seen is not None and len(seen) == len(before) else None


def _take_back(search: Search, moved: list[tuple[int, int]] | None) -> None:
    """Forget attributes that were added last where the number they were to move stands as it stood."""
    still = {old for old, new in moved or () if old == new} - {old for old, new in moved or () if old != new}
    for path, literal in search.latest.items():
        if literal.value in still:
            search.attributes.pop(path, None)


def literals(nodes: Sequence[Node], state: State, position: int) -> Iterator[tuple[Node, Literal]]:
    """Literals of the operation at `position` and of all others of its kind on its line of code."""
    for number in alike(nodes, position):
        for literal in state.literals.get(number, ()):
            yield nodes[number], literal


def _attributes(search: Search, late: list[tuple[Node, Literal]], state: State, trial: Sizes) -> bool:
    """Attributes equal to a size that did not follow."""
    new = False
    for node, literal in late:
        for path in _holders(search.modules, node.module, literal.value):
            if path in search.attributes:
                if search.attributes[path] is literal.expr:
                    continue
                before = trial.size(literal.expr)
                state.unite(search.attributes[path], literal.expr)
                new |= before != trial.size(literal.expr)
                break
            if (id(literal), path) in search.tried:
                continue
            search.tried.add((id(literal), path))
            search.attributes[path] = literal.expr
            search.latest[path] = literal
            new = True
            break
    return new


def _multiples(search: Search, late: list[tuple[Node, Literal]], state: State, trial: Sizes) -> bool:
    """Attributes of which a size is a small multiple."""
    new = False
    for node, literal in late:
        for times in range(2, MOST_TIMES + 1):
            if literal.value % times or literal.value <= times:
                continue
            path = next(_holders(search.modules, node.module, literal.value // times), None)
            if path is None or (id(literal), path) in search.tried:
                continue
            search.tried.add((id(literal), path))
            part = _part(literal.expr, times, state)
            if part is None:
                continue
            if path in search.attributes:
                state.unite(search.attributes[path], part)
            else:
                search.attributes[path] = part
            new = True
            break
    return new


def _part(expr: Expr, times: int, state: State) -> Expr | None:
    """One of `times` equal parts of `expr`; their number is fixed, since the code writes it."""
    try:
        outer, inner = d.divide(d.root(d.as_var(d.normal(expr))), times)
    except d.Conflict:
        return None
    d.freeze(((outer,),), state.why("the forward writes how many there are"))
    return ((inner,),)


def _holders(modules: dict[str, nn.Module], path: str, value: int) -> Iterator[str]:
    """Paths of integer attributes equal to `value`: of the module, its parents, then of configurations these hold."""
    chain = [path]
    while path:
        path = path.rpartition(".")[0]
        chain.append(path)
    for name in chain[:3]:
        if name in modules:
            yield from _inside(vars(modules[name]), name, value)
    known: set[int] = set()
    for name in chain:
        for key, held in vars(modules[name]).items() if name in modules else ():
            if not isinstance(held, PLAIN) and not key.startswith("_") and hasattr(held, "__dict__") and id(held) not in known:
                known.add(id(held))
                yield from _inside(vars(held), _first(modules, held, f"{name}.{key}".lstrip(".")), value)


def _inside(held: dict[str, Any], lead: str, value: int) -> Iterator[str]:
    for key, item in held.items():
        path = f"{lead}.{key}" if lead else key
        if type(item) is int and item == value and not key.startswith("__"):
            yield path
        elif isinstance(item, (tuple, list)) and not key.startswith("_"):
            yield from (f"{path}.{i}" for i, one in enumerate(item) if type(one) is int and one == value)


def _first(modules: dict[str, nn.Module], held: object, path: str) -> str:
    """The first path to an object that modules share, so that two layers do not set it to different numbers."""
    key = path.rpartition(".")[2]
    for name, module in modules.items():
        if vars(module).get(key) is held:
            return f"{name}.{key}".lstrip(".")
    return path


def _borrowed(nodes: Sequence[Node], state: State, trial: Sizes, position: int, moved: list[tuple[int, int]] | None) -> bool:
    """Sizes read from another tensor's shape: the number the cut model used tells which dimension it came from."""
    literals = state.literals.get(position, [])
    for value in dict.fromkeys(literal.value for literal in literals):
        used = Counter(new for old, new in moved or () if old == value)
        meant = Counter(trial.size(literal.expr) for literal in literals if literal.value == value)
        for new in used - meant:
            which = next(
                (i for i, one in enumerate(literals) if one.value == value and trial.size(one.expr) in meant - used), None
            )
            place = None if which is None or new == value else source(nodes, state, trial, position, (value, new))
            if place is not None and which is not None:
                unite_alike(nodes, state, position, (which,), place)
                return True
    return False


def settle(search: Search, nodes: Sequence[Node], state: State, trial: Sizes) -> bool:
    """Unite sizes that an attribute moved with what that attribute follows, where they agreed in the trial by chance alone.

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
            if twin is not None:
                state.unite(twin, literal.expr)
                united = True
    return united


def _shape(expr: Expr) -> list[list[int]]:
    return [sorted(id(var) for var in term) for term in d.normal(expr)]


def _quotient(nodes: Sequence[Node], state: State, trial: Sizes, position: int, moved: list[tuple[int, int]] | None) -> bool:
    """A size calculated as another tensor's width over a number of the same call, as in `C // self.num_heads`."""
    here = state.literals.get(position, [])
    for i, literal in enumerate(here):
        wrong = {new for old, new in moved or () if old == literal.value and new not in (old, trial.size(literal.expr))}
        for j, by in enumerate(here) if wrong else ():
            parts = trial.size(by.expr)
            place = None if i == j else source(nodes, state, trial, position, (literal.value * by.value, -1), parts, wrong)
            if place is not None:
                unite_alike(nodes, state, position, (min(i, j), max(i, j)), place)
                return True
    return False
