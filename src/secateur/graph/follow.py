"""Sizes written in a forward, and where they come from: an attribute of a module or its configuration, a multiple of one,
or the shape of another tensor.

All three are found by value and proved by the next run of the cut model: what does not move there is taken back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.core.running import flat
from secateur.graph import dims as d
from secateur.graph.borrow import Moved, Sizes, alike, borrowed, quotient
from secateur.graph.dims import Expr
from secateur.graph.record import Node
from secateur.graph.state import Literal, State, flat_tensors

MOST_TIMES = 16
"""A size may be an attribute times a number up to this, as in `view(..., 3 * self.head_size)`."""
MOST_DRIFTS = 2
"""Attributes that move together are taken back together, so the right one of them gets a second turn."""
NAMED = re.compile("head|dim|hidden|width|channel|inner|embd|embed|intermediate|ff")
UNNAMED = re.compile("layer|token|vocab|position|kernel|patch|image|window|shift|stride|dilation|depth")
"""Words in the names of a configuration's sizes: it holds dozens of other numbers that may agree with one by chance."""
PLAIN = (int, float, str, bool, type(None), tuple, list, dict, set, Tensor, nn.Module)


@dataclass
class Search:
    """What has been found and tried so far; `latest` are the paths added last, which the next run has to prove."""

    modules: dict[str, nn.Module]
    attributes: dict[str, Expr]
    tried: set[tuple[int, str]] = field(default_factory=set)
    latest: dict[str, Literal] = field(default_factory=dict)
    drifted: Counter[str] = field(default_factory=Counter)
    position: int = -1
    tied: bool = False

    def holders(self, module: str, value: int) -> Iterator[str]:
        """Paths of attributes equal to `value` within reach of a module, but for those that moved another number twice."""
        for path in _holders(self.modules, module, value):
            if self.drifted[path] < MOST_DRIFTS:
                yield path

    def forget(self, path: str) -> None:
        """The attribute at `path` followed a cut and moved a number that is no size."""
        del self.attributes[path]
        self.drifted[path] += 1


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
        _take_back(search, moved, state.literals.get(position, ()))
    search.position, search.latest = position, {}
    here = state.literals.get(position, [])
    well = _well(here, trial, moved)
    once: dict[tuple[int, int, int], tuple[Node, Literal]] = {}  # equal sizes of one call come from one number
    for number in alike(nodes, position):
        for i, literal in enumerate(state.literals.get(number, ()) if _as_many(state, number, here) else ()):
            after = trial.size(literal.expr)
            if i not in well and after != literal.value:
                once.setdefault((number, literal.value, after), (nodes[number], literal))
    late = list(once.values())
    if _shared(search, nodes[position], state, trial, moved) or borrowed(nodes, state, trial, position, moved):
        return True
    if _attributes(search, late, state, trial) or quotient(nodes, state, trial, position, moved):
        return True
    if _wholes(search, late, state, trial) or quotient(nodes, state, trial, position, moved, still=True):
        return True
    return _multiples(search, late, state, trial)


def _well(here: Sequence[Literal], trial: Sizes, moved: Moved) -> set[int]:
    """Which literals of a call the cut model used as they should be; each of its numbers answers for one literal."""
    used, well = Counter(moved or ()), set()
    for i, literal in enumerate(here):
        one = literal.value, trial.size(literal.expr)
        if used[one]:
            used[one] -= 1
            well.add(i)
    return well


def _as_many(state: State, number: int, here: Sequence[Literal]) -> bool:
    """Does operation `number` take as many sizes as the one at hand?"""
    return len(state.literals.get(number, ())) == len(here)


def _moved(node: Node, seen: list[int] | None) -> Moved:
    """(size before, size in the cut model) for each number of the call, or None where the calls do not compare."""
    before = whole_numbers(node.args, node.kwargs)
    return list(zip(before, seen, strict=True)) if seen is not None and len(seen) == len(before) else None


def stood(node: Node, seen: list[int] | None) -> set[int]:
    """Numbers of the call that the cut model used as they were, `seen` being the ones it used."""
    return _still(_moved(node, seen))


def _still(moved: Moved) -> set[int]:
    return {old for old, new in moved or () if old == new} - {old for old, new in moved or () if old != new}


