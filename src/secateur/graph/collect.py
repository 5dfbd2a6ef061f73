"""From relations between dims to axes with names, slots and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from secateur.core.axis import Axis, Gate, Slot
from secateur.core.size import Size, Term, constant, merge
from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.state import KERNEL, State
from secateur.surgery import tensors

Attributes = Mapping[str, Expr]
"""Path of an integer attribute to the dimension whose size it must follow."""


@dataclass
class Found:
    """A variable that lives in the model's tensors, on its way to being an axis."""

    var: Var
    slots: list[Slot] = field(default_factory=list)


def find(model: nn.Module, state: State, attributes: Attributes) -> list[Found]:
    """Every unsplit variable of more than one unit, kernels left out, in the order of the model's tensors."""
    found: dict[int, Found] = {}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in tensors(model):
        for dim, expr in enumerate(state.of(tensor).dims):
            role = state.roles.get((name, dim), "scale")
            for var, start, step, loops in d.places(expr):
                if var.fixed != KERNEL:
                    slot = Slot(name, dim, start, step, loops, role)  # type: ignore[arg-type]
                    found.setdefault(id(var), Found(var)).slots.append(slot)
    for path, expr in attributes.items():
        for var, start, step, loops in d.places(expr):
            if id(var) in found:
                found[id(var)].slots.append(Slot(path, -1, start, step, loops, "count"))
    return [f for f in found.values() if f.var.size > 1 and any(slot.tensor in parameters for slot in f.slots)]


def name_axes(found: Sequence[Found], model: nn.Module) -> list[Axis]:
    """Axes named after the module of `model` that writes them first; equal names are numbered."""
    used: dict[str, int] = {}
    axes = []
    for item in found:
        kind = _kind(item, model)
        lead = next((s for s in item.slots if s.role == "write"), item.slots[0])
        base = lead.tensor.rpartition(".")[0] or lead.tensor
        base += f":{kind}" if kind in ("head", "head_dim", "group") else ""
        number = used[base] = used.get(base, -1) + 1
        var = item.var
        gate: Gate = "all" if "all" in var.flags else "read"
        fewest = 2 if "two" in var.flags else 1
        name = base + (f"#{number}" if number else "")
        axes.append(Axis(name, kind, var.size, tuple(item.slots), var.fixed, var.exact, gate, fewest))
    return axes


def _kind(item: Found, model: nn.Module) -> str:
    flags = item.var.flags
    for kind, mark in (("head", "batch"), ("head_dim", "head_dim"), ("group", "group")):
        if mark in flags:
            return kind
    writers = [slot for slot in item.slots if slot.role == "write"]
    if not item.var.exact:
        return "width"
    if _is_rank(item.slots, model):
        return "rank"
    looped = any(slot.step > 1 or slot.loops for slot in writers)
    return "hidden" if looped else "channel"


def _is_rank(slots: Sequence[Slot], model: nn.Module) -> bool:
    """Does the axis lie between two factors of a product: linear layers in a row, nothing between, no bias before the last?"""
    tensors_of = {role: {slot.tensor for slot in slots if slot.role == role} for role in ("write", "read", "scale")}
    if tensors_of["scale"] or len(tensors_of["write"]) != 1 or len(tensors_of["read"]) != 1:
        return False
    (one,), (two,) = (tensors_of[role] for role in ("write", "read"))
    (parent, _, name), (beside, _, then) = (tensor.rpartition(".")[0].rpartition(".") for tensor in (one, two))
    if parent != beside or not (name.isdecimal() and then.isdecimal() and int(then) == int(name) + 1):
        return False
    layers = model.get_submodule(parent)
    factors = [layers.get_submodule(number) for number in (name, then)]
    return type(layers) is nn.Sequential and all(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in factors)


def counts(model: nn.Module, state: State, found: Sequence[Found]) -> dict[str, tuple[Term, ...]]:
    """Params and MACs as polynomials in the kept units of `found`, by position."""
    index = {id(f.var): i for i, f in enumerate(found) if f.var.fixed is None}
    memo: dict[int, Size] = {}
    keep: list[Expr] = []

    def size(expr: Expr) -> Size:
        if id(expr) not in memo:
            keep.append(expr)  # ids stay unique while the expression lives
            memo[id(expr)] = polynomial(expr, index)
        return memo[id(expr)]

    params = [tuple(size(e) for e in state.of(p).dims) or (constant(1),) for p in model.parameters()]
    macs = [tuple(size(e) for e in term) for term in state.macs]
    return {"params": merge(params), "macs": merge(macs)}


def polynomial(expr: Expr, index: Mapping[int, int]) -> Size:
    """The length of `expr` as a sum of products of axis counts; nested sums are multiplied out."""
    total: dict[tuple[int, ...], int] = {}
    for term in d.normal(expr):
        partial: dict[tuple[int, ...], int] = {(): 1}
        for var in term:
            if var.link is not None:
                factor = {axes: c for c, axes in polynomial(var.link, index)}  # type: ignore[arg-type]
            elif id(var) in index:
                factor = {(index[id(var)],): 1}
            else:
                factor = {(): var.size}
            partial = _times(partial, factor)
        for axes, c in partial.items():
            total[axes] = total.get(axes, 0) + c
    return tuple((c, axes) for axes, c in total.items())


def _times(a: dict[tuple[int, ...], int], b: dict[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    out: dict[tuple[int, ...], int] = {}
    for one, c in a.items():
        for two, e in b.items():
            axes = tuple(sorted(one + two))
            out[axes] = out.get(axes, 0) + c * e
    return out


def crossing(slots: Sequence[Slot]) -> bool:
    """Do two slots of an axis overlap in one dim? Then its units are not apart."""
    places = sorted((s.tensor, s.dim, s.start, s.step, s.loops) for s in slots)
    return any(a == b for a, b in pairwise(places))
