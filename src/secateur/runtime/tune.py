"""Which kernel each layer gets: tried on the machine, in the memory the layer will use, and remembered.

The choices stay in a JSON file in the cache folder, under the instruction set, the number of threads and the layer's sizes.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.native.build import cache_folder
from secateur.native.library import library, path, plain
from secateur.runtime.dense import run_node
from secateur.runtime.graph import Node
from secateur.runtime.program import Layer, Program, address, choose
from secateur.runtime.structs import Kind

TILES = {"avx512": (2, 3, 4, 5, 6, 7, 8, 10, 12, 14), "avx2": (1, 2, 3, 4, 5, 6, 7), "portable": (1, 2, 3, 4)}
"""Lines of 16 floats whose sums fit in the registers of each instruction set."""
WIDE = {"avx512": (4, 5, 6, 7), "avx2": (1, 2, 3), "portable": (1, 2)}
"""The same for two and four rows at once."""
HALF_TILES = {"avx512_bf16": (1, 2, 3, 4, 5, 6, 7), "avx512": (1, 2, 3, 4, 5, 6, 7), "avx2": (1, 2, 3), "portable": (1, 2)}
"""Lines of 32 bf16 values, likewise."""
BYTE_TILES = {"avx512_vnni": (1, 2, 3, 4, 5), "avx512": (1, 2, 3), "avx2": (1,), "portable": (1,)}
"""Lines of 64 bytes, likewise."""
BYTE_WIDE = {"avx512_vnni": (1, 2, 3), "avx512": (1,), "avx2": (1,), "portable": (1,)}
HALF_WIDE = {"avx512_bf16": (2, 3, 4, 5), "avx512": (2, 3), "avx2": (1,), "portable": (1,)}
VALUES: dict[int, tuple[str, ...]] = {4: (), 2: ("bf16",), 1: ("int8",)}
"""What stands in the key of a layer whose values take so many bytes."""
FROM = {2: 0.12, 4: 0.25}
"""Density from which two and four rows are tried: below, columns that rows share are too rare."""
LEAST_PARTED = 0.01
"""Density above which columns are tried in parts: below, fetching and storing sums costs more than it saves."""
SHORT = 3
"""Lines a tile of float32 has at least, where columns come in parts."""
L1 = 24 << 10
"""Bytes of inputs meant to stay in the first cache, beside weights and sums."""
LONG = 3_000_000
"""Nanoseconds of a layer that is timed once, or by several threads twice: something else may have held one of them up."""
FORGET = 20_000
"""Entries of the file of choices; beyond, it starts anew."""


@dataclass(frozen=True)
class Choice:
    """How a layer runs, and how long that took.

    Rows in a block, lines of 64 bytes in a tile, 1 where threads share rows, parts of columns; `size`: bytes of a value.
    """

    block: int
    tile: int
    split: int
    parts: int
    nanoseconds: int
    size: int = 4


@functools.cache
def peak(isa: str, threads: int) -> float:
    """Multiply-adds per second this machine does at most."""
    return float(library().secateur_peak(threads))


def tiles_of(isa: str, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tiles worth trying for one row, and for several at once, of values of `size` bytes."""
    if size == 4:
        return TILES[plain(isa)], WIDE[plain(isa)]
    if size == 2:
        isa = isa if isa in HALF_TILES else plain(isa)
        return HALF_TILES[isa], HALF_WIDE[isa]
    isa = "avx512_vnni" if isa == "avx512_bf16" else isa  # such CPUs have both
    return BYTE_TILES[isa], BYTE_WIDE[isa]


def largest_tile(block: int, isa: str, *, size: int) -> int:
    """The largest tile there is a kernel for, in lines, for blocks of so many rows."""
    if size == 1:
        return {1: 6, 2: 3, 4: 2}[block] if plain(isa) == "avx512" else 1
    if size == 2:
        return max(tiles_of(isa, 2)[0])
    return 14 if block == 1 else 7