def _take_back(search: Search, moved: Moved, here: Sequence[Literal]) -> None:
    """Forget attributes that were added last, and their namesakes, where the number they were to move stands as it stood."""
    still = _still(moved)
    ours = {id(literal) for literal in here if literal.value in still}
    wrong = {path.rpartition(".")[2] for path, literal in search.latest.items() if id(literal) in ours}
    for path in search.latest:
        if path.rpartition(".")[2] in wrong:
            search.attributes.pop(path, None)


def literals(nodes: Sequence[Node], state: State, position: int) -> Iterator[tuple[Node, Literal]]:
    """Literals of the operation at `position` and of all others of its kind on its line of code."""
    for number in alike(nodes, position):
        for literal in state.literals.get(number, ()):
            yield nodes[number], literal


def _shared(search: Search, node: Node, state: State, trial: Sizes, moved: Moved) -> bool:
    """An attribute that follows one dimension is read for another that does not move: the two are one."""
    here = state.literals.get(search.position, ())
    for literal in here:
        meant = Counter(trial.size(other.expr) for other in here if other.value == literal.value)
        new = Counter(new for old, new in moved or () if old == literal.value) - meant
        if trial.size(literal.expr) != literal.value or not new:
            continue
        for path in search.holders(node.module, literal.value):
            expr = search.attributes.get(path)
            if expr is not None and trial.size(expr) in new and state.unite(expr, literal.expr):
                return True
    return False


def _attributes(search: Search, late: list[tuple[Node, Literal]], state: State, trial: Sizes) -> bool:
    """Attributes equal to a size that did not follow."""
    new = False
    for node, literal in late:
        for path in search.holders(node.module, literal.value):
            if path in search.attributes:
                if trial.size(search.attributes[path]) == trial.size(literal.expr):
                    continue  # it follows already, so it is another one that does not
                new = state.unite(search.attributes[path], literal.expr) or new
                break
            if (id(literal), path) in search.tried:
                continue
            search.tried.add((id(literal), path))
            search.attributes[path] = literal.expr
            search.latest[path] = literal
            new = True
            break
    return new


def _wholes(search: Search, late: list[tuple[Node, Literal]], state: State, trial: Sizes) -> bool:
    """Attributes that hold what an operation takes apart, as in `x.split(self.width // 2)` or `self.width - self.part`."""
    new = False
    for node, literal in late:
        for expr in [expr for tensor in flat_tensors(node.args) for expr in state.of(tensor).dims]:
            value = d.size(expr)
            if value <= literal.value or trial.size(expr) == value:
                continue
            for path in search.holders(node.module, value):
                if path not in search.attributes and (id(literal), path) not in search.tried:
                    search.tried.add((id(literal), path))
                    search.attributes[path], search.latest[path], new = expr, literal, True
                    break
    return new


def _multiples(search: Search, late: list[tuple[Node, Literal]], state: State, trial: Sizes) -> bool:
    """Attributes of which a size is a small multiple."""
    new = False
    for node, literal in late:
        for times in range(2, MOST_TIMES + 1):
            if literal.value % times or literal.value <= times:
                continue
            path = next(search.holders(node.module, literal.value // times), None)
            if path is None or (id(literal), path) in search.tried:
                continue
            search.tried.add((id(literal), path))
            part = _part(literal.expr, times, state)
            if part is None:
                continue
            if path in search.attributes:
                new = state.unite(search.attributes[path], part) or new
            else:
                search.attributes[path], new = part, True
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
            yield from _inside(dict(sorted(vars(modules[name]).items(), key=_likelihood)), name, value)
    known: set[int] = set()
    for name in chain:
        for key, held in vars(modules[name]).items() if name in modules else ():
            if not isinstance(held, PLAIN) and not key.startswith("_") and hasattr(held, "__dict__") and id(held) not in known:
                known.add(id(held))
                sizes = {k: v for k, v in vars(held).items() if NAMED.search(k) and not UNNAMED.search(k)}
                yield from _inside(sizes, _first(modules, held, f"{name}.{key}".lstrip(".")), value)


def _likelihood(item: tuple[str, Any]) -> int:
    """Names of sizes first, those of what is no size last."""
    return bool(UNNAMED.search(item[0])) - bool(NAMED.search(item[0]))


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
