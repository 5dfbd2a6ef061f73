"""Plans that run a layer with the kernel named, by every instruction set, and how near to float64 their outputs come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from engine_networks import MISSING, forced
from secateur.native import library
from secateur.runtime.graph import Graph, Node, Ref
from secateur.runtime.lower import lower
from secateur.runtime.placing import shapes_of
from secateur.runtime.plan import Plan
from secateur.runtime.program import choose
from secateur.runtime.tune import largest_tile

PATHS = library.usable() if not MISSING else ()
SINGLE = [path for path in PATHS if library.plain(path) == path]
"""Instruction sets with float32 kernels of their own."""


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set this CPU has, forced as a user would force it."""
    with forced(request.param, monkeypatch) as isa:
        yield isa


def plan_of(
    node: Node,
    inputs: dict[str, Tensor],
    *,
    block: int,
    tile: int,
    split: int,
    parts: int,
    lanes: int,
    threads: int,
    halves: bool = False,
) -> Plan:
    """A plan that runs one node with the kernel named."""
    graph = Graph(tuple(inputs), (node,), {}, Ref(node.name))
    values = shapes_of(graph, inputs.values())
    program = lower(graph, values, lanes=lanes, size=2 if halves else 4)
    assert [step.node for step in program.steps] == [None], "the engine runs it"
    for name, layer in program.layers.items():
        if layer.dot:
            choose(program, name, 1, 1, 0)
        else:
            most = largest_tile(block, library.path(), size=2 if halves else 4)
            choose(program, name, block, min(tile, most, layer.lines), split, parts)
    arena = torch.full((program.floats,), 0.0)
    return Plan(graph, program, {}, threads, 1, threads, [arena], {node.name: tuple(values[node.name].shape)})


def close(found: Tensor, wanted: Tensor, *summed: Tensor | None) -> None:
    """To the rounding of float32, relative to the largest number: the result's, or one of the sums it was clipped from.

    Those are given a tenth of the sums of absolute products beside them: a few numbers may cancel to next to nothing.
    """
    assert found.shape == wanted.shape
    scale = max(float(part.abs().max()) for part in (wanted, *summed, torch.tensor(1e-3)) if part is not None)
    worst = float((found.double() - wanted).abs().max()) / scale
    assert worst < 1e-5, worst


def near(found: Tensor, wanted: Tensor, *summed: Tensor | None) -> None:
    """To the rounding of bf16, half of its last of 8 bits, number by number; sums to the rounding of float32."""
    assert found.shape == wanted.shape
    scale = max(float(part.abs().max()) for part in (wanted, *summed, torch.tensor(1e-3)) if part is not None)
    worst = float(((found.double() - wanted).abs() - wanted.abs() * 2.0**-8).max()) / scale
    assert worst < 1e-5, worst


def half(x: Tensor) -> Tensor:
    """What is left of `x` in bf16, in float64."""
    return x.bfloat16().double()
