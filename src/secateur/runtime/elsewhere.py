"""A graph computed whole by another dense runtime that is installed: what layers with few zeros are fastest in."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.runtime.dense import run_dense
from secateur.runtime.graph import Graph, Ref, fill, refs
from secateur.runtime.rivals import SERVERS, Dense, without_remarks

RUNTIMES = {"ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"), "OpenVINO": ("onnx", "onnxscript", "openvino")}
"""Runtimes, and the packages each needs."""

Run = Callable[[Sequence[Tensor]], Any]


def installed() -> tuple[str, ...]:
    """Names of the runtimes that are here, unless SECATEUR_ENGINE_OTHERS=off."""
    if os.environ.get("SECATEUR_ENGINE_OTHERS") == "off":
        return ()
    return tuple(name for name, needs in RUNTIMES.items() if all(importlib.util.find_spec(need) for need in needs))


def elsewhere(graph: Graph, inputs: Sequence[Tensor], threads: int) -> dict[str, Run]:
    """The graph in each runtime that is installed and takes it, for inputs of this size: a function of the inputs.

    A runtime whose output is not that of PyTorch is left out, as is one that fails.
    """
    found: dict[str, Run] = {}
    names = list(dict.fromkeys(refs(graph.output)))
    if not installed() or not names or not all(isinstance(x, Tensor) and x.is_floating_point() for x in inputs):
        return found
    wanted = _flat(run_dense(graph, inputs))
    with TemporaryDirectory() as folder, without_remarks():
        given = Dense(_Whole(graph, names), tuple(inputs), threads, Path(folder))
        for name in installed():
            try:
                run = _run(SERVERS[name](given), graph, names)
                close = all(_close(a, b) for a, b in zip(_flat(run(inputs)), wanted, strict=True))
            except Exception:  # an operation the exporter or the runtime does not have
                continue
            if close:
                found[name] = run
    return found


class _Whole(nn.Module):
    """The graph as a module with a tuple of outputs, its tensors as buffers."""

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        super().__init__()
        self._graph, self._names = graph, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = Graph(self._graph.inputs, self._graph.nodes, self._graph.constants, tuple(Ref(name) for name in self._names))
        return tuple(run_dense(named, inputs))


def _run(serve: Callable[[Sequence[Tensor]], Sequence[np.ndarray[Any, Any]]], graph: Graph, names: Sequence[str]) -> Run:
    def run(inputs: Sequence[Tensor]) -> Any:
        outputs = [torch.from_numpy(array) for array in serve([x.detach().contiguous() for x in inputs])]
        return fill(graph.output, dict(zip(names, outputs, strict=True)))

    return run


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _flat(item)] if isinstance(value, (list, tuple)) else []


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a - b).abs().max() <= 1e-4 * b.abs().max())
