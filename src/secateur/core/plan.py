"""The plan: a value that says what becomes of every axis, and the only thing that touches a model's structure.

A plan prints, diffs, composes, goes to JSON and applies to a freshly built model with no tracer and no example input.
The doors to layer 1 (`apply`, `preview`, `facts`) import when called: `core` holds values and does no work on models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from secateur.core import ranges
from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product, full_ranks, settle
from secateur.core.keep import Cut, Keep
from secateur.core.mask import Mask, Support, both, require_fit, supports_of
from secateur.core.split import Blocks, Split, together

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from secateur.core.facts import Facts

Shapes = Mapping[str, tuple[int, ...]]
__all__ = ["Cut", "Keep", "Plan", "Shapes", "Step", "factor", "keep", "mask", "split"]


Step = Keep | Factor | Mask | Split
"""The closed set of what a plan can do."""


@dataclass(frozen=True)
class Plan:
    """Steps for one architecture, known by the names and shapes of its tensors (values do not matter).

    >>> print(Plan({}))
    nothing changes
    """

    fingerprint: Shapes
    steps: tuple[Step, ...] = ()
    _: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps = tuple(step for step in self.steps if _parts(step))
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "fingerprint", dict(self.fingerprint))

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.fingerprint)), self.steps))

    def __str__(self) -> str:
        lines = []
        for number, step in enumerate(self.steps, 1):
            if len(self.steps) > 1:
                lines.append(f"step {number}: {type(step).__name__.lower()}")
            if not isinstance(step, Keep):
                parts = _parts(step)
                wide = max(len(name) for _, name in parts)
                lines += [f"{name:<{wide}}  -> {_said(part)}" for (_, name), part in parts.items()]
                continue
            moved = [cut for cut in step.cuts if len(cut.kept) < cut.units]
            wide = max((len(cut.axis) for cut in moved), default=0)
            lines += [f"{cut.axis:<{wide}}  {cut.units:>5} -> {len(cut.kept):<5} {ranges.to_text(cut.kept)}" for cut in moved]
        return "\n".join(lines) or "nothing changes"

    def check(self, model: nn.Module | Shapes) -> None:
        """Raise `SecateurError` naming the first tensors that disagree, unless the plan was made for this architecture."""
        from secateur.surgery.fingerprint import mismatches

        touched = {slot.tensor for step in self.steps if isinstance(step, Keep) for cut in step.cuts for slot in cut.slots}
        wrong = mismatches(self.fingerprint, model, touched=touched)
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            do = "build the model the plan was made for, before any cut"
            for wrapper in ("module", "_orig_mod"):  # data parallel, averaged and compiled models hold the network there
                inner = getattr(model, wrapper, None)
                if inner is None or not hasattr(inner, "named_parameters"):
                    continue
                if not mismatches(self.fingerprint, inner, touched=touched):
                    do = f"give the network inside the wrapper, model.{wrapper}, and wrap that again afterwards"
            raise SecateurError("a plan applied to this model", "; ".join(wrong[:3]) + more, do)

    def apply(self, model: nn.Module) -> nn.Module:
        """A smaller copy of `model`; `model` itself stays untouched, bit for bit. Raises `SecateurError` on a wrong model."""
        from secateur.surgery.apply import apply

        return apply(self, model)

    def apply_(self, model: nn.Module, *, optimizer: optim.Optimizer | None = None) -> nn.Module:
        """Cut `model` itself and carry the state of `optimizer` (momentum, moments) over to the new parameters."""
        from secateur.surgery.apply import apply_

        return apply_(self, model, optimizer=optimizer)

    def preview(self, model: nn.Module) -> nn.Module:
        """A module that computes what the cut model would, without surgery: weights that read dropped units are zero.

        Only plans of one step can be previewed on the original model.
        """
        from secateur.surgery.preview import Preview

        return Preview(self, model)

    def facts(self, model: nn.Module, *example: Tensor) -> Facts:
        """Counted params, MACs and bytes of the model after this plan."""
        from secateur.measure.count import facts

        return facts(self.apply(model), *example)

    def then(self, later: Plan) -> Plan:
        """The plan that does this one and then `later`; steps on the same axes fold into one.

        Raises `SecateurError` where `later` was made for another model than the one this plan leaves.
        """
        from secateur.surgery.fingerprint import mismatches, shapes_after

        if not self.fingerprint or not self.steps:
            if self.fingerprint and later.fingerprint and (wrong := mismatches(later.fingerprint, self.fingerprint)):
                raise SecateurError("two plans composed", wrong[0], "give a second plan made for the same model")
            return later if later.fingerprint else self
        if not later.steps:
            return self
        wrong = mismatches(later.fingerprint, shapes_after(self))
        if wrong:
            do = "trace the model this plan leaves, and plan on that"
            raise SecateurError("two plans composed", "; ".join(wrong[:3]), do)
        steps = list(self.steps)
        for step in later.steps:
            steps = _joined(steps, step)
        return replace(self, steps=tuple(steps))

    def diff(self, other: Plan) -> list[str]:
        """Lines that say where the plans differ; empty if and only if they are equal."""
        lines = [f"model: {name}" for name in sorted(set(self.fingerprint) ^ set(other.fingerprint))]
        both = set(self.fingerprint) & set(other.fingerprint)
        lines += [
            f"model: {name} {list(self.fingerprint[name])} | {list(other.fingerprint[name])}"
            for name in sorted(both)
            if tuple(self.fingerprint[name]) != tuple(other.fingerprint[name])
        ]
        for number in range(max(len(self.steps), len(other.steps))):
            mine = _parts(self.steps[number]) if number < len(self.steps) else {}
            theirs = _parts(other.steps[number]) if number < len(other.steps) else {}
            for kind, name in sorted(set(mine) | set(theirs)):
                one, two = mine.get((kind, name)), theirs.get((kind, name))
                if one != two:
                    lines.append(f"step {number + 1}: {name}: {_said(one)} | {_said(two)}")
        return lines

    def widths(self) -> dict[str, tuple[int, int]]:
        """Axis name to units before the first and after the last step; a rank is an axis that starts at the full rank."""
        from secateur.surgery.fingerprint import shapes_after

        widths: dict[str, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            if isinstance(step, Factor):
                shapes = shapes_after(replace(self, steps=self.steps[:number]))
                for product in step.products:
                    full = full_ranks(product.format, tuple(shapes[f"{product.module}.weight"]), groups=product.groups)
                    ranks = zip(full, product.ranks, strict=True)
                    widths |= {f"{product.module}.{place}": pair for place, pair in enumerate(ranks)}
            for cut in step.cuts if isinstance(step, Keep) else ():
                before = widths.get(cut.axis, (cut.units, 0))[0]
                widths[cut.axis] = (before, len(cut.kept))
        return widths


def keep(fingerprint: Shapes, cuts: Iterable[Cut]) -> Plan:
    """A plan of one keep step."""
    return Plan(fingerprint, (Keep(tuple(cuts)),))


def factor(fingerprint: Shapes, products: Iterable[Product]) -> Plan:
    """A plan of one factor step."""
    return Plan(fingerprint, (Factor(tuple(products)),))


def split(fingerprint: Shapes, layers: Iterable[Blocks]) -> Plan:
    """A plan of one split step."""
    return Plan(fingerprint, (Split(tuple(layers)),))


def mask(fingerprint: Shapes, masks: Mapping[str, Any]) -> Plan:
    """A plan of one mask step: entries of each named tensor stay where its mask (an array or tensor) is not zero.

    Raises `SecateurError` for names the model does not have and masks of another shape.
    """
    step = Mask(tuple(supports_of(masks)))
    require_fit(step, fingerprint)
    return Plan(fingerprint, (step,))


Part = Cut | Product | Support | Blocks


def _parts(step: Step) -> dict[tuple[str, str], Part]:
    """What a step says, by kind and name."""
    if isinstance(step, Mask):
        return {("mask", support.tensor): support for support in step.supports}
    if isinstance(step, Split):
        return {("split", blocks.module): blocks for blocks in step.layers}
    if isinstance(step, Keep):
        return {("keep", cut.axis): cut for cut in step.cuts}
    return {("factor", product.module): product for product in step.products}


def _said(part: Part | None) -> str:
    if isinstance(part, Cut):
        return f"{ranges.to_text(part.kept)} of {part.units}"
    return "-" if part is None else str(part)


def _joined(steps: list[Step], step: Step) -> list[Step]:
    """`steps` and one more, in as few as can be."""
    last = steps[-1]
    if isinstance(step, Keep):
        folded = _fold(last, step) if isinstance(last, Keep) else None
        return [*steps[:-1], folded] if folded else [*steps, step]
    if isinstance(step, Mask):
        return [*steps[:-1], both(last, step)] if isinstance(last, Mask) else [*steps, step]
    if isinstance(step, Split):
        merged = together(last, step) if isinstance(last, Split) else None
        return [*steps[:-1], merged] if merged else [*steps, step]
    start = len(steps)
    while start and isinstance(steps[start - 1], Factor):
        start -= 1
    row = [factor for factor in steps[start:] if isinstance(factor, Factor)]
    return [*steps[:start], *settle([*row, step])]


def _fold(first: Keep, second: Keep) -> Keep | None:
    """One step equal to both in turn, or None where `second` cuts an axis `first` does not know.

    Kept units compose by indexing; the slots are those of `first`, whose coordinates the folded step starts from.
    """
    known = {cut.axis: cut for cut in first.cuts}
    folded = dict(known)
    for cut in second.cuts:
        before = known.get(cut.axis)
        if before is None or len(before.kept) != cut.units or not _same_places(before, cut):
            return None
        folded[cut.axis] = replace(before, kept=tuple(before.kept[unit] for unit in cut.kept))
    return Keep(tuple(folded.values()))


def _same_places(before: Cut, after: Cut) -> bool:
    """Do both cuts speak of the same tensors, dims and roles?"""

    def places(cut: Cut) -> list[tuple[str, int, str]]:
        return sorted((slot.tensor, slot.dim, slot.role) for slot in cut.slots)

    return places(before) == places(after)
