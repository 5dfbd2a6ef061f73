"""Cut everything at once, run the result on the meta device, and compare every shape with what the axes predict.

What disagrees hard-codes a size: either an attribute of a module holds it, which then follows the axis, or the number is
written in the code, and the axis is fixed with the line that does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.graph import dims as d
from secateur.graph.borrow import alike
from secateur.graph.collect import find
from secateur.graph.dims import Expr
from secateur.graph.follow import Search, follow, literals, stood, whole_numbers
from secateur.graph.mirrors import mirrors, settle
from secateur.graph.passes import forward
from secateur.graph.record import Node, recording
from secateur.graph.state import State, flat_tensors, short
from secateur.graph.trial import Trial, apart, level
from secateur.surgery import apply

Attributes = dict[str, Expr]
MOST_ROUNDS = 64
"""Runs of the cut model in which guesses are made; after them, what disagrees is fixed."""
LAYOUT = {"clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy"}
"""Whether these run depends on how memory lies, which a size of one may change."""
ARITHMETIC = {"add", "sub", "mul", "div", "rsub", "pow", "true_divide", "clamp", "clamp_min", "clamp_max"}
SIZED = set(
    """view expand slice split split_with_sizes chunk repeat constant_pad_nd narrow unflatten zeros ones full empty new_zeros
    new_ones new_full new_empty rand randn arange layer_norm rms_norm group_norm convolution channel_shuffle one_hot
    native_channel_shuffle""".split()
)
"""The operations whose arguments are sizes; a whole number in another one's means something else."""
MIRRORS = {"convolution": "groups", "group_norm": "num_groups", "channel_shuffle": "groups", "native_channel_shuffle": "groups"}


class Disagrees(Exception):
    """The cut model does something else from operation `position` on, which it calls with these `numbers`.

    `looked`: tensors of the traced forward whose sizes it looked at just before it took another way.
    """

    def __init__(
        self,
        position: int,
        line: str = "",
        numbers: list[int] | None = None,
        *,
        innermost: bool = False,
        drift: Sequence[tuple[int, int]] = (),
        looked: Sequence[Tensor] = (),
    ) -> None:
        self.position, self.line, self.numbers, self.innermost, self.drift = position, line, numbers, innermost, drift
        self.looked = looked


