"""The forwards a trace looks at: in eval mode, and in training mode too where some parameters are read only there.

Auxiliary classifiers (GoogLeNet, Inception) hang on layers that eval mode alone would let be cut without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.graph.record import Node, recording
from secateur.graph.state import flat_tensors
from secateur.surgery import remembered

Call = tuple[tuple[Any, ...], dict[str, Any]]


def forward(model: nn.Module, call: Call, *, training: bool = False) -> Any:
    """The output for one call; what training draws at random is the same each time."""
    if not training:
        return model(*call[0], **call[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return model.train()(*call[0], **call[1])
        finally:
            model.eval()


def record(bones: nn.Module, call: Call) -> tuple[list[Node], list[Any], int]:
    """The operations on the meta device, the outputs, and how many of the operations belong to the forward in eval mode."""
    try:
        nodes, output = _record(bones, call, training=False)
    except Exception as error:  # whatever the user's forward raises
        shapes = [list(t.shape) for t in torch.utils._pytree.tree_leaves(call) if isinstance(t, torch.Tensor)]
        do = "give an example the model's forward accepts; it must not read values of tensors to decide what to do"
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise SecateurError(f"a trace of {type(bones).__name__} on input shapes {shapes}", what, do) from error
    unread = {id(p) for p in bones.parameters()} - _read(nodes)
    if unread:
        try:
            more, trained = _record(bones, call, training=True)
        except Exception:  # a forward that trains on other inputs
            more, trained = [], None
        if unread & _read(more):
            return [*nodes, *more], [output, trained], len(nodes)
    return nodes, [output], len(nodes)


def _record(bones: nn.Module, call: Call, *, training: bool) -> tuple[list[Node], Any]:
    with remembered(bones), recording(bones) as recorder:
        output = forward(bones, call, training=training)
    return recorder.nodes, output


def _read(nodes: Sequence[Node]) -> set[int]:
    return {id(tensor) for node in nodes for tensor in flat_tensors((node.args, node.kwargs))}
