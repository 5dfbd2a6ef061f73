"""What layers read or write in a forward, and what a residual network adds to it.

Shape legend: O outputs, D inputs of one output, M rows (samples times positions).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.attention import following
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, pairs, to_device
from secateur.measure.layers import outputs, row_count, rows
from secateur.measure.moments import Moments, drawn

ADDITIONS = {"add", "__add__", "__radd__", "__iadd__", "add_"}


class _Enough(Exception):
    """All has been seen; the rest of the forward is not needed."""


@dataclass(eq=False)
class Seen:
    """Of one layer in one forward: rows of what it reads or writes, one tensor per call, and of what is added to its output.

    `added` (M, O) is None where nothing is added, or what was computed after the layer's call: of two summands the one
    computed last makes good the error of the other. It belongs to the first call.
    """

    rows: list[Tensor] = field(default_factory=list)
    added: Tensor | None = None


@dataclass(eq=False)
class _Waiting:
    """A layer whose sum has not come yet: when it was called, what its output has become."""

    since: int
    summand: Tensor | None = None


class _Sums(TorchFunctionMode):
    """Waits for the sums of some tensors with others."""

    def __init__(self, found: Callable[[str, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.waiting: dict[str, _Waiting] = {}
        self.clock = 0
        self.born: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.waiting and len(args) == 2 and getattr(func, "__name__", "") in ADDITIONS:
            for name in [name for name, wait in self.waiting.items() if wait.summand is not None]:
                self._look(name, *args)
        result = func(*args, **(kwargs or {}))
        if self.waiting and isinstance(result, Tensor):
            self.clock += 1
            self.born[id(result)] = weakref.ref(result), self.clock
        return result

    def _look(self, name: str, one: Any, two: Any) -> None:
        wait = self.waiting[name]
        other = two if one is wait.summand else one if two is wait.summand else None
        if not isinstance(other, Tensor) or wait.summand is None or other.shape != wait.summand.shape:
            return
        known, when = self.born.get(id(other), (None, 0))
        late = known is not None and known() is other and when > wait.since
        del self.waiting[name]
        if not late:
            self.found(name, other)


def seen(
    model: nn.Module,
    layers: Mapping[str, str | None],
    inputs: Any,
    side: Literal["reads", "writes"],
    *,
    sample: int | None = None,
    until: Mapping[str, Seen] | None = None,
) -> dict[str, Seen]:
    """What each of `layers` reads or writes while `model` runs once on `inputs`.

    `layers`: the name of each, and of the module whose output is a summand, the layer itself or the batch norm behind it;
    None where sums are of no interest. `sample`: rows that are taken of each call. The forward ends once every layer has as
    many calls, and a sum where it has one, as in `until`.
    """
    result = {name: Seen() for name in layers}
    modules = {name: model.get_submodule(name) for name in layers}

    def settle() -> None:
        if until is not None and all(
            len(result[name].rows) >= len(end.rows) and (end.added is None or result[name].added is not None)
            for name, end in until.items()
        ):
            raise _Enough

    def found(name: str, other: Tensor) -> None:
        pick = drawn(row_count(modules[name], other), sample)
        result[name].added = outputs(modules[name], other, pick).clone()  # a sum in place may write into it
        settle()

    watch = _Sums(found)

    def look(name: str, outlet: str | None) -> Any:
        def take(module: nn.Module, args: Any, output: Tensor) -> None:
            pick = drawn(row_count(module, output), sample)
            with torch._C.DisableTorchFunction():
                part = rows(module, args[0], pick) if side == "reads" else outputs(module, output, pick)
                result[name].rows.append(_own(part, args[0] if side == "reads" else output))
            if outlet is not None and len(result[name].rows) == 1:
                watch.waiting[name] = _Waiting(watch.clock)
            settle()

        return take

    def note(name: str) -> Any:
        def take(module: nn.Module, args: Any, output: Tensor) -> None:
            if name in watch.waiting and watch.waiting[name].summand is None:
                watch.waiting[name].summand = output

        return take

    handles = [modules[name].register_forward_hook(look(name, outlet)) for name, outlet in layers.items()]
    handles += [model.get_submodule(outlet).register_forward_hook(note(name)) for name, outlet in layers.items() if outlet]
    try:
        with torch.no_grad(), evaluating(model), following(model, layers), watch, suppress(_Enough), fits(inputs):
            call(model, to_device(inputs, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return result


def _own(part: Tensor, source: Tensor) -> Tensor:
    """`part` in memory of its own: later layers may write into `source`."""
    return part.clone() if part.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() else part


def written(
    model: nn.Module, layers: Mapping[str, str | None], batches: Batches, *, limit: int | None, sample: int | None
) -> Iterator[tuple[Any, dict[str, Seen]]]:
    """(inputs, what each layer writes), batch by batch; from the second on a forward ends once all has been seen."""
    first: dict[str, Seen] | None = None
    for inputs, _ in pairs(batches, limit):
        found = seen(model, layers, inputs, "writes", sample=sample, until=first)
        first = first or found
        yield inputs, found


def target_moments(
    current: nn.Module,
    name: str,
    outlet: str | None,
    targets: Iterable[tuple[Any, Seen]],
    *,
    kept: Tensor,
    sample: int | None = None,
) -> Moments | None:
    """Moments of the inputs of layer `name` in `current` and of targets that make good its shortcut's error.

    `outlet`: the module whose output is added to a shortcut, None where none is. `targets`: the inputs of each batch and what
    was `written` in the original. With Y the layer's outputs there and S, S' what the shortcut adds there and in the current
    network, the target is ``Y + (S - S')``, for the channels `kept` (O',) of the original; Y alone where the output is no
    summand. Where a batch norm stands between layer and sum, S - S' goes backwards through its scale. `sample`: rows of each
    call, as in `input_moments`. None without a batch.

    Source: He et al., 2017, section 3.3, "Y2 + (Y1 - Y1')".
    """
    scale = scale_behind(current, name, outlet)
    sums: list[Tensor] = []
    count = 0
    for inputs, then in targets:
        summand = {name: outlet if then.added is not None else None}
        now = seen(current, summand, inputs, "reads", sample=sample, until={name: then})[name]
        for part, target in zip(now.rows, goals(then, now, kept, scale), strict=False):
            part = part.double()
            parts = [value.cpu() for value in (part.sum(0), target.sum(0), part.T @ part, part.T @ target)]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            count += len(part)
    return Moments(*(total / count for total in sums)) if count else None


def goals(then: Seen, now: Seen, kept: Tensor, scale: Tensor | None) -> Iterator[Tensor]:
    """For each call what it shall write, (M, O') float64: what it wrote then, and what is missing in its shortcut."""
    for number, target in enumerate(then.rows):
        target = target.double()[:, kept.to(target.device)]
        if number == 0 and now.added is not None and then.added is not None:
            missing = then.added.double()[:, kept.to(target.device)] - now.added.double()
            target = target + (missing if scale is None else missing * scale)
        yield target


def scale_behind(current: nn.Module, name: str, outlet: str | None) -> Tensor | None:
    """By what a difference behind the batch norm `outlet` of a layer is multiplied to stand before it; None without one."""
    return _scale(current.get_submodule(outlet)) if outlet is not None and outlet != name else None


def _scale(norm: Any) -> Tensor:
    """By what a difference behind a batch norm is multiplied to stand before it; 0 where the norm lets nothing through."""
    deviation = (norm.running_var + norm.eps).sqrt().double()
    weight = norm.weight.detach().double() if norm.weight is not None else torch.ones_like(deviation)
    return torch.where(weight.abs() > 1e-6, deviation / weight.where(weight.abs() > 1e-6, 1.0), 0.0)
