"""Layers that become block-diagonal: workers that each read some channels and write some, and share none.

Shape legend: O out, I in, W workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.core import ranges
from secateur.core.errors import SecateurError, nearest
from secateur.core.strict import MEND, array, bad, fields, name_of, show, units_of

Groups = tuple[tuple[int, ...], ...]
"""Per worker its channels, ascending; every channel has one worker, and all workers have as many."""


@dataclass(frozen=True)
class Blocks:
    """The layer at `module`: worker w reads the channels `inputs[w]` and writes `outputs[w]`; weights between workers go."""

    module: str
    inputs: Groups
    outputs: Groups

    def __post_init__(self) -> None:
        asked = f"blocks for the layer {self.module!r}"
        if not self.module:
            raise SecateurError("blocks for the model itself", "no layer's name", "put the layer inside a module")
        for side in ("inputs", "outputs"):
            groups = tuple(tuple(int(channel) for channel in group) for group in getattr(self, side))
            object.__setattr__(self, side, groups)
            channels = sorted(channel for group in groups for channel in group)
            if channels != list(range(len(channels))) or not channels:
                raise SecateurError(asked, f"{side} that are not every channel once", "give every channel to one worker")
            if len({len(group) for group in groups}) > 1 or any(list(group) != sorted(group) for group in groups):
                raise SecateurError(asked, f"{side} of unequal sizes or out of order", "give every worker as many, ascending")
        if len(self.inputs) != len(self.outputs) or len(self.inputs) < 2:
            found = f"{len(self.inputs)} workers that read and {len(self.outputs)} that write"
            raise SecateurError(asked, found, "give both sides the same workers, two at least")

    @property
    def workers(self) -> int:
        """W."""
        return len(self.inputs)

    def __str__(self) -> str:
        return f"{self.workers} blocks of {len(self.outputs[0])} x {len(self.inputs[0])}"


@dataclass(frozen=True)
class Split:
    """A step that makes layers block-diagonal. All of them are of the model the step starts from."""

    layers: tuple[Blocks, ...]

    def __post_init__(self) -> None:
        names = [blocks.module for blocks in self.layers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SecateurError("a split step", f"layer {twice!r} named twice", "name each layer once per step")
        object.__setattr__(self, "layers", tuple(sorted(self.layers, key=lambda blocks: blocks.module)))


def split_shapes(shapes: Mapping[str, tuple[int, ...]], step: Split) -> dict[str, tuple[int, ...]]:
    """Tensor name to shape after `step`: weights (O, I / W, ...), and the orders of both sides beside them.

    Raises `SecateurError` for a layer that is not there, has other channels, or holds other tensors than weight and bias.
    """
    new = {name: tuple(shape) for name, shape in shapes.items()}
    for blocks in step.layers:
        path, weight = blocks.module, f"{blocks.module}.weight"
        asked = f"blocks for the layer {path!r}"
        if weight not in new:
            known = [name.removesuffix(".weight") for name in new if name.endswith(".weight")]
            hint = nearest(path, known)
            raise SecateurError(asked, f"no tensor {weight!r}", hint if hint.startswith("did") else "name a layer of the model")
        wanted = (sum(map(len, blocks.outputs)), sum(map(len, blocks.inputs)))
        if len(new[weight]) < 2 or new[weight][:2] != wanted:
            found = f"a weight of shape {list(new[weight])} where the blocks have {wanted[0]} outputs and {wanted[1]} inputs"
            raise SecateurError(asked, found, "split the layer the plan was made for")
        if other := next((n for n in new if n.startswith(f"{path}.") and n not in (weight, f"{path}.bias")), None):
            raise SecateurError(asked, f"a tensor {other!r} beside its weight", "leave the layer whole")
        new[weight] = (wanted[0], wanted[1] // blocks.workers, *new[weight][2:])
        new |= {f"{path}.reads": (wanted[1],), f"{path}.writes": (wanted[0],)}
    return new


def together(first: Split, second: Split) -> Split | None:
    """One step equal to both in turn, or None where `second` splits a layer that `first` made."""
    known = {blocks.module for blocks in first.layers}
    return None if any(blocks.module in known for blocks in second.layers) else Split(first.layers + second.layers)


def split_to_json(step: Split) -> dict[str, Any]:
    """The step as dicts, lists and text ranges."""
    layers = [
        {"layer": b.module, "inputs": [ranges.to_text(g) for g in b.inputs], "outputs": [ranges.to_text(g) for g in b.outputs]}
        for b in step.layers
    ]
    return {"do": "split", "layers": layers}


def split_from_json(value: Any, where: str, sizes: Mapping[str, tuple[int, ...]]) -> tuple[Split, dict[str, tuple[int, ...]]]:
    """(step, shapes after it). Raises `SecateurError` for whatever does not fit the model."""
    value = fields(value, {"do", "layers"}, set(), where)
    found: list[Blocks] = []
    for entry in array(value["layers"], f"the layers of {where}"):
        entry = fields(entry, {"layer", "inputs", "outputs"}, set(), f"a layer of {where}")
        layer = name_of(entry["layer"], f"a layer of {where}")
        at = f"{where}, layer {show(layer)}"
        shape = sizes.get(f"{layer}.weight", ())
        if len(shape) < 2:
            raise bad(f"{at}, which has no weight of two dims", MEND)
        try:
            sides = (_groups(entry["inputs"], shape[1], at), _groups(entry["outputs"], shape[0], at))
            found.append(Blocks(layer, *sides))
        except SecateurError as error:
            raise bad(f"{at}: {error.found}", error.do) from None
    try:
        step = Split(tuple(found))
        return step, split_shapes(sizes, step)
    except SecateurError as error:
        raise bad(f"{where}: {error.found}", error.do) from None


def _groups(value: Any, most: int, where: str) -> Groups:
    texts = array(value, f"the channels of {where}")
    if len(texts) > most:
        raise bad(f"{where} with {len(texts)} workers for {most} channels", MEND)
    return tuple(units_of(text, most, where) for text in texts)


def blocks_of(module: str, inputs: Iterable[int], outputs: Iterable[int], workers: int) -> Blocks:
    """Blocks from the worker of every input and of every output channel."""

    def groups(owners: Iterable[int]) -> Groups:
        found: list[list[int]] = [[] for _ in range(workers)]
        for channel, owner in enumerate(owners):
            found[owner].append(channel)
        return tuple(tuple(group) for group in found)

    return Blocks(module, groups(inputs), groups(outputs))
