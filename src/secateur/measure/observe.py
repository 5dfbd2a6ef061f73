"""What flows into and out of chosen layers while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.attention import following
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, pairs, to_device

Look = Callable[[Tensor, Tensor], None]
"""(input, output) of one call of a layer; copy what you keep, later layers may write into both."""


class _SeenAll(Exception):
    """Every call that was asked for has been seen; the rest of the forward is not needed."""


def observe(
    model: nn.Module, looks: Mapping[str, Look], batches: Batches, limit: int | None = None, *, calls: int | None = None
) -> int:
    """How many of `batches` (at most `limit`) ran through `model` while each named layer showed its calls to its function.

    In evaluation mode, without gradients; the model comes out as it went in. A forward ends at the last call that is looked
    at, from the second batch on, or from the first where it is known that there are so many `calls`. Raises `SecateurError`
    where there is no batch.
    """
    seen, expected, device = 0, calls or -1, device_of(model)

    def hook(look: Look):  # type: ignore[no-untyped-def]
        def show(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            nonlocal seen
            look(args[0] if args else next(iter(named.values())), output)
            seen += 1
            if seen == expected:
                raise _SeenAll

        return show

    handles = [model.get_submodule(name).register_forward_hook(hook(look), with_kwargs=True) for name, look in looks.items()]
    number = 0
    try:
        with torch.no_grad(), evaluating(model), following(model, looks):
            for inputs, _ in pairs(batches, limit):
                seen = 0
                with suppress(_SeenAll), fits(inputs):
                    call(model, to_device(inputs, device))
                expected, number = seen if seen else -1, number + 1
    finally:
        for handle in handles:
            handle.remove()
    if not number:
        raise SecateurError("a pass over data", "no batch", "give data that can be iterated anew for every pass")
    return number


def call_order(model: nn.Module, names: Mapping[str, nn.Module], batches: Batches) -> tuple[list[str], dict[str, str]]:
    """The named layers in the order of their first call, and for each layer the one among them that reads its output first."""
    order: list[str] = []
    held: list[tuple[str, Tensor]] = []  # outputs stay alive, so that no other tensor takes their place
    readers: dict[str, str] = {}

    def look(name: str) -> Look:
        def see(given: Tensor, output: Tensor) -> None:
            for writer, tensor in held:
                if tensor is given:
                    readers.setdefault(writer, name)
            held.append((name, output))
            if name not in order:
                order.append(name)

        return see

    observe(model, {name: look(name) for name in names}, batches, limit=1)
    return order, readers


def outlets(model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches) -> dict[str, str]:
    """For each of `layers` that runs, in the order of their first call, the batch norm that takes its output, or itself.

    Batch norms with running statistics count. One batch is run.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and isinstance(m.running_mean, Tensor)}
    order, behind = call_order(model, {**layers, **norms}, batches)
    return {name: behind[name] if behind.get(name) in norms else name for name in order if name in layers}
