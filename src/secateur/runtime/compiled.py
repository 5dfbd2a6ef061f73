"""A compiled model: a graph, and for every input size it has met a plan of how to run it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.runtime.fuse import sparsity
from secateur.runtime.graph import Graph, Node, Ref, compute, fill
from secateur.runtime.library import library, missing, path
from secateur.runtime.lower import lower
from secateur.runtime.placing import shapes_of
from secateur.runtime.program import Program, Step
from secateur.runtime.tune import Choice, dense_nanoseconds, peak, pointers, tune

TRIES = 5
"""Runs of each way to cut a batch; the fastest counts."""
LONGEST = 4_000_000_000
"""Nanoseconds after which one run has to do."""
MOST_PLANS = 16
"""Input sizes remembered; the oldest goes first."""
COPY_RATE = 6e9
"""Bytes per second assumed for a tensor on its way between PyTorch and the engine."""


class CompiledModel(nn.Module):
    """A callable that gives the model's outputs; `secateur.runtime.compile` and `load` make it.

    `threads`: of the engine; 0 takes PyTorch's number at the first run of a size. Inputs are positional float32 tensors on
    the CPU. Where the engine is missing, PyTorch computes everything, and `note` says why.
    """

    def __init__(self, graph: Graph, threads: int = 0) -> None:
        super().__init__()
        self.graph = graph
        self.threads = threads
        self.note = missing()
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._lock = threading.Lock()
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """The model's output for inputs of any size the model accepts; a new size is planned first."""
        with torch.inference_mode():
            if self.note:
                return run_dense(self.graph, inputs)
            plan = self.plan(*inputs)
            with self._lock:
                return plan.run(inputs)

    def plan(self, *inputs: Tensor) -> Plan:
        """How inputs of this size are run. Raises `SecateurError` where they do not fit the model."""
        threads = self.threads or torch.get_num_threads()
        key = (path(), threads, *((tuple(x.shape), x.dtype) for x in inputs))
        found = self._plans.get(key)
        if found is None:
            _require(self.graph, inputs)
            with self._lock:
                found = make_plan(self.graph, inputs, threads)
                while len(self._plans) >= MOST_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = found
        return found

    def choices(self, *inputs: Tensor) -> list[dict[str, Any]]:
        """One row per layer with weights: its sparsity, and how it is run for inputs of this size."""
        if self.note:
            return [_row(node, "dense", None) for node in self.graph.nodes if node.op in ("conv", "linear")]
        plan = self.plan(*inputs)
        rows = []
        for node in self.graph.nodes:
            if node.op in ("conv", "linear"):
                choice = plan.choices.get(node.name)
                rows.append(_row(node, "engine" if choice else "dense", choice))
        return rows


def _row(node: Node, runs: str, choice: Choice | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": str(node.settings.get("layer", node.name)),
        "kind": node.op,
        "weight": list(node.tensors["weight"].shape),
    }
    row |= {"sparsity": round(sparsity(node.tensors["weight"]), 4), "runs": runs}
    if choice:
        row |= {"rows": choice.block, "tile": 16 * choice.tile, "parts": choice.parts, "ms": choice.nanoseconds / 1e6}
    return row


def _require(graph: Graph, inputs: Sequence[Tensor]) -> None:
    asked = "running a compiled model"
    if len(inputs) != len(graph.inputs):
        raise SecateurError(asked, f"{len(inputs)} inputs", f"give {len(graph.inputs)}, by position")
    for value in inputs:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            found = (
                f"an input of type {type(value).__name__}" if not isinstance(value, Tensor) else f"an input on {value.device}"
            )
            raise SecateurError(asked, found, "give tensors on the CPU")


def run_dense(graph: Graph, inputs: Sequence[Tensor]) -> Any:
    """The output, computed by PyTorch alone."""
    values: dict[str, Any] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for node in graph.nodes:
        values[node.name] = compute(node, [values[name] for name in node.inputs])
    return fill(graph.output, values)


