"""How a graph is run on inputs of one size, and which of the ways is the fastest."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.native.library import library, path
from secateur.runtime.bounds import HARDWARE, dense_floor, dense_gain, layer_floor
from secateur.runtime.coding import Coding
from secateur.runtime.dense import halved, halved_graph, is_half, run_dense, run_node, single
from secateur.runtime.elsewhere import Run, elsewhere
from secateur.runtime.graph import Graph, Node, fill
from secateur.runtime.lower import lower
from secateur.runtime.placing import shapes_of
from secateur.runtime.program import Program, Step
from secateur.runtime.tune import Choice, dense_nanoseconds, pointers, tune

TRIES = 5
"""Runs of each way to cut a batch; the fastest counts."""
TURNS = 3
"""Turns in which the two fastest ways are compared again."""
LONGEST = 4_000_000_000
"""Nanoseconds after which one run has to do."""
BRIEF = 1_000_000
"""Nanoseconds of a run of several threads below which one is tried too: they may wait for each other longer than they save."""
SHORTEST = 300_000
"""Nanoseconds of a run below which other runtimes are not tried: calling them takes a good part of that."""
COPY_RATE = 6e9
"""Bytes per second assumed for a tensor on its way between PyTorch and the engine."""


@dataclass
class Plan:
    """One way to run a graph on inputs of one size.

    `parts`: into how many pieces the batch is cut; `inner`: threads working on one piece. `program` is None where `other`, or
    PyTorch, computes everything; `runtime` says who.
    """

    graph: Graph
    program: Program | None
    choices: Mapping[str, Choice]
    threads: int
    parts: int
    inner: int
    arenas: list[Tensor]
    outputs: Mapping[str, tuple[int, ...]]
    other: Run | None = None
    runtime: str = ""

    def dense_halves(self, name: str) -> bool:
        """Does PyTorch compute the layer `name` in bf16?"""
        nodes = self.graph.nodes if self.program is None else [step.node for step in self.program.steps if step.node]
        return any(node.name == name and is_half(node) for node in nodes)

    @cached_property
    def whole(self) -> bool:
        """Does the engine run all of it? PyTorch then only gives the memory of the outputs."""
        return self.program is not None and len(self.program.steps) == 1 and self.program.steps[0].node is None

    @cached_property
    def _memory(self) -> Any:
        return pointers([arena.data_ptr() for arena in self.arenas])

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """The output for `inputs` of the planned size."""
        if self.other is not None:
            return self.other(inputs)
        if self.program is None:
            return run_dense(self.graph, inputs)
        values: dict[str, Any] = {**self.graph.constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for step in self.program.steps:
            if step.node is not None:
                values[step.node.name] = run_node(step.node, [values[name] for name in step.node.inputs])
            else:
                self._run(step, values)
            for name in step.drops:
                values.pop(name, None)
        return fill(self.graph.output, {name: single(value) for name, value in values.items()})

    def _run(self, step: Step, values: dict[str, Any]) -> None:
        assert self.program is not None
        tensors = [single(values[name]).contiguous() for name in step.reads]
        for name in step.writes:
            values[name] = torch.empty(self.outputs[name])
            tensors.append(values[name])
        outside = pointers([tensor.data_ptr() for tensor in tensors])
        if step.sizes is None:
            step.sizes = (ctypes.c_int64 * max(len(tensors), 1))(*(tensor.numel() // self.parts for tensor in tensors))
        first = ctypes.addressof(self.program.ops) + step.first * ctypes.sizeof(self.program.ops._type_)
        failed = library().secateur_chunks(
            first, step.last - step.first, self._memory, outside, step.sizes, len(tensors), self.parts, self.threads, self.inner
        )
        if failed:
            raise SecateurError(
                "running a compiled model", f"operation {step.first + failed} unknown to the kernels", "rebuild them"
            )


def make_plan(
    graph: Graph,
    inputs: Sequence[Tensor],
    threads: int,
    *,
    size: int = 4,
    coding: Coding | None = None,
    others: bool = False,
) -> Plan:
    """The fastest plan found for inputs of this size: ways to cut the batch, kernels per layer, dense where that wins.

    `size`: bytes of a value, 2 in bf16; 1 in int8, by `coding`, or in what is faster and more exact. `others`: the whole
    may also run in another dense runtime that is installed.
    """
    values = _shapes(graph, inputs)
    found: list[tuple[int, Plan]] = []
    halves = size < 4

    def tried(lanes: int, part: int, inner: int) -> None:
        for form in forms_of(size):
            plan = _planned(graph, values, inputs, threads, lanes=lanes, part=part, inner=inner, size=form, coding=coding)
            found[:] = sorted([*found, (_time(plan, inputs), plan)], key=lambda pair: pair[0])[:2]

    ways = _ways(graph, values, inputs, threads)
    for way in ways:
        tried(*way)
    if threads > 1 and found[0][0] < BRIEF:
        tried(*ways[0][:2], 1)
    best = _faster([plan for _, plan in found], inputs)
    if found[0][0] > dense_floor(graph, values, threads) / dense_gain(halves):
        for each in (graph, halved_graph(graph)) if halves and HARDWARE in path() else (graph,):
            dense = Plan(each, None, {}, threads, 1, threads, [], {})
            best = _faster([best, dense], inputs)
    if others and found[0][0] > max(dense_floor(graph, values, threads), SHORTEST):
        made = elsewhere(graph, inputs, threads).items()
        best = _faster([best, *(Plan(graph, None, {}, threads, 1, threads, [], {}, run, name) for name, run in made)], inputs)
    return best


def _faster(plans: Sequence[Plan], inputs: Sequence[Tensor]) -> Plan:
    """The fastest of some plans, timed in turns: what else the machine does at a time then costs each of them alike."""
    if len(plans) == 1:
        return plans[0]
    least = [1 << 62] * len(plans)
    for _ in range(TURNS):
        for i, plan in enumerate(plans):
            least[i] = min(least[i], _time(plan, inputs, 2))
        if min(least) * TURNS > LONGEST:
            break
    return plans[least.index(min(least))]


def forms_of(size: int) -> tuple[int, ...]:
    """Bytes of a value to try where `size` are asked for: 8 bits have to be faster than what is more exact."""
    return (1, 2 if HARDWARE in path() else 4) if size == 1 else (size,)


def _shapes(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Any]:
    try:
        return shapes_of(graph, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        sizes = ", ".join(str(tuple(x.shape)) for x in inputs)
        found = f"inputs of sizes {sizes}, which do not fit ({str(error).splitlines()[0][:100]})"
        raise SecateurError(
            "running a compiled model", found, "give inputs the model accepts, or compile it for them"
        ) from error


def _ways(graph: Graph, values: Mapping[str, Any], inputs: Sequence[Tensor], threads: int) -> list[tuple[int, int, int]]:
    """(lanes, images in a part, threads in a part) worth trying."""
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() == 4 else 1
    if not inputs or inputs[0].dim() != 4 or not _separable(graph, values, batch):
        return [(16 if batch >= 16 and batch % 16 == 0 else 1, batch, threads)]
    ways = []
    parts = {1, batch} | {part for part in (2, 4) if batch % part == 0}
    for part in sorted(parts):
        ways.append((1, part, threads))
        if threads > 1 and batch // part >= threads:
            ways.append((1, part, 1))
    if batch % 16 == 0:
        ways.append((16, 16, threads))
        if threads > 1 and batch // 16 >= threads:
            ways.append((16, 16, 1))
    elif 8 <= batch < 16:
        ways.append((16, batch, threads))
    return ways


def _separable(graph: Graph, values: Mapping[str, Any], batch: int) -> bool:
    """Is every operation one that treats images apart, all of them the engine's?"""
    names = [*graph.inputs, *(node.name for node in graph.nodes)]
    batched = all(isinstance(values[name], Tensor) and values[name].shape[0] == batch for name in names)
    return batched and all(node.op != "torch" for node in graph.nodes)


