"""From a model and an example to its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.graph.collect import counts, find, name_axes
from secateur.graph.record import Node, recording
from secateur.graph.rules import RULES, Rule
from secateur.graph.skeleton import arguments, on_meta, skeleton
from secateur.graph.state import State
from secateur.graph.verify import verify
from secateur.graph.walk import walk
from secateur.surgery import fingerprint, remembered


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
    bones = skeleton(model)
    call = on_meta(arguments(example))
    nodes, returned = record(bones, call)
    state = walk(bones, nodes, call, output(returned) if output else returned, {**RULES, **(rules or {})})
    attributes = verify(bones, nodes, state, call)
    found = find(bones, state, attributes)
    axes = Axes(tuple(name_axes(found)), fingerprint(model), counts(bones, state, found), _notes(state))
    return axes.ignore(*ignore) if ignore else axes


def record(bones: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[list[Node], Any]:
    """The operations of one forward on the meta device, and its output."""
    try:
        with remembered(bones), recording(bones) as recorder:
            output = bones(*call[0], **call[1])
    except Exception as error:  # whatever the user's forward raises
        shapes = [list(t.shape) for t in torch.utils._pytree.tree_leaves(call) if isinstance(t, torch.Tensor)]
        do = "give an example the model's forward accepts; it must not read values of tensors to decide what to do"
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise SecateurError(f"a trace of {type(bones).__name__} on input shapes {shapes}", what, do) from error
    return recorder.nodes, output


def _notes(state: State) -> tuple[str, ...]:
    """One line per operation without a rule."""
    return tuple(f"no rule for aten.{op}, used {len(nodes)} times" for op, nodes in sorted(state.unknown.items()))


__all__ = ["Axis", "record", "trace"]
