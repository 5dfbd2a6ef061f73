"""int8 kernels: sums of whole numbers against NumPy, bit for bit by every instruction set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_bytes import PLAIN, SIGNED, STEP, UNSIGNED, Case, path, plan_of, whole_input
from engine_networks import needs_kernels
from secateur.runtime.coding import code_of
from secateur.runtime.graph import Graph, Node, Ref
from secateur.runtime.pack import pack

__all__ = ["path"]

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_int8_kernel")]
FEW, MANY = 50, 600

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
