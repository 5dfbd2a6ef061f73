"""Costs that no polynomial counts: bytes of the file, bytes of activations, milliseconds; as functions of widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import nn

from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.running import to_device
from secateur.measure.count import meta_copy
from secateur.measure.memory import peak_memory
from secateur.measure.table import LatencyTable, layer_calls
from secateur.surgery import shapes_after

CostOf = Callable[[Mapping[str, int]], float]
"""Units that named axes keep (the others keep all) to a cost, which does not fall where an axis keeps more."""


def file_bytes(model: nn.Module, axes: Axes) -> CostOf:
    """Bytes of the tensors a saved model holds, each tied tensor once."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            sizes[name] = value.element_size()

    def cost(widths: Mapping[str, int]) -> float:
        shapes = shapes_after(_plan(axes, widths))
        return float(sum(prod(shapes[name]) * size for name, size in sizes.items()))

    return _remembered(cost)


def activation_bytes(model: nn.Module, axes: Axes, example: Any) -> CostOf:
    """Bytes that one forward on `example` holds at most, as `measure.peak_memory` counts them, told on shapes alone."""
    meta, inputs = meta_copy(model), to_device(example, "meta")
    return _remembered(lambda widths: float(peak_memory(_plan(axes, widths).apply(meta), inputs)))


def latency_ms(model: nn.Module, axes: Axes, example: Any, table: LatencyTable) -> CostOf:
    """Milliseconds of one forward on `example` by a table of layer latencies."""
    meta, inputs = meta_copy(model), to_device(example, "meta")
    names = {id(module): name for name, module in meta.named_modules()}
    called = [(key, names[id(module)]) for key, module, *_ in layer_calls(meta, inputs)]
    grouped = {name: getattr(module, "groups", 1) for name, module in meta.named_modules()}

    def cost(widths: Mapping[str, int]) -> float:
        shapes = shapes_after(_plan(axes, widths))
        layers = []
        for key, name in called:
            outputs, inputs_ = shapes[f"{name}.weight"][:2]
            depthwise = key.split(" on ")[0].endswith("depthwise")
            layers.append((key, outputs if depthwise else inputs_ * grouped[name], outputs))
        return table.network(layers)

    return _remembered(cost)


def _plan(axes: Axes, widths: Mapping[str, int]) -> Plan:
    """The first units of every axis: which ones they are changes no cost."""
    return axes.plan({name: range(width) for name, width in widths.items()})


def _remembered(cost: CostOf) -> CostOf:
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def remembering(widths: Mapping[str, int]) -> float:
        key = tuple(sorted(widths.items()))
        if key not in known:
            known[key] = cost(widths)
        return known[key]

    return remembering
