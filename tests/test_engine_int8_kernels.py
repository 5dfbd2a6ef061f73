"""int8 kernels: sums of whole numbers against NumPy, bit for bit by every instruction set; layers without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine_networks import forced
from secateur.native import library
from secateur.runtime.coding import Coding, code_of, ranges_of
from secateur.runtime.graph import Graph, Node, Ref
from secateur.runtime.lower import lower
from secateur.runtime.pack import pack
from secateur.runtime.placing import shapes_of
from secateur.runtime.plan import Plan
from secateur.runtime.program import choose
from secateur.runtime.tune import largest_tile

MISSING = library.missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "the engine is there"),
    pytest.mark.usefixtures("one_int8_kernel"),
]
PATHS = [path for path in library.usable() if path != "avx512_bf16"] if not MISSING else []
"""avx512_bf16 runs the int8 kernels of avx512_vnni."""
FEW, MANY = 50, 600
STEP = 2.0**-6
"""Scales are powers of two here, so that what follows a sum is exact too."""
UNSIGNED, SIGNED = (0.0, 255 * STEP), (-128 * STEP, 127 * STEP)
Case = dict[str, Any]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set this CPU has, forced as a user would force it."""
    with forced(request.param, monkeypatch) as isa:
        yield isa


kernels = {
    "block": st.sampled_from([1, 1, 2, 4]), "tile": st.integers(1, 6), "split": st.integers(0, 1),
    "parts": st.sampled_from([1, 1, 2, 5]), "threads": st.integers(1, 3), "seed": st.integers(0, 2**20),
    "zeros": st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]), "signed": st.booleans(), "bias": st.booleans(),
    "residual": st.booleans(), "after": st.integers(0, 1), "end": st.sampled_from(["", "relu", "clamp"]),
}  # fmt: skip
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
convolutions = st.fixed_dictionaries(
    kernels
    | {
        "images": st.sampled_from([1, 2, 16, 17]), "lanes": st.sampled_from([1, 16]), "groups": st.sampled_from([1, 1, 2, 3]),
        "inner": st.integers(1, 9), "outer": st.integers(1, 9), "size": st.tuples(st.integers(2, 17), st.integers(2, 17)),
        "kernel": pairs, "stride": pairs, "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)), "dilation": pairs,
    }
)  # fmt: skip
linears = st.fixed_dictionaries(
    kernels | {"rows": st.integers(2, 140), "inputs": st.integers(1, 90), "outputs": st.integers(1, 70)}
)
quick = settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
long = settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def whole_weight(shape: tuple[int, ...], zeros: float, generator: np.random.Generator) -> np.ndarray:
    """Whole numbers up to 127, which every row that is not empty reaches: its scale is then known."""
    weight = generator.integers(-127, 128, shape) * (generator.random(shape) >= zeros)
    for row in weight.reshape(len(weight), -1):
        if row.any():
            row[np.nonzero(row)[0][0]] = 127
    return weight