def _planned(
    graph: Graph,
    values: Mapping[str, Any],
    inputs: Sequence[Tensor],
    threads: int,
    *,
    lanes: int,
    part: int,
    inner: int,
    size: int,
    coding: Coding | None,
) -> Plan:
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    parts = batch // part if part < batch else 1
    cut = values if parts == 1 else shapes_of(graph, [x[:part] for x in inputs])
    dense: Mapping[str, Node] = {}
    for attempt in range(2):
        program = lower(graph, cut, lanes=lanes, dense=frozenset(dense), size=size, coding=coding)
        whole = len(program.steps) == 1
        if parts > 1 and not whole:  # PyTorch's operations see the whole batch
            parts, inner, cut = 1, threads, values
            program = lower(graph, cut, lanes=lanes, dense=frozenset(dense), size=size, coding=coding)
        for step in program.steps:
            if step.node and step.node.name in dense:
                step.node = dense[step.node.name]
        arenas = [program.arena() for _ in range(threads if inner == 1 else 1)]
        choices = tune(program, arenas[0].data_ptr(), inner)
        worse = {} if attempt else _better_dense(program, choices, inner, size < 4)
        if not worse:
            break
        dense = worse
    outputs = {name: tuple(values[name].shape) for step in program.steps for name in step.writes}
    return Plan(graph, program, choices, threads, parts, inner, arenas, outputs)


def _better_dense(program: Program, choices: Mapping[str, Choice], threads: int, halves: bool) -> dict[str, Node]:
    """Layers that PyTorch runs faster, as it runs them, counting the way there and back. Most are decided by arithmetic."""
    found = {}
    for name, layer in program.layers.items():
        taken, shapes = choices[name].nanoseconds, dict(program.shapes)
        if taken <= layer_floor(layer.node, shapes, threads) / dense_gain(halves):
            continue
        moved = sum(4 * torch.Size(shapes[value]).numel() for value in (*layer.node.inputs, name))
        linear = layer.node.op == "linear"  # stands between PyTorch's operations, and moves its tensors when it is sparse
        border = moved / COPY_RATE * 1e9
        forms = [layer.node, halved(layer.node)] if halves and HARDWARE in path() else [layer.node]
        costs = [dense_nanoseconds(form, shapes, threads) for form in forms]
        cost = min(costs)
        if (cost < taken + border) if linear else (cost + border < taken):
            found[name] = forms[costs.index(cost)]
    return found


def _time(plan: Plan, inputs: Sequence[Tensor], tries: int = TRIES) -> int:
    """Nanoseconds of the fastest of some runs; of one thread CPU time, which others on the machine do not lengthen."""
    best, before = 1 << 62, torch.get_num_threads()
    alone = time.process_time_ns if plan.other else time.thread_time_ns  # others may work on a thread of their own
    clock = alone if plan.threads == 1 else time.perf_counter_ns
    torch.set_num_threads(plan.threads)
    try:
        for _ in range(tries):
            begin = clock()
            plan.run(inputs)
            best = min(best, clock() - begin)
            if best * tries > LONGEST:
                break
    finally:
        torch.set_num_threads(before)
    return best
