"""A table of layer latencies: measured on one machine, read on another, interpolated for widths nobody measured.

Shape legend: I inputs, O outputs of a layer.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.running import device_of
from secateur.core.strict import array, fields, integer, table
from secateur.measure.forward import forward, prepare
from secateur.measure.latency import compare

FORMAT = 1
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Widths that are measured, as shares of the whole layer's."""


@dataclass(frozen=True)
class Entry:
    """One kind of layer: milliseconds (I points, O points) at `inputs` and `outputs`, never falling with either."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def at(self, inputs: int, outputs: int) -> float:
        """Milliseconds between the measured points, bilinear; beyond the last, in proportion to the product of widths."""
        grid = np.asarray(self.ms)
        (a, p), (b, q) = _between(self.inputs, inputs), _between(self.outputs, outputs)
        rows = grid[a] * (1 - p) + grid[min(a + 1, len(grid) - 1)] * p
        value = rows[b] * (1 - q) + rows[min(b + 1, len(rows) - 1)] * q
        beyond = max(inputs / self.inputs[-1], 1.0) * max(outputs / self.outputs[-1], 1.0)
        return float(value * beyond)


@dataclass(frozen=True)
class LatencyTable:
    """Entries by kind of layer, what the rest of the network takes, and where it was measured."""

    entries: Mapping[str, Entry]
    rest_ms: float
    measured_on: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As dicts and lists."""
        entries = {
            key: {"inputs": list(e.inputs), "outputs": list(e.outputs), "ms": [list(row) for row in e.ms]}
            for key, e in sorted(self.entries.items())
        }
        return {"format": FORMAT, "rest_ms": self.rest_ms, "measured_on": dict(self.measured_on), "entries": entries}

    def network(self, layers: Sequence[tuple[str, int, int]]) -> float:
        """Milliseconds of a network of those layers (kind, I, O). Raises `SecateurError` for a kind that is not there."""
        total = self.rest_ms
        for key, inputs, outputs in layers:
            if key not in self.entries:
                do = "measure the table with this model and this input: secateur measure MODEL --input SHAPE --table FILE"
                raise SecateurError("a latency from a table", f"no layer {key!r} in it", do)
            total += self.entries[key].at(inputs, outputs)
        return total


def from_json(value: Any) -> LatencyTable:
    """The inverse of `LatencyTable.to_json`. Raises `SecateurError` for anything else."""
    try:
        return _parsed(value)
    except SecateurError as error:
        do = "give a file that secateur measure MODEL --input SHAPE --table FILE wrote"
        raise SecateurError("reading a latency table", error.found, do) from None


def _parsed(value: Any) -> LatencyTable:
    value = fields(value, {"format", "rest_ms", "entries"}, {"measured_on"}, "the latency table")
    integer(value["format"], 1, FORMAT, "the format of the latency table")
    entries = {}
    for key, entry in table(value["entries"], "the entries of the latency table").items():
        entry = fields(entry, {"inputs", "outputs", "ms"}, set(), f"the entry {key!r} of the latency table")
        sides = [tuple(integer(n, 1, 1 << 31, "a width") for n in array(entry[side], side)) for side in ("inputs", "outputs")]
        rows = tuple(tuple(_number(v) for v in array(row, "milliseconds")) for row in array(entry["ms"], "milliseconds"))
        ascending = all(list(side) == sorted(set(side)) and side for side in sides)
        if not ascending or len(rows) != len(sides[0]) or any(len(row) != len(sides[1]) for row in rows):
            raise SecateurError(
                "reading a latency table", f"an entry {key!r} that is no grid of its widths", "measure it again"
            )
        entries[key] = Entry(sides[0], sides[1], rows)
    return LatencyTable(entries, _number(value["rest_ms"]), value.get("measured_on", {}))


