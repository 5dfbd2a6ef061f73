"""int8 kernels of layers without weights against PyTorch, what lies between images, and what becomes of not-a-number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine_bytes import PLAIN, SIGNED, STEP, path, plan_of, whole_input
from engine_networks import needs_kernels
from secateur.runtime.coding import code_of, ranges_of
from secateur.runtime.graph import Graph, Node, Ref

__all__ = ["path"]

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_int8_kernel")]


def pooling(kernel: int, stride: int, padding: int) -> dict[str, Any]:
    return {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding)}


OTHERS: list[tuple[str, dict[str, Any], Any]] = [
    ("maxpool", pooling(3, 2, 1) | {"ceil": False}, lambda x: F.max_pool2d(x, 3, 2, 1)),
    ("maxpool", pooling(2, 2, 0) | {"ceil": True}, lambda x: F.max_pool2d(x, 2, 2, 0, 1, True)),
    ("maxpool", pooling(2, 2, 0) | {"ceil": False}, lambda x: F.max_pool2d(x, 2)),
    ("avgpool", pooling(2, 2, 0), lambda x: F.avg_pool2d(x, 2)),
    ("avgpool", pooling(3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1)),
    ("adaptive", {"size": (1, 1)}, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("adaptive", {"size": (9, 13)}, lambda x: x),
    ("act", {"activation": "silu"}, F.silu),
    ("affine", {"activation": "clamp", "low": 0.0, "high": 6.0}, lambda x: F.relu6(x * 2 - 0.25)),
    ("cat", {}, lambda x: torch.cat([x, x], 1)),
    ("add", {}, lambda x: x + x),
    ("mul", {}, lambda x: x * x.mean((2, 3), keepdim=True)),
]


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (16, 1), (16, 16)])
@pytest.mark.parametrize(("op", "given", "wanted"), OTHERS)
def test_layers_without_weights(path: str, op: str, given: dict[str, Any], wanted: Any, batch: int, lanes: int) -> None:
    """To half a step of the output, and of a mean that is multiplied by."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(whole_input((batch, 3, 9, 13), True, generator).astype(np.float32) * np.float32(STEP))
    same = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    tensors = {"scale": torch.full((3,), 2.0), "shift": torch.full((3,), -0.25)} if op == "affine" else {}
    names = {"cat": ("c", "c"), "add": ("c", "c"), "mul": ("c", "m")}.get(op, ("c",))
    before = (Node("c", "conv", ("x",), {"weight": torch.eye(3).reshape(3, 3, 1, 1)}, same),)
    if op == "mul":
        before += (Node("m", "adaptive", ("c",), {}, {"size": (1, 1)}),)
    graph = Graph(("x",), (*before, Node("y", op, names, tensors, given)), {}, Ref("y"))
    ranges = ranges_of(graph, [(x,)]) | {"x": SIGNED, "c": SIGNED}
    exact = wanted(x.double())
    case = PLAIN | {"lanes": lanes, "tile": 1}
    found = plan_of(graph, [x], ranges, case).run([x])
    steps = {name: code_of(known).scale for name, known in ranges.items()}
    moved = STEP if op in ("maxpool", "avgpool", "cat") or given.get("size") == (9, 13) else steps["y"]
    bound = moved * 0.501 + (2.0 * steps["m"] * 0.501 if op == "mul" else 0.0) + 1e-6
    assert found.shape == exact.shape
    assert float((found.double() - exact).abs().max()) <= bound


def test_gaps_hold_the_byte_for_zero_after_every_run(path: str) -> None:
    x = torch.randn(2, 3, 7, 7)
    given = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "activation": "gelu"}
    nodes = (
        Node("y", "conv", ("x",), {"weight": torch.randn(4, 3, 3, 3), "bias": torch.ones(4)}, given),
        Node("z", "conv", ("y",), {"weight": torch.randn(4, 4, 3, 3)}, given),
    )
    graph = Graph(("x",), nodes, {}, Ref("z"))
    made = plan_of(graph, [x], ranges_of(graph, [(x,)]), PLAIN | {"tile": 1})
    made.run([x])
    assert made.program is not None
    layout = made.program.layouts["y"]
    assert layout.zero == 128
    mask = np.zeros(layout.image, bool)
    mask[(np.arange(7)[:, None] * layout.row + np.arange(7)).ravel()] = True
    offset = made.program.ops[made.program.layers["y"].place].y * 4
    arena = made.arenas[0].numpy().view(np.uint8)
    for channel, image in np.ndindex(4, 2):
        start = offset + layout.lead + channel * layout.channel + image * layout.image
        values = arena[start : start + layout.image]
        assert (values[~mask] == 128).all()
        assert (values[mask] != 128).any()


def test_not_a_number_becomes_zero(path: str) -> None:
    x = torch.ones(1, 2, 6, 6)
    x[0, 0, 2, 3] = float("nan")
    node = Node("y", "conv", ("x",), {"weight": torch.ones(1, 2, 1, 1)}, {
        "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1,
    })  # fmt: skip
    found = plan_of(Graph(("x",), (node,), {}, Ref("y")), [x], {"x": SIGNED, "y": (0.0, 0.0)}, PLAIN | {"tile": 1}).run([x])
    assert torch.allclose(found, x.nan_to_num(0.0).sum(1, keepdim=True))
