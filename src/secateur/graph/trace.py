"""From a model and an example to its axes."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.graph.collect import counts, find, name_axes
from secateur.graph.dims import leaves
from secateur.graph.passes import record
from secateur.graph.rules import RULES, Rule
from secateur.graph.skeleton import arguments, on_meta, skeleton
from secateur.graph.state import State, called
from secateur.graph.verify import verify
from secateur.graph.walk import UNKNOWN, walk
from secateur.surgery import fingerprint


def trace(
    model: nn.Module,
    example: Any,
    *,
    ignore: Sequence[str] = (),
    rules: Mapping[str, Rule] | None = None,
    output: Callable[[Any], Any] | None = None,
) -> Axes:
    """Every axis of `model`, free or fixed with the reason, and exact counts for any cut.

    `example` is a tensor, a tuple of positional or a dict of named arguments; only its shapes matter, and nothing is
    computed: the forward runs on the meta device. `ignore` takes shell patterns of axis or tensor names to leave whole.
    `rules` adds to, or replaces, entries of `secateur.graph.RULES`. `output` picks, from what the forward returns, what has
    to keep its shape, as in `lambda out: out.logits`; all of it by default, hidden states among it.

    Raises `SecateurError` where the model's forward does not run on the example.

    >>> axes = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    >>> [(axis.name, axis.units) for axis in axes.free]
    [('0', 8)]
    """
    with _no_collection():
        bones = skeleton(model)
        call = on_meta(arguments(example))
        nodes, returned, counted = record(bones, call)
        returned[0] = output(returned[0]) if output else returned[0]
        state = walk(bones, nodes, call, returned, {**RULES, **(rules or {})}, counted=counted)
        attributes = verify(bones, nodes, state, call)
        found = find(bones, state, attributes)
        axes = Axes(tuple(name_axes(found, bones)), fingerprint(model), counts(bones, state, found), _notes(bones, state))
    return axes.ignore(*ignore) if ignore else axes


@contextmanager
def _no_collection() -> Iterator[None]:
    """A trace makes many small objects that live as long as it does; looking for garbage among them is pure cost."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _notes(bones: nn.Module, state: State) -> tuple[str, ...]:
    """One line per operation without a rule, the one that holds most parameters first."""
    held: Counter[str] = Counter(dict.fromkeys(state.unknown, 0))
    for parameter in bones.parameters():
        reasons = {var.fixed or "" for expr in state.of(parameter).dims for var in leaves(expr)}
        held.update({op: parameter.numel() for op in state.unknown if any(f"{UNKNOWN} ({called(op)} at" in r for r in reasons)})
    return tuple(
        f"no rule for {called(op)}, used {len(state.unknown[op])} times; one could free up to {entries:,} parameters"
        for op, entries in held.most_common()
    )


__all__ = ["Axis", "record", "trace"]
