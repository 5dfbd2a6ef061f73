"""A compiled model: a graph, and for every input size it has met a plan of how to run it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError, nearest
from secateur.native.library import missing, path
from secateur.runtime.coding import Coding, Range
from secateur.runtime.dense import run_dense
from secateur.runtime.fuse import sparsity
from secateur.runtime.graph import Graph, Node
from secateur.runtime.plan import Plan, make_plan
from secateur.runtime.tune import Choice

MOST_PLANS = 16
"""Input sizes remembered; the oldest goes first."""
PRECISIONS = {"float32": 4, "bf16": 2, "int8": 1}
"""What the engine's maps and weights are held in, and how many bytes that takes; sums are float32, of int8 int32."""
WORDS = {size: word for word, size in PRECISIONS.items()}


def known_precision(word: str) -> str:
    """`word`, one of `PRECISIONS`. Raises `SecateurError` where it is none."""
    if word not in PRECISIONS:
        raise SecateurError(f"precision {str(word)[:40]!r}", "no such precision", nearest(str(word)[:40], list(PRECISIONS)))
    return word


class CompiledModel(nn.Module):
    """A callable that gives the model's outputs; `secateur.runtime.compile` and `load` make it.

    `threads`: of the engine; 0 takes PyTorch's number at the first run of a size. Inputs are positional float32 tensors on
    the CPU, and so are outputs. `precision` "bf16": values and weights are rounded to bf16, sums are float32. "int8":
    both are rounded to 8 bits, sums are exact; `ranges` of all values say what the 8 bits stand for. Where the engine is
    missing, PyTorch computes everything in float32, and `note` says why. `others`: dense runtimes that are installed may run
    the whole where that is faster.
    """

    def __init__(
        self,
        graph: Graph,
        threads: int = 0,
        precision: str = "float32",
        ranges: Mapping[str, Range] | None = None,
        *,
        others: bool = True,
    ) -> None:
        super().__init__()
        self.others = others
        self.coding = Coding(ranges or {})
        self.graph = graph
        self.threads = threads
        self.precision = known_precision(precision)
        self.note = missing()
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._lock = threading.Lock()
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """The model's output for inputs of any size the model accepts; a new size is planned first."""
        if not self.note:
            plan = self.plan(*inputs)
            if plan.whole:
                with self._lock:
                    return plan.run(inputs)
        with torch.inference_mode():
            if self.note:
                return run_dense(self.graph, inputs)
            with self._lock:
                return plan.run(inputs)

    def plan(self, *inputs: Tensor) -> Plan:
        """How inputs of this size are run. Raises `SecateurError` where they do not fit the model."""
        threads = self.threads or torch.get_num_threads()
        key = (path(), threads, *((tuple(x.shape), x.dtype) for x in inputs))
        found = self._plans.get(key)
        if found is None:
            _require(self.graph, inputs)
            with self._lock, torch.inference_mode():
                size = PRECISIONS[self.precision]
                found = make_plan(self.graph, inputs, threads, size=size, coding=self.coding, others=self.others)
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
                rows.append(_row(node, "engine" if choice else plan.runtime or "dense", choice))
                if not choice:
                    rows[-1]["values"] = "bf16" if plan.dense_halves(node.name) else "float32"
        return rows


def _row(node: Node, runs: str, choice: Choice | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": str(node.settings.get("layer", node.name)),
        "kind": node.op,
        "weight": list(node.tensors["weight"].shape),
    }
    row |= {"sparsity": round(sparsity(node.tensors["weight"]), 4), "runs": runs}
    if choice:
        row |= {
            "rows": choice.block, "tile": 64 // choice.size * choice.tile, "parts": choice.parts,
            "values": WORDS[choice.size], "ms": choice.nanoseconds / 1e6,
        }  # fmt: skip
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


__all__ = ["PRECISIONS", "CompiledModel", "Plan"]
