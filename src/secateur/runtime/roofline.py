"""How close each sparse layer comes to what the machine can do."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from secateur.native.library import library, path
from secateur.runtime.compiled import CompiledModel
from secateur.runtime.tune import peak


@functools.cache
def bandwidth(kibibytes: int) -> float:
    """Bytes per second one thread reads from a block of this size."""
    return float(library().secateur_bandwidth(kibibytes << 10))


def table(model: CompiledModel, *inputs: Tensor) -> list[dict[str, Any]]:
    """`choices` with, for layers on the engine: non-zero MACs, bytes, the time each takes at least, and the share reached.

    Bytes are the layer's input, output and packed weights, once each, at the bandwidth of the cache they fit in. `share` is the
    larger of the two bounds divided by the time taken.
    """
    rows = model.choices(*inputs)
    plan = model.plan(*inputs)
    nodes = [node for node in model.graph.nodes if node.op in ("conv", "linear")]
    if plan.program is None:
        return rows
    for row, node in zip(rows, nodes, strict=True):
        layer = plan.program.layers.get(node.name)
        if layer is None or row["runs"] != "engine" or layer.size < 4:  # the peak is that of float32
            continue
        source, made = plan.program.layouts.get(node.inputs[0]), plan.program.layouts[node.name]
        pixels = made.images * made.height * made.width
        macs = int((layer.weight != 0).sum()) * pixels
        packed = layer.pack(row["rows"], row["parts"])
        moved = 4 * (made.channels * pixels + packed.words.size)
        if source is not None:
            moved += 4 * source.channels * source.images * source.height * source.width
        size = next((limit for limit in (256, 4096) if moved <= limit << 10), 131072)
        least = macs / peak(path(), plan.inner) * 1e3, moved / (bandwidth(size) * plan.inner) * 1e3
        row |= {"pixels": pixels, "macs": macs, "bytes": moved, "peak_ms": least[0], "bytes_ms": least[1]}
        row["share"] = max(least) / row["ms"] if row["ms"] else 0.0
    return rows
