"""From a graph and the shapes of its values to programs for the kernels, and the PyTorch calls between them.

Memory is planned here, once: tensors of one layout share buffers, so the zeros in their gaps are written once and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.runtime.coding import Coding, codes_of
from secateur.runtime.endings import coded_layer
from secateur.runtime.graph import Graph, Node, refs
from secateur.runtime.layout import LINE, Layout, Reach, flat, round_up, sizes, spread
from secateur.runtime.pack import by_group, offsets
from secateur.runtime.placing import KINDS, direct, gaps_of, only_outside, placed, reaches
from secateur.runtime.program import Buffer, Layer, Program, Step, take
from secateur.runtime.structs import Activation, Kind, Op

SLACK = 4096
"""Floats before and behind the arena: tiles at an edge read, and never use, what lies beyond their tensor."""


def lower(
    graph: Graph, values: Mapping[str, Any], *, lanes: int, dense: frozenset[str] = frozenset(), size: int = 4,
    coding: Coding | None = None,
) -> Program:  # fmt: skip
    """The program for values of these shapes; layers named in `dense` are left to PyTorch.

    `size`: 2 keeps maps in bf16; 1 in bytes, which stand for what `coding` says.
    """
    return _Lowering(graph, values, lanes, dense, size, coding if size == 1 else None).program()


class _Lowering:
    """Walks the graph once; keeps where each value is, and which buffers are free."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Any], lanes: int, dense: frozenset[str], size: int, coding: Coding | None
    ) -> None:
        self.graph, self.values, self.lanes, self.bytes = graph, values, lanes, size
        self.coding = coding or Coding({})
        self.codes = codes_of(graph, values, self.coding.ranges)
        self.gaps = gaps_of(graph, values)
        self.on_engine = placed(graph, values, dense, self.codes if size == 1 else None)
        self.real = only_outside(graph, self.on_engine) if size == 1 else set()
        self.ops: list[Op] = []
        self.patches: list[tuple[Op, str, Buffer, int]] = []
        self.steps: list[Step] = []
        self.held: dict[str, tuple[Buffer, Layout]] = {}
        self.outside: set[str] = set(graph.inputs) | set(graph.constants)
        self.buffers: list[Buffer] = []
        self.free: list[Buffer] = []
        self.scratch = 0
        self.scratches: list[Op] = []
        self.layers: dict[str, Layer] = {}
        self.borders: list[tuple[Step, str, str, Op]] = []
        self.keep: list[np.ndarray] = []
        self.masks: dict[Layout, int] = {}
        self.last: dict[str, int] = {}
        self.places = {node.name: place for place, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            self.last |= dict.fromkeys(node.inputs, self.places[node.name])
        for name in refs(graph.output):
            self.last[name] = len(graph.nodes)

    def layout(self, name: str) -> Layout:
        """Where value `name` lies: maps of one size share gaps."""
        channels, images, height, width = sizes(self.values[name].shape)
        size = 4 if name in self.real else self.bytes
        zero = self.codes[name].zero if size == 1 else 0
        if (height, width) == (1, 1):
            return flat(channels, images, size, zero=zero, line=64 // self.bytes)
        gap = self.gaps.get((height, width), (0, 0))
        return spread(channels, images, height, width, lanes=self.lanes, gap=gap, size=size, zero=zero, line=64 // self.bytes)

    def program(self) -> Program:
        for place, node in enumerate(self.graph.nodes):
            if node.name in self.on_engine:
                for name in node.inputs:
                    self._bring_in(name)
                self._emit(node)
            else:
                for name in node.inputs:
                    self._bring_out(name)
                self.steps.append(Step(node))
                self.outside.add(node.name)
            for name in {*node.inputs, node.name}:
                if self.last.get(name, place) == place:
                    self._release(name)
        for name in refs(self.graph.output):
            self._bring_out(name)
        return self._finished()

    def _release(self, name: str) -> None:
        found = self.held.pop(name, None)
        if found and all(buffer is not found[0] for buffer, _ in self.held.values()):
            self.free.append(found[0])
        if name in self.outside and name not in self.graph.constants and self.steps:
            self.steps[-1].drops.append(name)

    def _engine_step(self) -> Step:
        if not self.steps or self.steps[-1].node is not None:
            self.steps.append(Step(None, len(self.ops), len(self.ops)))
        return self.steps[-1]

    def _room(self, node: Node, layout: Layout, in_place: Sequence[str]) -> Buffer:
        """A buffer for what `node` computes: that of an operand it replaces element by element and nobody reads again, or a
        free one. The operand's lines of cache are at hand, where a free buffer's would have to be fetched.
        """
        for name in in_place:
            buffer, lies = self.held[name]
            others = [other for other, (held, _) in self.held.items() if held is buffer and other != name]
            if lies == layout and not others and self.last[name] == self.places[node.name] and node.inputs.count(name) == 1:
                return buffer
        return take(layout, self.free, self.buffers)

    def _op(self, kind: Kind, x: str | None, y: str | None, node: Node | None = None, **given: Any) -> Op:
        """Append an operation from value `x` to value `y`, both by name."""
        op = Op(kind=kind, other=-1)
        for name, what in ((x, "x"), (y, "y")):
            if name is not None:
                buffer, layout = self.held[name]
                setattr(op, {"x": "input", "y": "output"}[what], layout.plane())
                self.patches.append((op, what, buffer, 0))
                if layout.bytes == 1:
                    setattr(op, {"x": "in_scale", "y": "out_scale"}[what], self.codes[name].scale)
        if node is not None:
            kind_of = node.settings.get("activation")
            op.activation = KINDS[kind_of] if kind_of else Activation.NONE
            op.low, op.high = (
                (0.0, float("inf")) if kind_of == "relu" else (node.settings.get("low", 0), node.settings.get("high", 0))
            )
            op.after = int(node.settings.get("after", 0))
        for key, value in given.items():
            setattr(op, key, value)
        step = self._engine_step()
        self.ops.append(op)
        step.last = len(self.ops)
        return op

    def _bring_in(self, name: str) -> None:
        """Have the engine read value `name` from PyTorch, unless it has it."""
        if name not in self.held:
            layout = self.layout(name)
            self.held[name] = (take(layout, self.free, self.buffers), layout)
            self._border(self._op(Kind.IMPORT, None, name), name, "x", self._engine_step().reads)

    def _bring_out(self, name: str) -> None:
        """Have the engine hand value `name` to PyTorch, unless PyTorch has it."""
        if name not in self.outside and name in self.held:
            self._border(self._op(Kind.EXPORT, name, None), name, "y", self._engine_step().writes)
            self.outside.add(name)

    def _border(self, op: Op, name: str, what: str, passed: list[str]) -> None:
        passed.append(name)
        self.borders.append((self._engine_step(), name, what, op))
        shape = self.values[name].shape
        if len(shape) == 4:
            op.outer, op.inner, op.step = shape[1] * shape[2] * shape[3], shape[2] * shape[3], 1
        else:
            op.outer, op.inner, op.step = shape[-1], 1, 0

    def _emit(self, node: Node) -> None:
        if node.op in ("conv", "linear"):
            return self._layer(node)
        source = node.inputs[0]
        same = node.op == "flatten" or (
            node.op == "adaptive" and self.values[source].shape[2:] == self.values[node.name].shape[2:]
        )
        if same:  # the same memory under another name
            self.held[node.name] = self.held[source]
            return None
        layout = self.layout(node.name)
        in_place = node.inputs if node.op in ("add", "affine", "act", "mul") else ()
        self.held[node.name] = (self._room(node, layout, in_place), layout)
        if node.op == "cat":
            before = 0
            for name in node.inputs:
                op = self._op(Kind.COPY, name, node.name)
                self.patches[-1] = (op, "y", self.held[node.name][0], before * layout.channel * layout.bytes // 4)
                before += self.held[name][1].channels
        elif node.op in ("maxpool", "avgpool"):
            kind = Kind.MAXPOOL if node.op == "maxpool" else Kind.AVGPOOL
            op = self._op(kind, source, node.name)
            op.kernel[:], op.stride[:], op.padding[:] = (node.settings[key] for key in ("kernel", "stride", "padding"))
        elif node.op == "adaptive":
            self._op(Kind.MEAN, source, node.name)
        elif node.op == "mul":
            op = self._op(Kind.SCALE, source, node.name)
            self._other(op, node.inputs[1])
        else:
            op = self._op(Kind.AFFINE, source, node.name, node)
            op.mask = self._mask(layout)
            if node.op == "add":
                op.kind = Kind.ADD
                self._other(op, node.inputs[1])
            elif node.op == "affine":
                op.scale, op.bias = (self._array(node.tensors[key].float().numpy()) for key in ("scale", "shift"))
        return None

    def _other(self, op: Op, name: str) -> None:
        buffer, layout = self.held[name]
        op.other_channel = layout.channel
        if layout.bytes == 1:
            op.other_scale, op.other_shift = self.codes[name].scale, self.codes[name].shift
        self.patches.append((op, "other", buffer, 0))

    def _array(self, array: np.ndarray) -> int:
        array = np.ascontiguousarray(array)
        self.keep.append(array)
        return array.ctypes.data

    def _mask(self, layout: Layout) -> int | None:
        key = layout.of(0)
        if key not in self.masks:
            mask = layout.mask()
            self.masks[key] = 0 if mask is None else self._array(mask)
        return self.masks[key] or None

    def _layer(self, node: Node) -> None:
        source, layout = node.inputs[0], self.layout(node.name)
        weight = node.tensors["weight"].detach().float()
        bias = node.tensors["bias"].detach().float().numpy() if "bias" in node.tensors else None
        read = self.held[source][1]
        gathered = False
        if layout.single:
            places = np.arange(read.channels) * (1 if layout.images == 1 else read.channel * read.bytes)
            places = by_group(places[:, None], weight, node.settings.get("groups", 1))
        else:
            rows, columns = reaches(node)
            gathered = not direct(node, rows, columns, read, layout)
            if gathered:
                read = self._gather(node, rows, columns, layout)
            places = by_group(offsets(rows, columns, read, gathered), weight, node.settings["groups"])
        dot = layout.images == 1 and layout.single
        smooth = node.settings.get("activation") not in (None, "clamp", "relu")
        in_place = () if dot or (smooth and node.settings.get("after")) else node.inputs[1:]
        self.held[node.name] = (self._room(node, layout, in_place), layout)
        op = self._op(Kind.DOT if dot else Kind.CONV, source, node.name, node)
        if gathered:
            op.input = read.plane()
            self.patches = [patch for patch in self.patches if not (patch[0] is op and patch[1] == "x")]
            self.scratches.append(op)
        op.mask = None if node.name in self.real else self._mask(layout)
        if len(node.inputs) > 1:
            self._other(op, node.inputs[1])
        place = len(self.ops) - 1
        size = 4 if dot else self.bytes
        lines = max(-(-layout.span // 32) // 2, 1) if size == 1 else -(-layout.span // (64 // size))
        matrix, end = weight.reshape(len(weight), -1).numpy(), None
        if size == 1:
            matrix, end = coded_layer(node, matrix, bias, op, self.coding, self.codes, real=node.name in self.real)
            bias = end.bias
        self.layers[node.name] = Layer(node, place, lines, dot, matrix, places, bias, size, end)

    def _gather(self, node: Node, rows: Reach, columns: Reach, made: Layout) -> Layout:
        """Copy the input into scratch memory, by phases, with rows as long as the output's."""
        source = node.inputs[0]
        channels, images, height, width = sizes(self.values[source].shape)
        stride = node.settings["stride"]
        tall = rows.width(height, stride[0])
        wide = columns.width(width, stride[1])
        below = max(-rows.low, made.height + rows.high - tall, 0)
        ahead = (-rows.low * made.row - columns.low) * made.lanes
        gap, phases = (below, made.row - wide), rows.phases * columns.phases
        read = spread(channels * phases, images, tall, wide, lanes=made.lanes, gap=gap, ahead=ahead, size=self.bytes,
                      zero=self.codes[source].zero if self.codes else 0)  # fmt: skip
        op = self._op(Kind.GATHER, source, None)
        op.output = read.plane()
        op.kernel[:], op.phases[:], op.stride[:] = (rows.first, columns.first), (rows.phases, columns.phases), stride
        self.scratches.append(op)
        self.scratch = max(self.scratch, read.size)
        return read

    def _finished(self) -> Program:
        offset = SLACK
        for buffer in self.buffers:
            buffer.offset = offset
            offset += round_up(buffer.layout.of(buffer.channels).size) + 3 * LINE
        for op in self.scratches:
            setattr(op, "y" if op.kind == Kind.GATHER else "x", offset)
        for op, what, buffer, more in self.patches:
            setattr(op, what, buffer.offset + more)
        for step, name, what, op in self.borders:
            setattr(op, what, [*step.reads, *step.writes].index(name))
        ops = (Op * max(len(self.ops), 1))(*self.ops)
        shapes = {name: tuple(value.shape) for name, value in self.values.items() if isinstance(value, Tensor)}
        layouts = {name: self.layout(name) for name in self.on_engine}
        floats = offset + self.scratch + SLACK
        fills = [(b.offset, b.offset + b.layout.of(b.channels).size, b.layout.zero) for b in self.buffers if b.layout.zero]
        return Program(ops, len(self.ops), self.steps, self.layers, floats, self.keep, shapes, layouts, fills)