@dataclass
class Plan:
    """One way to run a graph on inputs of one size.

    `parts`: into how many pieces the batch is cut; `inner`: threads working on one piece. `program` is None where PyTorch
    computes everything.
    """

    graph: Graph
    program: Program | None
    choices: Mapping[str, Choice]
    threads: int
    parts: int
    inner: int
    arenas: list[Tensor]
    outputs: Mapping[str, tuple[int, ...]]

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """The output for `inputs` of the planned size."""
        if self.program is None:
            return run_dense(self.graph, inputs)
        values: dict[str, Any] = {**self.graph.constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for step in self.program.steps:
            if step.node is not None:
                values[step.node.name] = compute(step.node, [values[name] for name in step.node.inputs])
            else:
                self._run(step, values)
            for name in step.drops:
                values.pop(name, None)
        return fill(self.graph.output, values)

    def _run(self, step: Step, values: dict[str, Any]) -> None:
        assert self.program is not None
        tensors = [values[name].contiguous() for name in step.reads]
        for name in step.writes:
            values[name] = torch.empty(self.outputs[name])
            tensors.append(values[name])
        outside = pointers([tensor.data_ptr() for tensor in tensors])
        steps = (ctypes.c_int64 * max(len(tensors), 1))(*(tensor.numel() // self.parts for tensor in tensors))
        arenas = pointers([arena.data_ptr() for arena in self.arenas])
        first = ctypes.addressof(self.program.ops) + step.first * ctypes.sizeof(self.program.ops._type_)
        failed = library().secateur_chunks(
            first, step.last - step.first, arenas, outside, steps, len(tensors), self.parts, self.threads, self.inner
        )
        if failed:
            raise SecateurError(
                "running a compiled model", f"operation {step.first + failed} unknown to the kernels", "rebuild them"
            )


def make_plan(graph: Graph, inputs: Sequence[Tensor], threads: int) -> Plan:
    """The fastest plan found for inputs of this size: ways to cut the batch, kernels per layer, dense where that wins."""
    values = _shapes(graph, inputs)
    best, least = None, 1 << 62
    for lanes, part, inner in _ways(graph, values, inputs, threads):
        plan = _planned(graph, values, inputs, threads, lanes=lanes, part=part, inner=inner)
        taken = _time(plan, inputs)
        if taken < least:
            best, least = plan, taken
    assert best is not None
    if least > dense_floor(graph, values, threads):
        dense = Plan(graph, None, {}, threads, 1, threads, [], {})
        if _time(dense, inputs) < _time(best, inputs):
            return dense
    return best


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
    graph: Graph, values: Mapping[str, Any], inputs: Sequence[Tensor], threads: int, *, lanes: int, part: int, inner: int
) -> Plan:
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    parts = batch // part if part < batch else 1
    cut = values if parts == 1 else shapes_of(graph, [x[:part] for x in inputs])
    dense: frozenset[str] = frozenset()
    for attempt in range(2):
        program = lower(graph, cut, lanes=lanes, dense=dense)
        whole = len(program.steps) == 1
        if parts > 1 and not whole:  # PyTorch's operations see the whole batch
            parts, inner, cut = 1, threads, values
            program = lower(graph, cut, lanes=lanes, dense=dense)
        arenas = [torch.zeros(program.floats) for _ in range(threads if inner == 1 else 1)]
        choices = tune(program, arenas[0].data_ptr(), inner)
        worse = frozenset() if attempt else _better_dense(program, choices, inner)
        if not worse:
            break
        dense = worse
    outputs = {name: tuple(values[name].shape) for step in program.steps for name in step.writes}
    return Plan(graph, program, choices, threads, parts, inner, arenas, outputs)


def _better_dense(program: Program, choices: Mapping[str, Choice], threads: int) -> frozenset[str]:
    """Layers that PyTorch runs faster, counting the way there and back. Most are decided by arithmetic alone."""
    found = set()
    for name, layer in program.layers.items():
        taken, shapes = choices[name].nanoseconds, dict(program.shapes)
        if taken <= layer_floor(layer.node, shapes, threads):
            continue
        moved = sum(4 * torch.Size(shapes[value]).numel() for value in (*layer.node.inputs, name))
        linear = layer.node.op == "linear"  # stands between PyTorch's operations, and moves its tensors when it is sparse
        border = moved / COPY_RATE * 1e9
        cost = dense_nanoseconds(layer.node, shapes, threads)
        if (cost < taken + border) if linear else (cost + border < taken):
            found.add(name)
    return frozenset(found)


def macs(node: Node, shape: Sequence[int]) -> int:
    """Multiply-adds of a dense layer with an output of `shape`."""
    weight = node.tensors["weight"]
    positions = torch.Size(shape).numel() // len(weight)
    return positions * weight.numel()


def layer_floor(node: Node, shapes: Mapping[str, Sequence[int]], threads: int) -> float:
    """Nanoseconds no dense kernel can beat on this machine."""
    return macs(node, shapes[node.name]) / peak(path(), threads) * 1e9


def dense_floor(graph: Graph, values: Mapping[str, Any], threads: int) -> float:
    """The same for all layers."""
    layers = [node for node in graph.nodes if node.op in ("conv", "linear")]
    return sum(layer_floor(node, {node.name: values[node.name].shape}, threads) for node in layers)


def _time(plan: Plan, inputs: Sequence[Tensor], tries: int = TRIES) -> int:
    """Nanoseconds of the fastest of some runs."""
    best, before = 1 << 62, torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        for _ in range(tries):
            begin = time.perf_counter_ns()
            plan.run(inputs)
            best = min(best, time.perf_counter_ns() - begin)
            if best * tries > LONGEST:
                break
    finally:
        torch.set_num_threads(before)
    return best


__all__ = ["CompiledModel", "Plan", "Ref", "make_plan", "run_dense"]
