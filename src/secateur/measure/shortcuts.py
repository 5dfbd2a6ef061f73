"""The other side of a sum: what a residual network adds to the output of a layer.

Shape legend: O outputs, D inputs of one output, M rows (samples times positions).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, pairs, to_device
from secateur.measure.layers import outputs, rows
from secateur.measure.moments import Moments, drawn

ADDITIONS = {"add", "__add__", "__radd__", "__iadd__", "add_"}


class _Found(Exception):
    """The sum has been seen; the rest of the forward is not needed."""


class _Sum(TorchFunctionMode):
    """Waits for the sum of one tensor with another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mine: Tensor | None = None
        self.other: Tensor | None = None
        self.later: list[Tensor] | None = None  # what was computed since the layer was called, kept so that ids stay unique

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.mine is not None and len(args) == 2 and getattr(func, "__name__", "") in ADDITIONS:
            one, two = args
            other = two if one is self.mine else one if two is self.mine else None
            if isinstance(other, Tensor) and other.shape == self.mine.shape:
                known = self.later is not None and not any(value is other for value in self.later)
                self.other = other.clone() if known else None
                raise _Found
        result = func(*args, **(kwargs or {}))
        if self.later is not None and isinstance(result, Tensor):
            self.later.append(result)
        return result


def at_sum(model: nn.Module, layer: str, outlet: str, inputs: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input of `layer`, its output, what is added to the output of `outlet`); None where nothing is, or not yet.

    `outlet`: the module whose output is the summand, the layer itself or the batch norm behind it. Both are called once.
    Of two summands the one computed last makes good the error of the other: what was computed after `layer` is None here.
    """
    watch = _Sum()
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        seen["x"], seen["y"], watch.later = args[0].clone(), output.clone(), []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        watch.mine = output

    handles = [model.get_submodule(layer).register_forward_hook(look), model.get_submodule(outlet).register_forward_hook(note)]
    try:
        with torch.no_grad(), evaluating(model), watch, suppress(_Found):
            call(model, to_device(inputs, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return seen["x"], seen["y"], watch.other


def residual_moments(
    pair: tuple[nn.Module, nn.Module],
    layer: str,
    outlet: str,
    batches: Batches,
    *,
    kept: Tensor,
    limit: int | None = None,
    sample: int | None = None,
) -> Moments | None:
    """Moments of the inputs of `layer` in the current network and of targets that make good its shortcut's error.

    `pair`: (current, original). With Y the layer's outputs in the original network and S, S' what the shortcut adds there
    and in the current one, the target is ``Y + (S - S')``, for the channels `kept` (O',) of the original. Where a batch norm
    stands between layer and sum, S - S' goes backwards through its scale. None where the output is no summand. `sample`: rows
    of each batch, as in `input_moments`.

    Source: He et al., 2017, section 3.3, "Y2 + (Y1 - Y1')".
    """
    current, original = pair
    own, old = current.get_submodule(layer), original.get_submodule(layer)
    scale = _scale(current.get_submodule(outlet)) if outlet != layer else None
    sums: list[Tensor] = []
    count = 0
    for inputs, _ in pairs(batches, limit):
        x, _, now = at_sum(current, layer, outlet, inputs)
        _, y, before = at_sum(original, layer, outlet, inputs)
        if now is None or before is None:
            return None
        pick, channels = drawn(len(outputs(old, y)), sample), kept.to(y.device)
        target = outputs(old, y)[pick].double()[:, channels]
        missing = outputs(old, before)[pick].double()[:, channels] - outputs(own, now)[pick].double()
        target = target + (missing if scale is None else missing * scale)
        part = rows(own, x)[pick].double()
        parts = [value.cpu() for value in (part.sum(0), target.sum(0), part.T @ part, part.T @ target)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        count += len(part)
    return Moments(*(total / count for total in sums)) if count else None


def _scale(norm: Any) -> Tensor:
    """By what a difference behind a batch norm is multiplied to stand before it; 0 where the norm lets nothing through."""
    deviation = (norm.running_var + norm.eps).sqrt().double()
    weight = norm.weight.detach().double() if norm.weight is not None else torch.ones_like(deviation)
    return torch.where(weight.abs() > 1e-6, deviation / weight.where(weight.abs() > 1e-6, 1.0), 0.0)
