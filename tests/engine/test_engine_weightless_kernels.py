"""Kernels of layers without weights against PyTorch in float64, what becomes of not-a-number, and the kernels' library."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine_kernels import SINGLE, close, half, near, path, plan_of
from engine_networks import needs_kernels
from secateur.native import library
from secateur.runtime.graph import Graph, Node, Ref
from secateur.runtime.lower import lower
from secateur.runtime.placing import shapes_of
from secateur.runtime.plan import Plan
from secateur.runtime.program import choose

__all__ = ["path"]

pytestmark = needs_kernels


def pooling(kernel: Any, stride: Any, padding: int) -> dict[str, Any]:
    def pair(value: Any) -> tuple[int, int]:
        return value if isinstance(value, tuple) else (value, value)

    return {"kernel": pair(kernel), "stride": pair(stride), "padding": pair(padding)}


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    ("op", "given", "wanted"),
    [
        ("maxpool", pooling(3, 2, 1) | {"ceil": False}, lambda x: F.max_pool2d(x, 3, 2, 1)),
        ("maxpool", pooling(2, 2, 0) | {"ceil": True}, lambda x: F.max_pool2d(x, 2, 2, 0, 1, True)),
        ("maxpool", pooling(2, 2, 0) | {"ceil": False}, lambda x: F.max_pool2d(x, 2)),
        ("maxpool", pooling((3, 2), (1, 3), 1) | {"ceil": False}, lambda x: F.max_pool2d(x, (3, 2), (1, 3), 1)),
        ("maxpool", pooling((9, 13), (9, 13), 0) | {"ceil": False}, lambda x: F.max_pool2d(x, (9, 13))),
        ("avgpool", pooling(2, 2, 0), lambda x: F.avg_pool2d(x, 2)),
        ("avgpool", pooling(3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1)),
        ("adaptive", {"size": (1, 1)}, lambda x: F.adaptive_avg_pool2d(x, 1)),
        ("adaptive", {"size": (1, 1), "flat": True}, lambda x: x.mean((2, 3))),
        ("act", {"activation": "silu"}, F.silu),
        ("affine", {"activation": "clamp", "low": 0.0, "high": 6.0}, lambda x: F.relu6(x * 2 - 0.25)),
        ("cat", {}, lambda x: torch.cat([x, x], 1)),
        ("add", {}, lambda x: x + x),
        ("mul", {}, lambda x: x * x.mean((2, 3), keepdim=True)),
    ],
)  # fmt: skip
def test_layers_without_weights(
    op: str, given: dict[str, Any], wanted: Any, batch: int, lanes: int, halves: bool, path: str
) -> None:
    """Behind a convolution that passes its input on, because they stay where their input is."""
    if not halves and path not in SINGLE:
        return
    x = torch.randn(batch, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(3).reshape(3, 3, 1, 1)
    same = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    tensors = {"scale": torch.full((3,), 2.0), "shift": torch.full((3,), -0.25)} if op == "affine" else {}
    names = {"cat": ("c", "c"), "add": ("c", "c"), "mul": ("c", "m")}.get(op, ("c",))
    before: tuple[Node, ...] = (Node("c", "conv", ("x",), {"weight": eye}, same),)
    if op == "mul":
        before += (Node("m", "adaptive", ("c",), {}, {"size": (1, 1)}),)
    graph = Graph(("x",), (*before, Node("y", op, names, tensors, given)), {}, Ref("y"))
    values = shapes_of(graph, [x])
    program = lower(graph, values, lanes=lanes, size=2 if halves else 4)
    assert [step.node for step in program.steps] == [None]
    choose(program, "c", 1, 2, 0)
    plan = Plan(graph, program, {}, 2, 1, 2, [torch.zeros(program.floats)], {"y": tuple(values["y"].shape)})
    if halves and op == "mul":  # the means are rounded on their way
        assert torch.allclose(plan.run([x]).double(), wanted(half(x)), rtol=2.0**-7, atol=1e-6)
    elif halves:
        near(plan.run([x]), wanted(half(x)))
    else:
        close(plan.run([x]), wanted(x.double()))


@pytest.mark.parametrize("halves", [False, True])
def test_not_a_number_stays_one(halves: bool) -> None:
    x = torch.randn(1, 2, 6, 6)
    x[0, 0, 2, 3] = float("nan")
    node = Node("y", "conv", ("x",), {"weight": torch.ones(1, 2, 1, 1)}, {
        "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": "relu",
    })  # fmt: skip
    found = plan_of(node, {"x": x}, block=1, tile=3, split=0, parts=1, lanes=1, threads=1, halves=halves).run([x])
    assert torch.equal(found.isnan(), F.relu(x.sum(1, keepdim=True)).isnan())


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("lanes", [1, 16])
def test_a_maximum_over_not_a_number_is_none(lanes: int, padding: int, halves: bool) -> None:
    x = torch.randn(16, 2, 18, 70, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.9] = float("nan")
    same = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 2}
    first = Node("c", "conv", ("x",), {"weight": torch.ones(2, 1, 1, 1)}, same)
    graph = Graph(("x",), (first, Node("y", "maxpool", ("c",), {}, pooling(2, 2, padding) | {"ceil": False})), {}, Ref("y"))
    program = lower(graph, shapes_of(graph, [x]), lanes=lanes, size=2 if halves else 4)
    choose(program, "c", 1, 2, 0)
    wanted = F.max_pool2d(x, 2, 2, padding)
    plan = Plan(graph, program, {}, 1, 1, 1, [torch.zeros(program.floats)], {"y": tuple(wanted.shape)})
    assert torch.equal(plan.run([x]).nan_to_num(7), wanted.nan_to_num(7))


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", "avx511")
    with pytest.raises(Exception, match="SECATEUR_ENGINE_ISA=avx511"):
        library.library()


def test_the_library_knows_its_sources() -> None:
    from secateur.native import build

    assert library.library().secateur_source().decode() == build.digest() or os.environ.get("SECATEUR_ENGINE_LIBRARY")
