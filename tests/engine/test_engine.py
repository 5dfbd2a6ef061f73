"""Compiled models: the outputs of the original, whatever the architecture, input size, threads and form of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine_networks import (
    MISSING,
    MODEL,
    NETWORKS,
    flat_of,
    needs_kernels,
    network,
    same,
    told,
)
from secateur import runtime
from secateur.core.errors import SecateurError
from secateur.native import build, library
from secateur.runtime.capture import capture
from secateur.runtime.fuse import fuse
from secateur.runtime.graph import Graph

pytestmark = pytest.mark.usefixtures("few_kernels")


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_made_of_what_goes_in(name: str) -> None:
    """Of biases alone they would be right whatever the engine makes of the input."""
    model, inputs = network(name)
    with torch.no_grad():
        for a, b in zip(flat_of(model(*inputs)), flat_of(model(*map(torch.randn_like, inputs))), strict=True):
            assert float((a - b).abs().max()) > 0.1 * float(a.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_are_those_of_the_model(name: str, threads: int) -> None:
    model, inputs = network(name)
    with torch.no_grad():
        wanted = model(*inputs)
    fast = runtime.compile(model, inputs, threads=threads)
    same(fast(*inputs), wanted)
    again = fast(*inputs)
    same(again, wanted)


@needs_kernels
@pytest.mark.parametrize("isa", library.usable() if not MISSING else ())
def test_every_instruction_set_runs_whole_networks(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs)
    same(fast(*inputs), model(*inputs).detach())


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_other_sizes_are_planned_when_they_come(name: str) -> None:
    model, inputs = network(name)
    fast = runtime.compile(model, inputs)
    for batch in (1, 3, 16, 32):
        x = torch.randn(batch, *inputs[0].shape[1:])
        same(fast(x), model(x).detach())
    if name == "plain":
        x = torch.randn(1, 3, 50, 70)
        same(fast(x), model(x).detach())


def test_inputs_that_do_not_fit_are_refused_in_one_sentence() -> None:
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs)
    for wrong in ((torch.randn(1, 4, 33, 40),), (*inputs, *inputs)):
        with pytest.raises(SecateurError, match="running a compiled model"):
            fast(*wrong)


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SecateurError, match=r"torch\.export cannot follow"):
        runtime.compile(Branch(), torch.randn(2, 3))


def test_folded_weights_keep_their_zeros() -> None:
    model, inputs = network("plain")
    graph: Graph = fuse(capture(model, inputs))
    zeros = [int((node.tensors["weight"] == 0).sum()) for node in graph.nodes if node.op == "conv"]
    assert sum(zeros) == sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Conv2d))
    assert {node.op for node in graph.nodes} == {"conv", "maxpool", "adaptive", "flatten", "linear"}, "everything else is fused"


@needs_kernels
def test_layers_all_zero_give_their_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1)).eval()
    for parameter in (model[0].weight, model[2].weight):
        nn.init.zeros_(parameter)  # type: ignore[arg-type]
    x = torch.randn(1, 3, 8, 8)
    same(runtime.compile(model, x)(x), model(x).detach())


@needs_kernels
def test_choices_tell_how_each_layer_runs() -> None:
    model, inputs = network("bottleneck")
    rows = runtime.compile(model, inputs).choices(*inputs)
    assert [row["layer"] for row in rows] == ["a", "b", "c", "shortcut.0"]
    assert all(row["runs"] == "engine" and row["ms"] > 0 and 0.7 < row["sparsity"] < 1 for row in rows)


@needs_kernels
def test_a_dense_layer_is_left_to_pytorch_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    model, inputs = network("bottleneck")
    monkeypatch.setattr(plan, "layer_floor", lambda *_: 0.0)
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "COPY_RATE", 1e18)
    monkeypatch.setattr(plan, "dense_nanoseconds", lambda node, *_: 0 if node.settings["layer"] == "b" else 10**12)
    fast = runtime.compile(model, inputs)
    assert {row["layer"]: row["runs"] for row in fast.choices(*inputs)} == {
        "a": "engine", "b": "dense", "shortcut.0": "engine", "c": "engine",
    }  # fmt: skip
    same(fast(*inputs), model(*inputs).detach())


def test_without_kernels_everything_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE", "off")
    library._library.cache_clear()
    try:
        model, inputs = network("plain")
        fast = runtime.compile(model, inputs)
        assert "not available because" in fast.note
        same(fast(*inputs), model(*inputs).detach())
        assert {row["runs"] for row in fast.choices(*inputs)} == {"dense"}
        with pytest.raises(SecateurError, match="the sparse engine"):
            library.library()
    finally:
        library._library.cache_clear()


def test_no_compiler_is_one_clear_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.Unbuilt, match=r"no C\+\+ compiler"):
        build.compiler()


def test_the_command_exports_measures_and_inspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    made = told("export", "net.py:build", "--to", "sparse", "--input", "1,3,16,16", "-o", "m.engine")
    assert made["bytes"] == (tmp_path / "m.engine").stat().st_size
    assert made["precision"] == "float32"
    half = told("export", "net.py:build", "--precision", "bf16", "--input", "1,3,16,16", "-o", "h.engine")
    assert half["precision"] == told("measure", "h.engine", "--repeats", "3")["precision"] == "bf16"
    assert told("inspect", "h.engine")["precision"] == "bf16"
    measured = told("measure", "m.engine", "--repeats", "3")
    assert measured["latency_ms"] > 0
    layers = told("inspect", "m.engine")["layers"]
    assert [row["layer"] for row in layers] == ["0", "4"]
    assert layers[0]["sparsity"] > 0.8
