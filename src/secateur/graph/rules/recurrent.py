"""LSTM, GRU and plain recurrent layers and cells: hidden units carry their rows in every gate."""

from __future__ import annotations

from secateur.graph import dims as d
from secateur.graph.dims import Expr, Var
from secateur.graph.record import Node
from secateur.graph.state import State, flat_tensors

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def recurrent(state: State, node: Node) -> None:
    """One hidden size for all layers and directions, as `torch.nn` has it."""
    x, weights = state.of(node.args[0]), [state.of(w) for w in node.args[2]]
    layers, directions = int(node.args[4]), 2 if node.args[7] else 1
    per_cell = len(weights) // (layers * directions)
    if per_cell not in (2, 4):
        state.macs += [[*x.dims[:-1], *weight.dims] for weight in weights if len(weight.dims) > 1]
        return state.opaque("a projected recurrent layer")
    hidden: Expr = ((Var(d.size(weights[1].dims[1])),),)
    gates = GATES[node.op]
    below = x.dims[-1]
    for layer in range(layers):
        for direction in range(directions):
            first = (layer * directions + direction) * per_cell
            cell = weights[first : first + per_cell]
            rows = _rows(hidden, gates)
            state.unite(cell[0].dims[1], below)
            state.unite(cell[1].dims[1], hidden)
            for tensor in cell:
                state.unite(tensor.dims[0], rows)
                state.role(tensor, 0, "write")
            for tensor in cell[:2]:
                state.role(tensor, 1, "read")
            steps = x.dims[:-1]
            state.macs += [[*steps, rows, below], [*steps, rows, hidden]]
        below = hidden * directions
    for start in flat_tensors(node.args[1]):
        state.unite(state.of(start).dims[-1], hidden)
    state.set([*x.dims[:-1], below])
    for number, out in enumerate(node.outputs[1:], 1):
        lead = [state.fresh(n, "it counts layers or samples") for n in out.shape[:-1]]
        state.set([*lead, hidden], output=number)


def _rows(hidden: Expr, gates: int) -> Expr:
    if gates == 1:
        return hidden
    return ((Var(gates, "its units are the gates"), *hidden[0]),)


def cell(state: State, node: Node) -> None:
    """One step by hand: what it holds is what it gives."""
    x, weights = state.of(node.args[0]), [state.of(w) for w in node.args[2:] if w is not None]
    hidden: Expr = ((Var(d.size(weights[1].dims[1])),),)
    rows = _rows(hidden, GATES[node.op.removesuffix("_cell")])
    for value, below in zip(weights, (x.dims[-1], hidden), strict=False):
        state.unite(value.dims[1], below)
        state.role(value, 1, "read")
        state.macs.append([*x.dims[:-1], rows, below])
    for value in weights:
        state.unite(value.dims[0], rows)
        state.role(value, 0, "write")
    for held in flat_tensors(node.args[1]):
        state.unite(state.of(held).dims[-1], hidden)
    for number in range(len(node.outputs)):
        state.set([*x.dims[:-1], hidden], output=number)


def pack(state: State, node: Node) -> None:
    """Between (B, T, ...) and (steps, ...): what follows the batch and the time stays as it is."""
    given, data = state.of(node.args[0]), node.outputs[0]
    behind = given.dims[2:] if node.op == "_pack_padded_sequence" else given.dims[1:]
    lead = [state.fresh(n, "it counts steps or samples") for n in data.shape[: data.dim() - len(behind)]]
    state.freeze(given.dims[: len(given.dims) - len(behind)], "it counts steps or samples")
    kept = node.op == "_pack_padded_sequence" or not node.args[3]
    state.set([*lead, *behind], clean=given.clean and kept)
    state.set([state.fresh(n, "it counts steps or samples") for n in node.outputs[1].shape], output=1)


PACKED = dict.fromkeys(("_pack_padded_sequence", "_pad_packed_sequence"), pack)
RULES = {**PACKED, **dict.fromkeys(GATES, recurrent), **{f"{name}_cell": cell for name in GATES}}