def whole_input(shape: tuple[int, ...], signed: bool, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(-128, 128, shape) if signed else generator.integers(0, 256, shape)


def sums(x: np.ndarray, weight: np.ndarray, c: Case) -> np.ndarray:
    """A convolution of whole numbers, tap by tap."""
    pads = [(0, 0), (0, 0), *((p, p) for p in c["padding"])]
    x, groups = np.pad(x.astype(np.int64), pads), c["groups"]
    size = [(x.shape[2 + d] - c["dilation"][d] * (weight.shape[2 + d] - 1) - 1) // c["stride"][d] + 1 for d in (0, 1)]
    y = np.zeros((len(x), len(weight), *size), np.int64)
    each, read = len(weight) // groups, weight.shape[1]
    for i, j in np.ndindex(*weight.shape[2:]):
        rows, columns = (
            slice(k * c["dilation"][d], k * c["dilation"][d] + c["stride"][d] * (size[d] - 1) + 1, c["stride"][d])
            for d, k in enumerate((i, j))
        )
        for g in range(groups):
            part = weight[g * each : (g + 1) * each, :, i, j].astype(np.int64)
            y[:, g * each : (g + 1) * each] += np.einsum("nchw,oc->nohw", x[:, g * read : (g + 1) * read, rows, columns], part)
    return y


def followed(y: np.ndarray, bias: np.ndarray | None, other: np.ndarray | None, c: Case) -> np.ndarray:
    """What follows the sums, in float32, operation by operation; `other` in its numbers."""
    value = y.astype(np.float32) * np.float32(STEP * STEP)
    shape = (1, -1) + (1,) * (y.ndim - 2)
    value = value + (np.zeros(1, np.float32) if bias is None else bias.reshape(shape))
    if other is not None and not c["after"]:
        value = value + other.astype(np.float32)
    if c["end"]:
        value = np.clip(
            value, np.float32(0.0 if c["end"] == "relu" else -0.5), np.float32(np.inf if c["end"] == "relu" else 0.5)
        )
    return value + other.astype(np.float32) if other is not None and c["after"] else value


def plan_of(graph: Graph, inputs: list[Tensor], ranges: dict[str, tuple[float, float]], c: Case) -> Plan:
    """A plan with the kernel named."""
    values = shapes_of(graph, inputs)
    program = lower(graph, values, lanes=c.get("lanes", 1), size=1, coding=Coding(ranges))
    assert [step.node for step in program.steps] == [None], "the engine runs it"
    for name, layer in program.layers.items():
        assert layer.size == 1
        block = c["block"] if layer.alike else 1
        tile = min(c["tile"], largest_tile(block, library.path(), size=1), layer.lines)
        choose(program, name, block, tile, c["split"], c["parts"])
    made = {name: tuple(values[name].shape) for step in program.steps for name in step.writes}
    return Plan(graph, program, {}, c["threads"], 1, c["threads"], [program.arena()], made)


def settings_of(c: Case) -> dict[str, Any]:
    given = {"after": c["after"]} | ({"activation": c["end"]} if c["end"] else {})
    return given | ({"low": -0.5, "high": 0.5} if c["end"] == "clamp" else {})


def check(node: Node, x: np.ndarray, other: np.ndarray | None, exact: np.ndarray, c: Case) -> None:
    """As float32 the layer gives `exact`, bit for bit; as bytes the nearest to it."""
    step = np.float32(STEP)
    inputs = [torch.from_numpy(x.astype(np.float32) * step)] + ([] if other is None else [torch.from_numpy(other)])
    known = {"x": SIGNED if c["signed"] else UNSIGNED, "other": SIGNED, "y": (0.0, 0.0)}
    alone = plan_of(Graph(node.inputs, (node,), {}, Ref("y")), inputs, known, c)
    found = alone.run(inputs)
    assert np.array_equal(found.numpy(), exact)
    assert torch.equal(alone.run(inputs), found), "a second run differs"
    low, high = min(float(exact.min()), 0.0), max(float(exact.max()), 0.0)
    code = code_of((low, high))
    behind = Node("z", "act", ("y",), {}, {"activation": "clamp", "low": -math.inf, "high": math.inf})
    ranges = known | {"y": (low, high), "z": (low, high)}
    coded = plan_of(Graph(node.inputs, (node, behind), {}, Ref("z")), inputs, ranges, c).run(inputs).numpy()
    assert np.abs(coded.astype(np.float64) - exact).max(initial=0.0) <= code.scale * (0.5 + 1e-3)


def check_convolution(c: Case) -> None:
    taps = [c["dilation"][d] * (c["kernel"][d] - 1) + 1 for d in (0, 1)]
    made = [(c["size"][d] + 2 * c["padding"][d] - taps[d]) // c["stride"][d] + 1 for d in (0, 1)]
    if min(made) < 1 or made == [1, 1]:  # one pixel: PyTorch's
        return
    generator, groups = np.random.default_rng(c["seed"]), c["groups"]
    weight = whole_weight((c["outer"] * groups, c["inner"], *c["kernel"]), c["zeros"], generator)
    x = whole_input((c["images"], c["inner"] * groups, *c["size"]), c["signed"], generator)
    y = sums(x, weight, c)
    bias = generator.standard_normal(len(weight)).astype(np.float32) if c["bias"] else None
    other = whole_input(y.shape, True, generator).astype(np.float32) * np.float32(STEP) if c["residual"] else None
    places = {key: c[key] for key in ("stride", "padding", "dilation", "groups")}
    tensors = {"weight": torch.from_numpy(weight.astype(np.float32) * np.float32(STEP))}
    tensors |= {} if bias is None else {"bias": torch.from_numpy(bias)}
    names = ("x",) if other is None else ("x", "other")
    check(Node("y", "conv", names, tensors, places | settings_of(c)), x, other, followed(y, bias, other, c), c)


def check_linear(c: Case) -> None:
    generator = np.random.default_rng(c["seed"])
    weight = whole_weight((c["outputs"], c["inputs"]), c["zeros"], generator)
    x = whole_input((c["rows"], c["inputs"]), c["signed"], generator)
    y = x.astype(np.int64) @ weight.T.astype(np.int64)
    bias = generator.standard_normal(len(weight)).astype(np.float32) if c["bias"] else None
    other = whole_input(y.shape, True, generator).astype(np.float32) * np.float32(STEP) if c["residual"] else None
    tensors = {"weight": torch.from_numpy(weight.astype(np.float32) * np.float32(STEP))}
    tensors |= {} if bias is None else {"bias": torch.from_numpy(bias)}
    names = ("x",) if other is None else ("x", "other")
    check(Node("y", "linear", names, tensors, settings_of(c)), x, other, followed(y, bias, other, c), c)


@quick
@given(convolutions)
def test_convolutions_equal_sums_of_whole_numbers(path: str, case: Case) -> None:
    check_convolution(case)


@quick
@given(linears)
def test_linear_layers_equal_sums_of_whole_numbers(path: str, case: Case) -> None:
    check_linear(case)


@pytest.mark.slow
@long
@given(convolutions)
def test_many_convolutions(path: str, case: Case) -> None:
    check_convolution(case)


@pytest.mark.slow
@long
@given(linears)
def test_many_linear_layers(path: str, case: Case) -> None:
    check_linear(case)


PLAIN: Case = {
    "block": 1, "tile": 2, "split": 0, "parts": 1, "threads": 2, "seed": 1, "zeros": 0.9, "signed": True, "bias": True,
    "residual": True, "after": 0, "end": "relu", "images": 1, "lanes": 1, "groups": 1, "inner": 3, "outer": 5, "size": (13, 11),
    "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"zeros": 1.0},
        {"inner": 1, "outer": 1},
        {"inner": 40, "zeros": 0.0, "end": "", "parts": 5},
        {"size": (4, 4), "images": 2},
        {"size": (8, 8), "block": 2},
        {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3), "size": (30, 30)},
        {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2), "images": 16, "lanes": 16, "signed": False},
        {"groups": 3, "inner": 1, "outer": 1, "kernel": (5, 5), "padding": (2, 2), "images": 3},
    ],
)
def test_odd_convolutions(path: str, more: Case) -> None:
    check_convolution(PLAIN | more)