def tune(program: Program, arena: int, threads: int) -> dict[str, Choice]:
    """Try the kernels on every layer, keep the fastest, and set it. `arena`: address of the memory the program uses.

    Layers of equal sizes and density share a choice, whatever the number of images.
    """
    lib, isa = library(), path()
    known = _Remembered.read()
    found: dict[str, Choice] = {}
    for name, layer in program.layers.items():
        key = _key(program, layer, isa, threads)
        op = program.ops[layer.place]
        images = 1 if layer.dot else -(-op.output.images // op.output.lanes)
        choice = known.get(key)
        if choice is None or choice.tile > largest_tile(choice.block, isa, size=layer.size):

            def timed(block: int, tile: int, split: int, parts: int = 1, name: str = name, place: int = layer.place) -> int:
                choose(program, name, block, tile, split, parts)
                once = int(lib.secateur_time(address(program, place), arena, None, threads, 1))
                if once > LONG and threads == 1:
                    return once
                repeats = 1 if once > LONG else 3
                return min(once, int(lib.secateur_time(address(program, place), arena, None, threads, repeats)))

            choice = _fastest(layer, isa, threads, timed, _columns_bytes(program, layer))
            choice = replace(choice, nanoseconds=choice.nanoseconds // images)
            known[key] = choice
        choose(program, name, choice.block, choice.tile, choice.split, choice.parts)
        layer.packed = {(choice.block, choice.parts): layer.packed[choice.block, choice.parts]}
        found[name] = replace(choice, nanoseconds=choice.nanoseconds * images, size=layer.size)
    _Remembered.write()
    return found


def _fastest(layer: Layer, isa: str, threads: int, timed: Callable[..., int], column: Callable[[int], int]) -> Choice:
    """The fastest kernel for a layer whose inputs take `column(tile)` bytes for one tile."""
    if layer.dot:
        return Choice(1, 1, 0, 1, timed(1, 1, 0))
    density = float((layer.weight != 0).mean())
    narrow, wide = tiles_of(isa, layer.size)
    longest = {block: largest_tile(block, isa, size=layer.size) for block in FROM}
    splits = (0, 1) if threads > 1 else (0,)
    tried = []
    if density < 0.75 or not layer.alike:
        tiles = sorted({min(tile, layer.lines) for tile in narrow})
        tried = [(timed(1, tile, split), 1, tile, split, 1) for tile in tiles for split in splits]
        if density > LEAST_PARTED:
            tried += _in_parts(layer, timed, column, tiles, splits)
    for block, least in FROM.items():
        if density >= least and layer.alike:
            tiles = sorted({min(tile, layer.lines, longest[block]) for tile in wide})
            tried += [(timed(block, tile, split), block, tile, split, 1) for tile in tiles for split in splits]
    nanoseconds, block, tile, split, parts = min(tried)
    return Choice(block, tile, split, parts, nanoseconds)


def _in_parts(
    layer: Layer, timed: Callable[..., int], column: Callable[[int], int], tiles: list[int], splits: tuple[int, ...]
) -> list[tuple[int, int, int, int, int]]:
    """Columns in as many parts as fit in the first cache, for each tile; then fewer and more, while that is faster."""
    most = layer.weight.shape[1] // 8
    tried: list[tuple[int, int, int, int, int]] = []
    for tile in tiles:
        parts = -(-column(tile) // L1)
        if (layer.size < 4 or tile >= SHORT) and 1 < parts <= most:
            tried += [(timed(1, tile, split, parts), 1, tile, split, parts) for split in splits]
    for factor in (2 / 3, 3 / 2):
        while tried:
            least, _, tile, split, parts = min(tried)
            parts = round(parts * factor)
            if not 1 < parts <= most or any(known[2:] == (tile, split, parts) for known in tried):
                break
            tried.append((timed(1, tile, split, parts), 1, tile, split, parts))
            if tried[-1][0] >= least:
                break
    return tried


def _columns_bytes(program: Program, layer: Layer) -> Callable[[int], int]:
    """Bytes of input a tile of so many lines reads: one run of lines per channel and row of the kernel."""
    op, weight = program.ops[layer.place], layer.node.tensors["weight"]
    tall = weight.shape[2] if weight.dim() == 4 else 1
    wide = weight.shape[3] if weight.dim() == 4 else 1
    channels = layer.weight.shape[1] // (tall * wide)

    def column(tile: int) -> int:
        flat = min(
            tall * (tile + (wide > 1)),
            tile + (wide > 1) + (tall - 1) * (1 + op.input.row * op.input.lanes * op.input.bytes // 64),
        )
        return 64 * channels * flat

    return column


def _key(program: Program, layer: Layer, isa: str, threads: int) -> str:
    op = program.ops[layer.place]
    filled = f"{float((layer.weight != 0).mean()):.2g}"
    sizes = (*layer.weight.shape, filled, layer.lines, op.output.lanes, op.input.row, op.input.channel)
    words = [*map(str, sizes), *VALUES[layer.size]]
    return f"{_machine()} {_kernels()} {isa if layer.size < 4 else plain(isa)} {threads} " + " ".join(words)


@functools.cache
def _kernels() -> str:
    """Which kernels: those of another version may rank otherwise."""
    return str(library().secateur_source().decode())[:8]


@functools.cache
def _machine() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


class _Remembered:
    """The file of choices, read once per process."""

    known: dict[str, Choice] | None = None
    saved = 0

    @classmethod
    def read(cls) -> dict[str, Choice]:
        """Choices by key; none where the file is missing, damaged or overfull."""
        if cls.known is None:
            cls.known = {}
            with suppress(OSError, ValueError, TypeError, AttributeError):
                table = json.loads((cache_folder() / "engine_choices.json").read_text())
                if len(table) < FORGET:
                    cls.known = {key: _checked(value) for key, value in table.items()}
            cls.saved = len(cls.known)
        return cls.known

    @classmethod
    def write(cls) -> None:
        """Keep what is new, for the next process; a folder that cannot be written costs only time then."""
        known = cls.known or {}
        if len(known) == cls.saved or os.environ.get("SECATEUR_ENGINE_REMEMBER") == "off":
            return
        with suppress(OSError):
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            waiting = folder / f"engine_choices.{os.getpid()}"
            waiting.write_text(
                json.dumps({key: [c.block, c.tile, c.split, c.parts, c.nanoseconds] for key, c in known.items()})
            )
            waiting.replace(folder / "engine_choices.json")
            cls.saved = len(known)


def _checked(value: Any) -> Choice:
    block, tile, split, parts, nanoseconds = (int(number) for number in value)
    choice = Choice(block, tile, split, parts, nanoseconds)
    if (
        choice.block not in (1, 2, 4)
        or not 1 <= choice.tile <= largest_tile(choice.block, "", size=4)
        or choice.split not in (0, 1)
        or choice.parts < 1
    ):
        raise ValueError
    return choice


def dense_nanoseconds(node: Node, shapes: dict[str, tuple[int, ...]], threads: int, repeats: int = 3) -> int:
    """The fastest of some runs of this layer by PyTorch, on random input."""
    import time

    inputs = [torch.randn(shapes[name]) for name in node.inputs]
    before, best = torch.get_num_threads(), 1 << 62
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for turn in range(repeats + 1):
                begin = clock()
                run_node(node, inputs)
                if turn:
                    best = min(best, clock() - begin)
    finally:
        torch.set_num_threads(before)
    return best


def time_steps(program: Program, arena: int, threads: int, repeats: int = 5) -> list[int]:
    """Nanoseconds of every operation, alone; borders count as 0, because they need a caller's tensors."""
    lib = library()
    return [
        0 if program.ops[i].kind in (Kind.IMPORT, Kind.EXPORT)
        else int(lib.secateur_time(address(program, i), arena, None, threads, repeats))
        for i in range(program.count)
    ]  # fmt: skip


def pointers(addresses: list[int]) -> Any:
    """A C array of addresses."""
    return (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
