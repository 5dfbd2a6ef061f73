"""Kernels of layers with weights against PyTorch in float64: every instruction set, block, tile and layout, random layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine_kernels import SINGLE, close, half, near, path, plan_of
from engine_networks import needs_kernels
from secateur.runtime.graph import Node
from secateur.runtime.pack import pack, rounded

__all__ = ["path"]

pytestmark = needs_kernels
in_single = pytest.mark.parametrize("path", SINGLE, indirect=True)
FEW, MANY = 60, 600
"""Random cases of the quick run and of the long one, for each kind of layer."""


def sparse(shape: tuple[int, ...], zeros: float, generator: torch.Generator) -> Tensor:
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) >= zeros)


kernels = {
    "block": st.sampled_from([1, 1, 2, 4]), "tile": st.integers(1, 14), "split": st.integers(0, 1),
    "parts": st.sampled_from([1, 1, 2, 5]),
    "threads": st.integers(1, 3), "zeros": st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]), "seed": st.integers(0, 2**20),
}  # fmt: skip
ENDS: list[dict[str, Any]] = [
    {}, {"activation": "clamp", "low": 0.0, "high": float("inf")}, {"activation": "clamp", "low": -0.5, "high": 0.5},
    {"activation": "hardswish"}, {"activation": "silu"}, {"activation": "sigmoid"}, {"activation": "hardsigmoid"},
    {"activation": "gelu"}, {"activation": "relu"},
]  # fmt: skip
convolutions = st.fixed_dictionaries(
    kernels
    | {
        "images": st.sampled_from([1, 1, 2, 3, 16, 17]), "lanes": st.sampled_from([1, 1, 16]),
        "groups": st.sampled_from([1, 1, 1, 2, 3]), "inner": st.integers(1, 5), "outer": st.integers(1, 6),
        "size": st.tuples(st.integers(2, 19), st.integers(2, 19)),
        "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)), "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)), "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "bias": st.booleans(), "residual": st.booleans(), "after": st.integers(0, 1), "end": st.sampled_from(ENDS),
    }
)  # fmt: skip
linears = st.fixed_dictionaries(
    kernels
    | {
        "rows": st.integers(1, 70), "inputs": st.integers(1, 90), "outputs": st.integers(1, 70), "deep": st.booleans(),
        "bias": st.booleans(), "residual": st.booleans(), "end": st.sampled_from(ENDS),
    }
)  # fmt: skip


def ended(y: Tensor, end: dict[str, Any], other: Tensor | None, after: int) -> Tensor:
    y = y if other is None or after else y + other
    kind = end.get("activation")
    if kind == "clamp":
        y = y.clamp(end["low"], end["high"])
    elif kind:
        y = getattr(F, kind)(y)
    return y + other if other is not None and after else y


def check_convolution(c: dict[str, Any], *, halves: bool = False) -> None:
    generator = torch.Generator().manual_seed(c["seed"])
    taps = [c["dilation"][d] * (c["kernel"][d] - 1) + 1 for d in (0, 1)]
    made = [(c["size"][d] + 2 * c["padding"][d] - taps[d]) // c["stride"][d] + 1 for d in (0, 1)]
    if min(made) < 1 or made == [1, 1]:  # one pixel: PyTorch's
        return
    groups = c["groups"]
    weight = sparse((c["outer"] * groups, c["inner"], *c["kernel"]), c["zeros"], generator)
    bias = torch.randn(len(weight), generator=generator) if c["bias"] else None
    x = torch.randn(c["images"], c["inner"] * groups, *c["size"], generator=generator)
    other = torch.randn(c["images"], len(weight), *made, generator=generator) if c["residual"] else None
    places = {key: c[key] for key in ("stride", "padding", "dilation")} | {"groups": groups}
    inputs = {"x": x} | ({} if other is None else {"other": other})
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    node = Node("y", "conv", tuple(inputs), tensors, places | c["end"] | {"after": c["after"]})
    kernel = {key: c[key] for key in ("block", "tile", "split", "parts", "lanes", "threads")}
    plan = plan_of(node, inputs, halves=halves, **kernel)
    read, compare = (half, near) if halves else (Tensor.double, close)
    wanted = F.conv2d(read(x), read(weight), None if bias is None else bias.double(), **places)
    sizes = 0.1 * F.conv2d(read(x).abs(), read(weight).abs(), **places)
    found = plan.run(list(inputs.values()))
    compare(found, ended(wanted, c["end"], None if other is None else read(other), c["after"]), wanted, other, sizes)
    assert torch.equal(plan.run(list(inputs.values())), found), "a second run differs"


def check_linear(c: dict[str, Any], *, halves: bool = False) -> None:
    generator = torch.Generator().manual_seed(c["seed"])
    weight = sparse((c["outputs"], c["inputs"]), c["zeros"], generator)
    bias = torch.randn(len(weight), generator=generator) if c["bias"] else None
    ahead = (1, c["rows"]) if c["deep"] else (c["rows"],)
    x = torch.randn(*ahead, c["inputs"], generator=generator)
    other = torch.randn(*ahead, c["outputs"], generator=generator) if c["residual"] else None
    inputs = {"x": x} | ({} if other is None else {"other": other})
    node = Node("y", "linear", tuple(inputs), {"weight": weight} | ({} if bias is None else {"bias": bias}), c["end"])
    kernel = {key: c[key] for key in ("block", "tile", "split", "parts", "threads")}
    plan = plan_of(node, inputs, lanes=1, halves=halves, **kernel)
    read, compare = (half, near) if halves and c["rows"] > 1 else (Tensor.double, close)  # one vector stays in float32
    wanted = F.linear(read(x), read(weight), None if bias is None else bias.double())
    sizes = 0.1 * F.linear(read(x).abs(), read(weight).abs())
    found = plan.run(list(inputs.values()))
    compare(found, ended(wanted, c["end"], None if other is None else read(other), 0), wanted, other, sizes)
    assert torch.equal(plan.run(list(inputs.values())), found), "a second run differs"


quick = settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
long = settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), database=None)
PLAIN: dict[str, Any] = {
    "block": 1, "tile": 7, "split": 0, "parts": 1, "threads": 2, "zeros": 0.9, "seed": 1, "images": 1, "lanes": 1,
    "groups": 1, "inner": 3,
    "outer": 5, "size": (13, 11), "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "bias": True,
    "residual": True, "after": 0, "end": ENDS[1],
}  # fmt: skip
CLIPPED = PLAIN | {"zeros": 0.95, "seed": 640, "images": 16, "inner": 4, "outer": 1, "size": (6, 12), "kernel": (3, 4),
                   "padding": (0, 0), "residual": False}  # fmt: skip
"""Almost everything is clipped at zero, and what is left is a small difference of large numbers."""
EDGES: tuple[dict[str, Any], ...] = (
    PLAIN | {"zeros": 1.0},
    CLIPPED,
    PLAIN | {"inner": 1, "outer": 1},
    PLAIN | {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3), "size": (30, 30)},
    PLAIN | {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2), "images": 16, "lanes": 16},
    PLAIN | {"groups": 3, "inner": 1, "outer": 1, "kernel": (5, 5), "padding": (2, 2), "images": 3},
)


def with_edges(test: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """The test on random convolutions, and always on the odd ones."""
    test = given(convolutions)(test)
    for case in EDGES:
        test = example(case)(test)
    return test


@in_single
@quick
@with_edges
def test_convolutions_equal_the_dense_reference(case: dict[str, Any]) -> None:
    check_convolution(case)


@in_single
@quick
@given(linears)
def test_linear_layers_equal_the_dense_reference(case: dict[str, Any]) -> None:
    check_linear(case)


@quick
@with_edges
def test_convolutions_in_bf16_equal_the_dense_reference_of_rounded_numbers(case: dict[str, Any]) -> None:
    check_convolution(case, halves=True)


@quick
@given(linears)
def test_linear_layers_in_bf16_equal_the_dense_reference_of_rounded_numbers(case: dict[str, Any]) -> None:
    check_linear(case, halves=True)


@pytest.mark.slow
@in_single
@long
@given(convolutions)
def test_many_convolutions_equal_the_dense_reference(case: dict[str, Any]) -> None:
    check_convolution(case)


@pytest.mark.slow
@in_single
@long
@given(linears)
def test_many_linear_layers_equal_the_dense_reference(case: dict[str, Any]) -> None:
    check_linear(case)


@pytest.mark.slow
@long
@given(convolutions)
def test_many_convolutions_in_bf16(case: dict[str, Any]) -> None:
    check_convolution(case, halves=True)


@pytest.mark.slow
@long
@given(linears)
def test_many_linear_layers_in_bf16(case: dict[str, Any]) -> None:
    check_linear(case, halves=True)


@in_single
def test_an_odd_weight_is_paired_with_its_own_half() -> None:
    """Beside a zero it would turn an infinite input into NaN."""
    x = torch.tensor([float("inf"), 1.0, -2.0]).reshape(1, 1, 1, 3).repeat(2, 1, 20, 1)
    node = Node("y", "conv", ("x",), {"weight": torch.full((1, 1, 1, 1), 1.7)}, {
        "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1,
    })  # fmt: skip
    plan = plan_of(node, {"x": x}, block=1, tile=3, split=0, parts=1, lanes=1, threads=1, halves=True)
    assert torch.equal(plan.run([x]).double(), half(half(torch.tensor(1.7)) * x.double()))


def test_weights_are_rounded_as_pytorch_rounds_them() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-30, 30, 4000)
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, float("inf"), -float("inf"), 0.0, 3.3e38])
    for x in (values, ties):
        assert torch.equal(torch.from_numpy(rounded(x.numpy()).view(np.float32)), x.bfloat16().float())
    assert np.isnan(rounded(np.array([np.nan], np.float32)).view(np.float32)).all()


def test_pairs_hold_every_weight_once() -> None:
    weight = np.array([[0, 1, 2, 3], [0, 0, 0, 0], [4, 0, 0, 5], [0, 0, 6, 0]], np.float32)
    for parts in (1, 2):
        made = pack(weight, np.arange(4) * 100, None, parts=parts, ordered=True, size=2)
        found = np.zeros_like(weight)
        for part in range(parts):
            for row in range(4):
                for a, b, words in made.words[made.start[part * 4 + row] : made.start[part * 4 + row + 1]]:
                    low, high = (
                        (np.array([words << 16, words & -65536], np.int64) & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
                    )
                    found[row, a // 100] += low
                    found[row, b // 100] += high
        assert np.array_equal(found, weight)
        assert len(made.words) == (4 if parts == 1 else 5)


@pytest.mark.parametrize("halves", [False, True])
def test_gaps_hold_zeros_after_every_run(halves: bool) -> None:
    """A bias or an activation must not leak into the zeros a later convolution reads as its padding."""
    x = torch.randn(2, 3, 7, 7)
    settings_ = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "activation": "sigmoid"}
    node = Node("y", "conv", ("x",), {"weight": torch.randn(4, 3, 3, 3), "bias": torch.ones(4)}, settings_)
    plan = plan_of(node, {"x": x}, block=1, tile=2, split=0, parts=1, lanes=1, threads=1, halves=halves)
    assert plan.program is not None
    layout = plan.program.layouts["y"]
    plan.run([x])
    mask = np.zeros(layout.image, bool)
    mask[(np.arange(7)[:, None] * layout.row + np.arange(7)).ravel()] = True
    offset = plan.program.ops[plan.program.layers["y"].place].y * 4 // layout.bytes
    arena = plan.arenas[0].numpy().view(np.uint16 if halves else np.float32)
    for channel in range(4):
        for image in range(2):
            start = offset + layout.lead + channel * layout.channel + image * layout.image
            values = arena[start : start + layout.image]
            assert (values[~mask] == 0).all()
            assert (values[mask] != 0).all()