def verify(model: nn.Module, nodes: Sequence[Node], state: State, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Attributes:
    """Fix in `state` what cannot be cut; return the attributes that must follow a dimension."""
    search = Search(dict(model.named_modules()), _obvious(model, nodes, state))
    also = mirrors(search.modules, state)
    again = False
    rounds = 0
    while True:
        rounds += 1
        attributes = {**search.attributes, **{path: also[path] for path in also if again and path not in search.attributes}}
        trial = apart(model, state, attributes, again=again)
        if not trial.kept:
            return attributes
        guessing = rounds <= MOST_ROUNDS
        try:
            looks = run(model, trial, nodes, state, call)
            united = settle(search, nodes, state, trial)
            if guessing and (united or (not again and (search.tied or also))):
                again = True
                continue
            guessing = False
            if looks:
                trial = level(model, state, attributes)
                run(model, trial, nodes, state, call)
            return attributes
        except Disagrees as problem:
            if not guessing:  # sizes that agree with each other, or guesses without an end: fixing always ends
                _blame(model, nodes, state, trial, attributes, problem)
            elif len(attributes) > len(search.attributes):
                also = {}  # one of them means something else
            elif wrong := [
                path for path, expr in search.attributes.items() if (d.size(expr), trial.size(expr)) in problem.drift
            ]:
                for path in wrong:
                    search.forget(path)
            elif follow(search, nodes, state, trial, problem.position, problem.numbers):
                search.tied = True
            else:
                _blame(model, nodes, state, trial, attributes, problem)


def _obvious(model: nn.Module, nodes: Sequence[Node], state: State) -> Attributes:
    """Attributes of PyTorch's own modules that are known to be handed to an operation as a number."""
    modules = dict(model.named_modules())
    attributes: Attributes = {}
    for number, node in enumerate(nodes):
        name = MIRRORS.get(node.op)
        if name and getattr(modules.get(node.module), name, None) is not None:
            for literal in state.literals.get(number, ()):
                if getattr(modules[node.module], name) == literal.value:
                    attributes.setdefault(f"{node.module}.{name}".lstrip("."), literal.expr)
    return attributes


def run(
    model: nn.Module, trial: Trial, nodes: Sequence[Node], state: State, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> bool:
    """Run the cut model. Does its forward look at sizes?

    Raises `Disagrees` at the first operation that is not what was predicted.
    """
    small = apply(trial.plan, model)
    position = _next(nodes, 0)
    twins: dict[int, Tensor] = {}

    def compare(node: Node) -> None:
        nonlocal position
        if node.op in LAYOUT:
            return
        if position >= len(nodes) or _kind(node) != _kind(nodes[position]):
            raise Disagrees(position, looked=[twins[id(tensor)] for tensor in recorder.looked if id(tensor) in twins])
        if len(node.outputs) != len(nodes[position].outputs):
            raise Disagrees(position, "", whole_numbers(node.args, node.kwargs))
        for shape, out in zip(node.shapes, nodes[position].outputs if position not in state.idle else (), strict=False):
            if shape != tuple(trial.size(e) for e in state.of(out).dims):
                raise Disagrees(position, "", whole_numbers(node.args, node.kwargs))
        if drift := _drift(node, nodes[position], trial, state, position):
            raise Disagrees(position, drift=drift)
        if _numbers(node) != _numbers(nodes[position]):
            raise Disagrees(position, innermost=True)
        before = nodes[position]
        pairs = zip(flat_tensors((node.args, node.outputs)), flat_tensors((before.args, before.outputs)), strict=False)
        twins.update((id(mine), theirs) for mine, theirs in pairs)
        position = _next(nodes, position + 1)

    try:
        with recording(small, compare) as recorder:
            forward(small, call)
            if state.counted < len(nodes):
                forward(small, call, training=True)
    except Disagrees:
        raise
    except Exception as error:  # whatever a forward raises when a size it relies on is gone
        raise Disagrees(position, _line(error), whole_numbers(*recorder.attempt)) from error
    if position != len(nodes):
        raise Disagrees(position)
    return recorder.looks


def _drift(node: Node, before: Node, trial: Trial, state: State, position: int) -> list[tuple[int, int]]:
    """(before, after) for numbers that changed and are no size: a stride or a shift that equalled a size by chance."""
    old, new = whole_numbers(before.args, before.kwargs), whole_numbers(node.args, node.kwargs)
    if len(old) != len(new) or old == new or position in state.idle or "strided" in node.op:  # strides: how memory lies
        return []
    sizes: set[int] = set()
    if _kind(before) in SIZED:
        sizes = {trial.size(e) for t in flat_tensors((before.args, before.outputs)) for e in state.of(t).dims}
        sizes |= {trial.size(literal.expr) for literal in state.literals.get(position, ())} | {-1}  # what a view works out
    return [(abs(a), abs(b)) for a, b in zip(old, new, strict=True) if a != b and b not in sizes | {-1}]


def _next(nodes: Sequence[Node], position: int) -> int:
    """The first operation from `position` on that does more than lay out memory."""
    while position < len(nodes) and nodes[position].op in LAYOUT:
        position += 1
    return position


def _kind(node: Node) -> str:
    return "view" if node.op in ("_unsafe_view", "reshape") else node.op


def _numbers(node: Node) -> list[float]:
    """Numbers an operation calculates with, such as a scale of attention: a cut must not change them."""
    arithmetic = (int, float) if node.op.rstrip("_") in ARITHMETIC else (float,)
    values = [*node.args, *node.kwargs.values()]
    return [v for v in values if isinstance(v, arithmetic) and not isinstance(v, bool)]


def _line(error: BaseException) -> str:
    from secateur.graph.record import HERE, TORCH

    lines = []
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((TORCH, HERE)):
            lines.append(f"{name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return lines[-1] if lines else ""


def _blame(model, nodes, state, trial, attributes, problem) -> None:  # type: ignore[no-untyped-def]
    """Fix the axes behind the disagreement: those of numbers that stood still where others of the call moved, else of all
    literals on the line, else those of the operation, else wider."""
    position = min(problem.position, len(nodes) - 1)
    node = nodes[position]
    line = problem.line or node.source
    reason = f"the forward hard-codes its size at {short(line)}"
    late = [literal for _, literal in literals(nodes, state, position) if trial.size(literal.expr) != literal.value]
    still = stood(node, problem.numbers)
    same_line = [e for number in alike(nodes, position) for e in _around(nodes, state, number, 0)]
    groups = [[literal.expr for literal in late if literal.value in still], [literal.expr for literal in late]]
    groups += [same_line, _around(nodes, state, position, 1)]
    groups += [[e for t in module.parameters() for e in state.of(t).dims] for module in _ancestors(model, node.module)]
    if problem.innermost:  # a scale such as width ** -0.5: the width of a head, rather than how many there are
        here = [t for number in alike(nodes, position) for t in flat_tensors(nodes[number].args) if t.dim()]
        groups.insert(0, [state.of(t).dims[-1] for t in here])
    if problem.looked:
        reason = f"the forward decides by its size before {short(line)}"
        groups.insert(0, [expr for tensor in problem.looked for expr in state.of(tensor).dims])
    for exprs in groups:
        free = [var for e in exprs for var in d.leaves(e) if var.fixed is None and id(var) in trial.kept]
        if free:
            for var in free:
                var.fixed = reason
            return
    for item in find(model, state, attributes):
        item.var.fixed = item.var.fixed or reason


def _around(nodes: Sequence[Node], state: State, position: int, reach: int) -> list[Expr]:
    near = nodes[max(position - reach, 0) : position + reach + 1]
    return [e for n in near for t in [*flat_tensors((n.args, n.kwargs)), *n.outputs] for e in state.of(t).dims]


def _ancestors(model: nn.Module, path: str) -> Iterator[nn.Module]:
    modules = dict(model.named_modules())
    while path:
        if path in modules:
            yield modules[path]
        path = path.rpartition(".")[0]
