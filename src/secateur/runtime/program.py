"""What lowering makes: operations for the kernels, and the PyTorch calls between them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.runtime.endings import Ending
from secateur.runtime.graph import Node
from secateur.runtime.layout import Layout
from secateur.runtime.pack import Packed, pack
from secateur.runtime.structs import Op


@dataclass
class Step:
    """Some operations of the engine in a row, or one node of PyTorch's."""

    node: Node | None = None
    first: int = 0
    last: int = 0
    reads: list[str] = field(default_factory=list)
    """Outside tensors the operations read."""
    writes: list[str] = field(default_factory=list)
    """Outside tensors they make."""
    drops: list[str] = field(default_factory=list)
    """Outside values nobody reads afterwards."""
    sizes: Any = None
    """Elements of one part of each outside tensor, for the kernels; known from the first run on."""


@dataclass
class Buffer:
    """A piece of the arena for tensors of one layout."""

    layout: Layout
    channels: int
    offset: int = -1


def take(layout: Layout, free: list[Buffer], buffers: list[Buffer]) -> Buffer:
    """A buffer of this layout out of `free`, the tightest that is large enough, or else the largest, widened; or a new one."""
    alike = [buffer for buffer in free if buffer.layout.of(0) == layout.of(0)]
    if not alike:
        buffers.append(Buffer(layout, layout.channels))
        return buffers[-1]
    enough = [buffer for buffer in alike if buffer.channels >= layout.channels]
    best = min(enough, key=lambda b: b.channels) if enough else max(alike, key=lambda b: b.channels)
    free[:] = [buffer for buffer in free if buffer is not best]
    best.channels = max(best.channels, layout.channels)
    return best


@dataclass
class Layer:
    """A convolution or linear layer on the engine: which operation it is, and what may be chosen for it."""

    node: Node
    place: int
    lines: int
    dot: bool
    weight: np.ndarray
    places: np.ndarray
    bias: np.ndarray | None
    size: int = 4
    """Bytes of a value: 2 in bf16; 1 in int8, where `weight` holds whole numbers and `end` says what follows."""
    end: Ending | None = None
    packed: dict[tuple[int, int], Packed] = field(default_factory=dict)

    @property
    def alike(self) -> bool:
        """Do all rows read the same channels? Those of different groups cannot share columns in a block."""
        return self.places.ndim == 1

    def pack(self, block: int, parts: int = 1) -> Packed:
        """Weights in blocks of `block` rows and `parts` of the columns, packed when first asked for."""
        if (block, parts) not in self.packed:
            self.packed[block, parts] = pack(
                self.weight, self.places, self.bias, block=block, parts=parts, ordered=self.dot, size=self.size, end=self.end
            )
        return self.packed[block, parts]


@dataclass
class Program:
    """Everything a run needs. `slots`: numbers of outside tensors in each engine step."""

    ops: Any
    count: int
    steps: list[Step]
    layers: dict[str, Layer]
    floats: int
    keep: list[Any]
    shapes: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, Layout]
    fills: Sequence[tuple[int, int, int]] = ()
    """Memory that begins with another byte than 0: first float, last float, byte."""

    def arena(self) -> Tensor:
        """Memory for one run at a time, its gaps filled."""
        memory = torch.zeros(self.floats)
        bytes_ = memory.numpy().view(np.uint8)
        for first, last, byte in self.fills:
            bytes_[4 * first : 4 * last] = byte
        return memory


def choose(program: Program, name: str, block: int, tile: int, split: int, parts: int = 1) -> None:
    """Set how layer `name` runs: rows in a block, lines in a tile, whether threads share rows or tiles, parts of columns."""
    layer = program.layers[name]
    block = block if layer.alike else 1
    packed = layer.pack(block, parts)
    op = program.ops[layer.place]
    op.words, op.start, op.rows, op.bias = (
        array.ctypes.data for array in (packed.words, packed.start, packed.rows, packed.bias)
    )
    if packed.scale is not None and packed.begin is not None:
        op.scale, op.begin = packed.scale.ctypes.data, packed.begin.ctypes.data
    op.blocks, op.block, op.tile, op.split, op.parts = len(packed.rows), block, tile, split, parts


def address(program: Program, index: int) -> int:
    """Of operation `index`, for the kernels."""
    return ctypes.addressof(program.ops) + index * ctypes.sizeof(Op)