def test_the_largest_numbers_do_not_overflow(path: str) -> None:
    """4,096 products of 255 and 127: where four of them were added in 16 bits, or a sum saturated, it would show."""
    weight = torch.full((2, 4096), 127 * STEP)
    weight[1] *= -1
    node = Node("y", "linear", ("x",), {"weight": weight})
    case = PLAIN | {"block": 1, "parts": 1}
    x = torch.full((3, 4096), 255 * STEP)
    found = plan_of(Graph(("x",), (node,), {}, Ref("y")), [x], {"x": UNSIGNED, "y": (0.0, 0.0)}, case).run([x])
    wanted = 4096 * 255 * 127 * STEP * STEP
    assert torch.equal(found, torch.tensor([[wanted, -wanted]] * 3))


def test_fours_hold_every_weight_once() -> None:
    weight = np.array([[0, 1, -2, 3, 4, 5], [0, 0, 0, 0, 0, 0], [4, 0, 0, -127, 0, 0], [0, 0, 6, 0, 1, 0]], np.float32)
    for parts in (1, 2):
        made = pack(weight, np.arange(6) * 100, None, parts=parts, ordered=True, size=1)
        found = np.zeros_like(weight)
        for part in range(parts):
            for row in range(4):
                for *offsets, four in made.words[made.start[part * 4 + row] : made.start[part * 4 + row + 1]]:
                    for offset, value in zip(offsets, np.array([four], np.int32).view(np.int8), strict=True):
                        found[row, offset // 100] += value
        assert np.array_equal(found, weight)
        assert len(made.words) == (4 if parts == 1 else 6)


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