def measure_table(model: nn.Module, example: Any, *, repeats: int = 10, threads: int | None = None) -> LatencyTable:
    """The table of `model` on `example`: every kind of layer at a grid of widths, each alone, and the rest by difference.

    Kinds differ in kernel, stride, padding, dilation, groups and size of the input. What a whole forward takes beyond the
    sum of its layers (norms, activations, calls) is `rest_ms`, which no width changes. The least of `repeats` rounds counts:
    what else a busy machine does hits a whole forward more often than a layer.
    """
    called = layer_calls(model, example)
    widest: dict[str, tuple[nn.Module, tuple[int, ...], int, int]] = {}
    for key, module, shape, inputs, outputs in called:
        _, _, most_in, most_out = widest.get(key, (module, shape, 0, 0))
        widest[key] = (module, shape, max(inputs, most_in), max(outputs, most_out))
    entries = {key: _entry(*known, repeats=repeats, threads=threads) for key, known in widest.items()}
    whole = compare({"model": model}, example, repeats=repeats, threads=threads, pick=min)["model"]
    layers = sum(entries[key].at(inputs, outputs) for key, _, _, inputs, outputs in called)
    where = {
        "machine": platform.processor() or platform.machine(),
        "device": str(device_of(model)),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "whole_ms": round(whole, 5),
    }
    return LatencyTable(entries, max(round(whole - layers, 5), 0.0), where)


def layer_calls(model: nn.Module, example: Any) -> list[tuple[str, nn.Module, tuple[int, ...], int, int]]:
    """(kind, layer, shape of its input, I, O) of every call of a linear layer or convolution, in order."""
    calls: list[tuple[str, nn.Module, tuple[int, ...], int, int]] = []

    def note(module: Any, args: Any, output: Any) -> None:
        shape = tuple(args[0].shape)
        if isinstance(module, nn.Linear):
            rows = math.prod(shape[:-1])
            calls.append((f"linear rows={rows}", module, (rows, shape[-1]), module.in_features, module.out_features))
            return
        held = (module.kernel_size, module.stride, module.padding, module.dilation)
        numbers = " ".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in held)
        groups = "depthwise" if module.groups == module.in_channels > 1 else f"groups={module.groups}"
        size = "x".join(map(str, (shape[0], *shape[2:])))
        key = f"{type(module).__name__.lower()} {numbers} {groups} on {size}"
        calls.append((key, module, shape, module.in_channels, module.out_channels))

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    try:
        forward(model, prepare(model, (example,)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _entry(module: Any, shape: tuple[int, ...], inputs: int, outputs: int, *, repeats: int, threads: int | None) -> Entry:
    groups = getattr(module, "groups", 1)
    depthwise = groups == inputs > 1
    whole = 1 if depthwise else groups  # widths of a grouped layer are multiples of its groups
    sides = [_widths(width, whole) for width in (inputs, outputs)]
    grid = np.zeros((len(sides[0]), len(sides[1])))
    device, dtype = module.weight.device, module.weight.dtype
    for i, n in enumerate(sides[0]):
        for o, m in enumerate(sides[1]):
            if depthwise and i != o:
                continue  # one width
            layer = _like(module, n, m).to(device, dtype)
            x = torch.randn(_resized(module, shape, n), device=device, dtype=dtype)
            grid[i, o] = compare({"layer": layer}, x, repeats=repeats, warmup=1, threads=threads, pick=min)["layer"]
    grid = np.maximum.accumulate(np.maximum.accumulate(grid, 0), 1)
    if depthwise:  # of two widths that never differ the mean, so that what is between two measured points lies on their line
        alone = grid.diagonal()
        grid = (alone[:, None] + alone) / 2
    return Entry(sides[0], sides[1], tuple(tuple(round(float(v), 6) for v in row) for row in grid))


def _widths(whole: int, multiple: int) -> tuple[int, ...]:
    return tuple(sorted({max(int(whole * share) // multiple, 1) * multiple for share in SHARES}))


def _like(module: Any, inputs: int, outputs: int) -> nn.Module:
    """A layer of the same kind and other widths."""
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias=bias)
    depthwise = module.groups == module.in_channels > 1
    return type(module)(
        inputs, max(outputs, inputs) // inputs * inputs if depthwise else outputs, module.kernel_size, module.stride,
        module.padding, module.dilation, inputs if depthwise else module.groups, bias, module.padding_mode,
    )  # fmt: skip


def _resized(module: Any, shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    return (*shape[:-1], inputs) if isinstance(module, nn.Linear) else (shape[0], inputs, *shape[2:])


def _between(points: tuple[int, ...], value: int) -> tuple[int, float]:
    """The measured point before `value`, and how far it is towards the next; below the first, the first."""
    if value >= points[-1]:
        return len(points) - 1, 0.0
    if value < points[0]:
        return 0, 0.0
    place = int(np.searchsorted(points, value, side="right")) - 1
    return place, (value - points[place]) / (points[place + 1] - points[place])


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise SecateurError("reading a latency table", f"{str(value)[:40]!r} for milliseconds", "measure it again")
    return float(value)
