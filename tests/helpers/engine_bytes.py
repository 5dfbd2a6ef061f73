"""Plans of int8 that run a layer with the kernel named, by every instruction set, and whole numbers to run them on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from engine_networks import MISSING, forced
from secateur.native import library
from secateur.runtime.coding import Coding
from secateur.runtime.graph import Graph
from secateur.runtime.lower import lower
from secateur.runtime.placing import shapes_of
from secateur.runtime.plan import Plan
from secateur.runtime.program import choose
from secateur.runtime.tune import largest_tile

PATHS = [path for path in library.usable() if path != "avx512_bf16"] if not MISSING else []
"""avx512_bf16 runs the int8 kernels of avx512_vnni."""
STEP = 2.0**-6
"""Scales are powers of two here, so that what follows a sum is exact too."""
UNSIGNED, SIGNED = (0.0, 255 * STEP), (-128 * STEP, 127 * STEP)
Case = dict[str, Any]

PLAIN: Case = {
    "block": 1, "tile": 2, "split": 0, "parts": 1, "threads": 2, "seed": 1, "zeros": 0.9, "signed": True, "bias": True,
    "residual": True, "after": 0, "end": "relu", "images": 1, "lanes": 1, "groups": 1, "inner": 3, "outer": 5, "size": (13, 11),
    "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1),
}  # fmt: skip


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set this CPU has, forced as a user would force it."""
    with forced(request.param, monkeypatch) as isa:
        yield isa


def whole_input(shape: tuple[int, ...], signed: bool, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(-128, 128, shape) if signed else generator.integers(0, 256, shape)


def plan_of(graph: Graph, inputs: list[Tensor], ranges: dict[str, tuple[float, float]], c: Case) -> Plan:
    """A plan with the kernel named."""
    values = shapes_of(graph, inputs)
    program = lower(graph, values, lanes=c.get("lanes", 1), size=1, coding=Coding(ranges))
    assert [step.node for step in program.steps] == [None], "the engine runs it"
    for name, layer in program.layers.items():
        assert layer.size == 1
        block = c["block"] if layer.alike else 1
        tile = min(c["tile"], largest_tile(block, library.path(), size=1), layer.lines)
        choose(program, name, block, tile, c["split"], c["parts"])
    made = {name: tuple(values[name].shape) for step in program.steps for name in step.writes}
    return Plan(graph, program, {}, c["threads"], 1, c["threads"], [program.arena()], made)
